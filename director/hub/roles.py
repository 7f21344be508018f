"""The roles that every federation begins with. Others are made of the same rules; these cannot be changed."""

from __future__ import annotations

from .rules import Operation, Resource, Role, Rule, Scope

ADMIN = "admin"
OF_FEDERATION = frozenset({ADMIN, "auditor"})
"""Roles that reach beyond an organization: to give one of them takes ``approve:role:federation``."""


def _role(name: str, *rules: str) -> Role:
    return Role(name, frozenset(Rule.parse(rule) for rule in rules))


PRESETS: dict[str, Role] = {
    role.name: role
    for role in (
        Role(
            ADMIN,
            frozenset(Rule(operation, resource, Scope.FEDERATION) for operation in Operation for resource in Resource),
        ),
        _role(
            "organization-admin",
            "view:organization:federation",
            "edit:organization:organization",
            "view:envoy:organization",
            "create:envoy:organization",
            "edit:envoy:organization",
            "delete:envoy:organization",
            "view:collaboration:collaboration",
            "view:agreement:collaboration",
            "create:agreement:organization",
            "approve:agreement:organization",
            "view:user:organization",
            "create:user:organization",
            "edit:user:organization",
            "delete:user:organization",
            "view:role:federation",
            "approve:role:organization",
            "create:role:organization",
            "edit:role:organization",
            "delete:role:organization",
            "view:key:organization",
            "create:key:own",
            "delete:key:organization",
            "view:dataset:collaboration",
            "view:plan:collaboration",
            "create:remark:collaboration",
            "view:task:collaboration",
            "view:model:collaboration",
            "view:report:collaboration",
            "view:audit:organization",
        ),
        _role(
            "data-manager",
            "view:organization:federation",
            "view:envoy:organization",
            "view:collaboration:collaboration",
            "view:agreement:collaboration",
            "view:dataset:collaboration",
            "create:dataset:organization",
            "edit:dataset:organization",
            "delete:dataset:organization",
            "view:plan:collaboration",
            "create:remark:collaboration",
            "view:task:collaboration",
            "view:model:collaboration",
            "view:report:collaboration",
            "create:report:organization",
            "view:key:own",
            "create:key:own",
            "delete:key:own",
        ),
        _role(
            "site",  # of the program that takes part for an organization, over HTTPS
            "view:organization:federation",
            "view:envoy:organization",
            "create:envoy:organization",
            "edit:envoy:organization",
            "view:key:own",
            "create:key:own",
            "delete:key:own",
        ),
        _role(
            "researcher",
            "view:organization:federation",
            "view:collaboration:collaboration",
            "view:agreement:collaboration",
            "view:dataset:collaboration",
            "view:plan:collaboration",
            "create:remark:collaboration",
            "create:plan:collaboration",
            "view:task:collaboration",
            "create:task:collaboration",
            "start:task:collaboration",
            "steer:task:own",
            "view:model:collaboration",
            "create:model:own",
            "publish:model:own",
            "view:report:collaboration",
            "view:key:own",
            "create:key:own",
            "delete:key:own",
        ),
        _role(
            "reviewer",
            "view:organization:federation",
            "view:collaboration:collaboration",
            "view:agreement:collaboration",
            "view:dataset:collaboration",
            "view:plan:collaboration",
            "create:remark:collaboration",
            "approve:plan:collaboration",
            "view:task:collaboration",
            "view:model:collaboration",
            "view:report:collaboration",
            "view:key:own",
            "create:key:own",
            "delete:key:own",
        ),
        _role(
            "auditor",
            *(
                f"view:{resource.value}:federation"
                for resource in Resource
                if resource not in (Resource.KEY, Resource.REMARK)
            ),
            "export:audit:federation",
            "view:key:own",
            "create:key:own",
            "delete:key:own",
        ),
        _role(
            "dpo",
            "view:organization:federation",
            "view:collaboration:collaboration",
            "view:agreement:collaboration",
            "approve:agreement:organization",
            "view:dataset:collaboration",
            "delete:dataset:organization",
            "view:plan:collaboration",
            "create:remark:collaboration",
            "view:task:collaboration",
            "view:model:collaboration",
            "view:report:collaboration",
            "view:audit:organization",
            "export:audit:organization",
            "view:key:own",
            "create:key:own",
            "delete:key:own",
        ),
    )
}
