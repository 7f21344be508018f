"""Reviews of plans: whose verdicts count, and whether a collaboration has the approvals that it asks for.

A collaboration may ask for reviews: then no task of it starts, or goes on, unless so many of its organizations have a
reviewer who approved the plan, and none has one who rejects it. Each reviewer's latest verdict counts, as long as its
user is a reviewer, and has no part in the plan or the task. It comes before what the sites' data managers decide, and
takes nothing of it away.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import Engine

from ...utils.errors import AgreementError
from ...utils.tensors import Digest
from ..revocations import Revocations
from .agreements import Collaboration
from .plans import Plans
from .remarks import Opinion, Remarks, Verdict
from .rules import Operation, Resource, Role
from .users import Roles, users


@dataclass(frozen=True, slots=True)
class Reviewer:
    """Who gave a verdict, as they are now."""

    roles: tuple[Role, ...]
    is_disabled: bool = False
    is_revoked: bool = False

    @property
    def may_review(self) -> bool:
        """Does their word count still?"""
        rules = (rule for role in self.roles for rule in role.rules)
        is_one = any((rule.operation, rule.resource) == (Operation.APPROVE, Resource.PLAN) for rule in rules)
        return is_one and not self.is_disabled and not self.is_revoked


class Reviews:
    """Reviewers and their verdicts, asked each time: other processes write them too.

    Args:
        engine: of the director's database.
    """

    def __init__(self, engine: Engine) -> None:
        self._remarks, self._plans, self._users = Remarks(engine), Plans(engine), users(engine)
        self._roles, self._revocations = Roles(engine), Revocations(engine)

    def check(self, collaboration: Collaboration, plan: Digest, starter: str) -> None:
        """As ``check_reviewed``, of the verdicts that count now.

        Args:
            collaboration: that a task of the plan is of.
            plan: by its digest.
            starter: the id of the user who starts the task, or started it.

        Raises:
            AgreementError: not yet, or a reviewer rejects it.
        """
        if not collaboration.reviews_needed:
            return
        given = self._remarks.verdicts(plan)
        found = self._users.all(self._users.among({one.user for one in given}))
        roles = self._roles.of_each([one.id for one in found])
        revoked = self._revocations.among(one.name for one in found)
        reviewers = {one.id: Reviewer(roles[one.id], one.disabled_at is not None, one.name in revoked) for one in found}
        authors = {one.user for one in self._plans.of(plan)} | {starter}
        check_reviewed(collaboration, counting(collaboration, given, reviewers, authors))


def counting(
    collaboration: Collaboration,
    given: Iterable[Opinion],
    reviewers: Mapping[str, Reviewer],
    authors: Collection[str],
) -> tuple[Opinion, ...]:
    """Of verdicts on a plan, approvals and rejections alike, those that count in a collaboration.

    Args:
        collaboration: whose organizations' reviewers count.
        given: each user's latest.
        reviewers: all of those users.
        authors: users who brought the plan or started the task: nobody reviews what is one's own.
    """
    return tuple(
        one
        for one in given
        if one.organization in collaboration.organizations
        and one.user not in authors
        and reviewers[one.user].may_review
    )


def check_reviewed(collaboration: Collaboration, given: Iterable[Opinion]) -> None:
    """Was a plan reviewed as a collaboration asks for?

    Args:
        collaboration: that a task of the plan is of.
        given: the verdicts that count.

    Raises:
        AgreementError: not yet, or a reviewer rejects it.
    """
    if not collaboration.reviews_needed:
        return
    organizations: dict[Verdict, set[str]] = {one: set() for one in Verdict}
    for one in given:
        organizations[one.verdict].add(one.organization)
    if against := sorted(organizations[Verdict.REJECTED]):
        raise AgreementError(f"a reviewer of {', '.join(against)} rejects the plan; see the remarks on it")
    approved = len(organizations[Verdict.APPROVED])
    if approved < collaboration.reviews_needed:
        raise AgreementError(
            f"collaboration {collaboration.name} asks for the word of reviewers of {collaboration.reviews_needed}"
            f" organizations on a plan; {approved} approved this one"
        )
