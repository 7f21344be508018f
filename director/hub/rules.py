"""Who may do what, and why: a rule is an operation on a sort of thing within a scope. Pure; by default nothing may be.

A user acts for one organization and has roles; a role is a set of rules. Scopes widen: what is one's own, what is the
organization's, what belongs to a collaboration that the organization is part of, the whole federation. A wider rule
covers what a narrower one does. An API key carries rules of its own, and is worth what both it and its user may do.

>>> rule = Rule(Operation.VIEW, Resource.MODEL, Scope.ORGANIZATION)
>>> actor = Actor("anna", "north", roles=(Role("reader", frozenset({rule})),))
>>> print(decide(actor, Operation.VIEW, Resource.MODEL, Target(organization="north")))
allowed: role reader has view:model:organization, and it is of organization north
>>> print(decide(actor, Operation.VIEW, Resource.MODEL, Target(organization="south")))
refused: view:model is allowed to role reader within its organization, and this is not of organization north
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, IntEnum

from ...utils.errors import ConfigError


class Operation(Enum):
    """What is done to a thing."""

    VIEW = "view"
    CREATE = "create"
    EDIT = "edit"
    DELETE = "delete"
    APPROVE = "approve"
    START = "start"
    STEER = "steer"
    PUBLISH = "publish"
    EXPORT = "export"


class Resource(Enum):
    """A sort of thing."""

    ORGANIZATION = "organization"
    ENVOY = "envoy"
    COLLABORATION = "collaboration"
    AGREEMENT = "agreement"
    USER = "user"
    ROLE = "role"
    KEY = "key"
    DATASET = "dataset"
    PLAN = "plan"
    REMARK = "remark"
    TASK = "task"
    MODEL = "model"
    REPORT = "report"
    AUDIT = "audit"


class Scope(IntEnum):
    """How far a rule reaches; a wider one covers what a narrower one does."""

    OWN = 1
    ORGANIZATION = 2
    COLLABORATION = 3
    FEDERATION = 4


@dataclass(frozen=True, slots=True, order=False)
class Rule:
    """One thing that may be done; written ``operation:resource:scope``."""

    operation: Operation
    resource: Resource
    scope: Scope

    def __str__(self) -> str:
        return f"{self.operation.value}:{self.resource.value}:{self.scope.name.lower()}"

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Read what ``str`` writes.

        Raises:
            ConfigError: it names none; the text says which words there are.
        """
        parts = text.split(":")
        try:
            operation, resource, scope = parts
            return cls(Operation(operation), Resource(resource), Scope[scope.upper()])
        except (ValueError, KeyError):
            raise ConfigError(
                f"rule {text[:80]!r}: expected operation:resource:scope with an operation of"
                f" {', '.join(one.value for one in Operation)}; a resource of"
                f" {', '.join(one.value for one in Resource)}; a scope of"
                f" {', '.join(one.name.lower() for one in Scope)}"
            ) from None

    def covers(self, other: Rule) -> bool:
        """Is all that ``other`` allows allowed by this?"""
        return (self.operation, self.resource) == (other.operation, other.resource) and self.scope >= other.scope


@dataclass(frozen=True, slots=True)
class Role:
    """A named set of rules."""

    name: str
    rules: frozenset[Rule]


@dataclass(frozen=True, slots=True)
class Actor:
    """Somebody who asks: a user, acting for one organization, perhaps by an API key."""

    user: str
    organization: str
    collaborations: frozenset[str] = frozenset()  # those that the organization is part of
    roles: tuple[Role, ...] = ()
    key: frozenset[Rule] | None = None  # what the API key is for; None: signed in as oneself

    def grants(self, operation: Operation, resource: Resource) -> tuple[tuple[str, Rule], ...]:
        """Rules about this, each with the name of its role, the widest first; cut down to what the key is for."""
        found = [(role.name, rule) for role in self.roles for rule in role.rules]
        found = [(name, rule) for name, rule in found if (rule.operation, rule.resource) == (operation, resource)]
        if self.key is not None:
            widest = max(
                (one.scope for one in self.key if (one.operation, one.resource) == (operation, resource)), default=None
            )
            if widest is None:
                return ()
            found = [(name, Rule(operation, resource, min(rule.scope, widest))) for name, rule in found]
        return tuple(sorted(found, key=lambda one: (-one[1].scope, one[0])))

    def may_hand_on(self, rules: Iterable[Rule]) -> tuple[Rule, ...]:
        """Of these rules, those that this actor does not have: nobody gives others, or a key, more than that."""
        return tuple(
            rule for rule in rules if not any(own.covers(rule) for _, own in self.grants(rule.operation, rule.resource))
        )


@dataclass(frozen=True, slots=True)
class Target:
    """The one thing that is asked about."""

    organization: str | None = None  # whose it is; None: nobody's in particular
    collaborations: frozenset[str] = frozenset()  # that it belongs to
    owner: str | None = None  # the user who made it, or whom it is about


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether, and why."""

    is_allowed: bool
    why: str
    rule: Rule | None = None  # that allowed it

    def __str__(self) -> str:
        return f"{'allowed' if self.is_allowed else 'refused'}: {self.why}"


def decide(actor: Actor, operation: Operation, resource: Resource, target: Target) -> Decision:
    """May this actor do this to that?

    Guarantees (each has a property test):
        - without a rule about this very operation and resource it is refused;
        - one more rule, or a wider one, never refuses what was allowed;
        - with a key, nothing is allowed that is refused without it;
        - what belongs to another organization and to no common collaboration is reached by scope federation alone.
    """
    asked = f"{operation.value}:{resource.value}"
    grants = actor.grants(operation, resource)
    for name, rule in grants:
        reason = _reached(rule.scope, actor, target)
        if reason is not None:
            return Decision(True, f"role {name} has {rule}, and {reason}", rule)
    if grants:
        name, widest = grants[0]
        return Decision(False, f"{asked} is allowed to role {name} within {_within(widest.scope, actor)}")
    if actor.key is not None and any(
        (rule.operation, rule.resource) == (operation, resource) for role in actor.roles for rule in role.rules
    ):
        return Decision(False, f"this API key is not for {asked}")
    roles = ", ".join(role.name for role in actor.roles)
    return Decision(False, f"no rule about {asked} {f'in the roles {roles}' if roles else 'without any role'}")


def _reached(scope: Scope, actor: Actor, target: Target) -> str | None:
    """Why a rule of this scope reaches the target; None where it does not."""
    if scope is Scope.FEDERATION:
        return "it reaches the whole federation"
    if scope >= Scope.COLLABORATION and (common := actor.collaborations & target.collaborations):
        return f"it is of collaboration {min(common)}"
    if scope >= Scope.ORGANIZATION and target.organization == actor.organization:
        return f"it is of organization {actor.organization}"
    if target.owner == actor.user:
        return f"it is {actor.user}'s own"
    return None


def _within(scope: Scope, actor: Actor) -> str:
    match scope:
        case Scope.COLLABORATION:
            return "its collaborations, and this is of none of them"
        case Scope.ORGANIZATION:
            return f"its organization, and this is not of organization {actor.organization}"
        case _:
            return f"what is {actor.user}'s own, and this is not"
