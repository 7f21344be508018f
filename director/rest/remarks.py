"""Remarks on plans and tasks, reviewers' verdicts on plans, and to whom a plan is shown before a task of it begins."""

from __future__ import annotations

from fastapi import APIRouter, Response, status
from pydantic import BaseModel, ConfigDict, Field

from ...utils.errors import ConfigError, NotAuthorizedError
from ...utils.tensors import Digest, digest_of
from ..hub.hub import Hub
from ..hub.remarks import Remark, Subject, Verdict
from ..hub.rules import Operation, Resource, Target
from ..hub.sign_in import Caller
from .asking import Page, TheCaller, TheHub, ThePage, Where, next_after
from .collaborations import CollaborationId
from .plans import PlanDigest, may_bring, seen_plan, targets_of
from .problems import documented
from .tasks import TaskId, seen_task, target_of
from .works import TheWorks

router = APIRouter(prefix="/api/v1", responses=documented(400, 401, 403, 404, 413, 422, 429, 503))
_PROSE = r"^[^\x00-\x08\x0b-\x1f\x7f]*[^\x00-\x20\x7f][^\x00-\x08\x0b-\x1f\x7f]*$"
_MOST = 1 << 31


class RemarkBody(BaseModel):
    """Something that a user said. It is never changed; its SHA-256 stands in the audit log."""

    number: int = Field(description="In its thread, from 0.")
    author: str = Field(description="The user's name.")
    organization_id: str
    text: str
    verdict: Verdict | None = Field(description="Of a reviewer on a plan: each one's latest counts.")
    answers: int | None = Field(description="The number of an earlier remark.")
    created_at: float

    @classmethod
    def of(cls, one: Remark, author: str) -> RemarkBody:
        """As it is shown."""
        return cls(
            number=one.number,
            author=author,
            organization_id=one.organization,
            text=one.text,
            verdict=one.verdict,
            answers=one.answers,
            created_at=one.created_at,
        )


class NewRemark(BaseModel):
    """What is to be said. No patients: everybody in the collaborations reads it."""

    model_config = ConfigDict(extra="forbid")
    text: str = Field(min_length=1, max_length=4000, pattern=_PROSE)
    answers: int | None = Field(None, ge=0, lt=_MOST)


class NewPlanRemark(NewRemark):
    """What is to be said of a plan."""

    verdict: Verdict | None = Field(None, description="With `approve:plan`, signed in; not of a plan that one brought.")


@router.put(
    "/plans/{plan_digest}/collaborations/{collaboration_id}", status_code=status.HTTP_204_NO_CONTENT, tags=["plans"]
)
def show_plan_to(
    hub: TheHub, caller: TheCaller, works: TheWorks, plan_digest: PlanDigest, collaboration_id: CollaborationId
) -> Response:
    """Let a collaboration see a plan before a task of it begins, to be reviewed; again, nothing changes."""
    may_bring(caller)
    manifest = seen_plan(hub, caller, works, plan_digest)
    if not any(one.user == caller.user.id for one in hub.plans.of(manifest.digest)):
        raise NotAuthorizedError("only who brought a plan shows it to others")
    target = Target(collaborations=frozenset([hub.collaborations.get(collaboration_id).id]))
    hub.allow(caller, Operation.VIEW, Resource.COLLABORATION, target)
    hub.allow(caller, Operation.CREATE, Resource.PLAN, target)
    done = hub.did(caller, "plan shown", plan=manifest.digest, collaboration=collaboration_id)
    hub.plans.show(manifest.digest, collaboration_id, hub.now(), done)
    return Response(status_code=status.HTTP_204_NO_CONTENT)


@router.get("/plans/{plan_digest}/remarks", tags=["plans"])
def list_plan_remarks(
    hub: TheHub, caller: TheCaller, works: TheWorks, page: ThePage, plan_digest: PlanDigest
) -> Page[RemarkBody]:
    """What was said of a plan, by one's own organization and those that see it in the same collaboration, in order."""
    plan = seen_plan(hub, caller, works, plan_digest).digest
    return _page(hub, Subject.PLAN, plan, page, _heard(hub, caller, plan))


@router.post("/plans/{plan_digest}/remarks", status_code=status.HTTP_201_CREATED, tags=["plans"])
def remark_on_plan(
    hub: TheHub, caller: TheCaller, works: TheWorks, plan_digest: PlanDigest, new: NewPlanRemark
) -> RemarkBody:
    """Say something of a plan, or give a reviewer's verdict on it, signed in."""
    seen_plan(hub, caller, works, plan_digest)
    plan = Digest(plan_digest)
    targets = targets_of(hub, plan)
    _any(hub, caller, Operation.CREATE, Resource.REMARK, targets)
    if new.verdict is not None:
        if any(one.user == caller.user.id for one in hub.plans.of(plan)):
            raise NotAuthorizedError("you brought this plan: somebody else reviews it")
        if caller.key is not None:
            raise NotAuthorizedError("no API key gives a verdict: a reviewer signs in")
        _any(hub, caller, Operation.APPROVE, Resource.PLAN, targets)
    return _say(hub, caller, Subject.PLAN, plan_digest, new, new.verdict)


@router.get("/tasks/{task_id}/remarks", tags=["tasks"])
def list_task_remarks(hub: TheHub, caller: TheCaller, page: ThePage, task_id: TaskId) -> Page[RemarkBody]:
    """What was said of a task, in order; for all who may see it."""
    return _page(hub, Subject.TASK, seen_task(hub, caller, task_id).run, page)


@router.post("/tasks/{task_id}/remarks", status_code=status.HTTP_201_CREATED, tags=["tasks"])
def remark_on_task(hub: TheHub, caller: TheCaller, task_id: TaskId, new: NewRemark) -> RemarkBody:
    """Say something of a task."""
    task = seen_task(hub, caller, task_id)
    hub.admit(caller, Operation.CREATE, Resource.REMARK, target_of(task))
    return _say(hub, caller, Subject.TASK, task.run, new)


def _any(hub: Hub, caller: Caller, operation: Operation, resource: Resource, targets: list[Target]) -> None:
    """One of those to whom the plan belongs is enough."""
    if not any(hub.may(caller, operation, resource, one) for one in targets):
        hub.admit(caller, operation, resource, targets[0])


def _say(
    hub: Hub, caller: Caller, subject: Subject, about: str, new: NewRemark, verdict: Verdict | None = None
) -> RemarkBody:
    user, now = caller.user, hub.now()

    def made(number: int) -> Remark:
        return Remark(subject, about, number, user.id, user.organization, new.text, now, verdict, new.answers)

    def write_down(remark: Remark) -> None:
        said = digest_of(remark.text.encode("utf-8"))
        more = {"verdict": verdict.value} if verdict else {}
        hub.did(caller, f"{subject.value} remark", target=about, number=remark.number, sha256=said, **more)()

    return RemarkBody.of(hub.remarks.say(made, write_down), user.name)


def _heard(hub: Hub, caller: Caller, plan: Digest) -> frozenset[str] | None:
    """Organizations whose words on a plan a caller reads; None: all. Two that bring the same bytes share no thread."""
    if hub.may(caller, Operation.VIEW, Resource.PLAN, Target()):
        return None
    common = hub.plans.collaborations(plan) & caller.actor.collaborations
    shared = hub.collaborations.all(hub.collaborations.among(common))
    return frozenset({caller.user.organization}).union(*(one.organizations for one in shared))


def _page(hub: Hub, subject: Subject, about: str, page: Where, by: frozenset[str] | None = None) -> Page[RemarkBody]:
    last = page.last_id or "-1"
    if not last.removeprefix("-").isdecimal() or len(last) > 10:
        raise ConfigError("after: expected what `next` of an earlier page says")
    found = hub.remarks.thread(subject, about, int(last), page.limit, by)
    names = {one.id: one.name for one in hub.users.all(hub.users.among({one.user for one in found}))}
    items = [RemarkBody.of(one, names[one.user]) for one in found]
    return Page(items=items, next=next_after(str(found[-1].number)) if len(found) == page.limit else None)
