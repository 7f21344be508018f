"""``/api/v1/tasks``: runs of a collaboration, started by whoever its agreements let."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response, status
from sqlalchemy import ColumnElement, Connection

from ...utils import messages as m
from ...utils.config import parse_toml
from ...utils.errors import AgreementError, NotAuthorizedError, UnknownEntityError
from ...utils.plan_bundle import Manifest
from ...utils.proposal import patch_of, proposal_of
from ..experiments import ExperimentSettings
from ..hub.agreements import Agreement, check_may_start
from ..hub.datasets import check_offered, named
from ..hub.hub import Hub
from ..hub.organizations import Status
from ..hub.rules import Operation, Resource, Target
from ..hub.sign_in import Caller
from ..hub.subtasks import subtasks
from ..hub.tables import TASKS
from ..hub.tasks import Task, check_asked
from ..privacy_report import of_run
from .asking import Page, TheCaller, TheHub, ThePage, next_after
from .documents import DocumentBody, signed_by, signer_of
from .files import download, file_answer
from .outputs import check_gives_model
from .plans import dataset_of, plan_to_start
from .problems import MissingBlobsError, documented
from .task_bodies import NewTask, PrivacyReport, SubtaskBody, TaskBody, TaskSummary
from .works import TheWorks, Works

router = APIRouter(prefix="/api/v1/tasks", tags=["tasks"], responses=documented(400, 401, 403, 413, 422, 429, 503))
TaskId = Annotated[str, Path(min_length=1, max_length=63, description="Of the task: the name of its run.")]


@router.get("")
def list_tasks(
    hub: TheHub,
    caller: TheCaller,
    works: TheWorks,
    page: ThePage,
    collaboration_id: Annotated[str | None, Query(max_length=32, description="Only of this collaboration.")] = None,
) -> Page[TaskSummary]:
    """All that the caller may see, in the order of their ids, without their rounds."""
    where: list[ColumnElement[bool]] = [] if collaboration_id is None else [TASKS.c.collaboration == collaboration_id]
    if not hub.may(caller, Operation.VIEW, Resource.TASK, Target()):
        own = caller.user.organization
        seen: ColumnElement[bool] = TASKS.c.collaboration.in_(
            [
                one
                for one in sorted(caller.actor.collaborations)
                if hub.may(caller, Operation.VIEW, Resource.TASK, Target(collaborations=frozenset([one])))
            ]
        )
        if hub.may(caller, Operation.VIEW, Resource.TASK, Target(own)):
            seen = seen | (TASKS.c.organization == own)
        if hub.may(caller, Operation.VIEW, Resource.TASK, Target(owner=caller.user.id)):
            seen = seen | (TASKS.c.user == caller.user.id)
        where.append(seen)
    found = hub.tasks.page(page.last_id, page.limit, *where)
    more = next_after(found[-1].run) if len(found) == page.limit else None
    return Page(items=[_summary(hub, works, one) for one in found], next=more)


@router.post("", status_code=status.HTTP_201_CREATED, responses=documented(404, 409))
def submit_task(hub: TheHub, caller: TheCaller, works: TheWorks, new: NewTask, response: Response) -> TaskBody:
    """Propose an experiment to the sites of a collaboration, and run it once enough of them approved.

    It is held against the permit and the agreements now, before each round, and while one is open.
    """
    collaboration = hub.collaborations.get(new.collaboration_id)
    target = Target(collaborations=frozenset([collaboration.id]))
    hub.allow(caller, Operation.VIEW, Resource.COLLABORATION, target)
    hub.allow(caller, Operation.CREATE, Resource.TASK, target)
    hub.allow(caller, Operation.START, Resource.TASK, target)
    manifest = plan_to_start(hub, caller, works, new.plan_digest, collaboration.id)
    processing = _may_start(hub, caller, new.collaboration_id, manifest)
    settings = parse_toml(new.experiment, ExperimentSettings, "experiment.toml")
    check_asked(settings, hub.tasks.envoys(collaboration.id))
    reads = dataset_of(manifest)
    if reads is not None:
        sites = settings.study.sites if settings.study is not None else ()
        check_offered(named(hub.engine, reads, collaboration.organizations), sites)
    hub.reviews.check(collaboration, manifest.digest, caller.user.id)
    _check_no_other_model(hub, caller, manifest)
    document, signer = new.proposal.document(), signer_of(hub, caller)

    def keep(run: m.RunId, connection: Connection) -> None:
        task = Task(run, collaboration.id, caller.user.organization, caller.user.id, processing.id, reads, hub.now())
        hub.tasks.add(connection, task)
        hub.did(
            caller,
            "task submitted",
            target=run,
            collaboration=collaboration.id,
            permit=collaboration.permit.number,
            dataset=reads,
            processing=processing.kind.value,
            agreement=processing.id,
        )()

    with signed_by(works, signer, document):
        reply = works.desk.submit(signer, m.Submission(new.experiment, manifest.to_json(), document), keep)
    if reply.run is None:
        raise MissingBlobsError(sorted(set(reply.missing)))
    response.headers["Location"] = f"/api/v1/tasks/{reply.run}"
    return whole(hub, works, hub.tasks.get(reply.run))


@router.get("/{task_id}", responses=documented(404))
def show_task(hub: TheHub, caller: TheCaller, works: TheWorks, task_id: TaskId) -> TaskBody:
    """One task, with its rounds, and where each site stands."""
    return whole(hub, works, seen_task(hub, caller, task_id))


@router.post("/{task_id}/patches", status_code=status.HTTP_201_CREATED, responses=documented(404, 409))
def steer_task(hub: TheHub, caller: TheCaller, works: TheWorks, task_id: TaskId, patch: DocumentBody) -> TaskBody:
    """Pause, resume, stop, roll back or change a task, as a patch says that the caller signed."""
    task = seen_task(hub, caller, task_id)
    hub.allow(caller, Operation.STEER, Resource.TASK, target_of(task))
    document, signer = patch.document(), signer_of(hub, caller)
    said = patch_of(document.content)
    if said.run != task.run:
        raise NotAuthorizedError(f"the patch is for {said.run}, and was sent to {task.run}")
    with signed_by(works, signer, document):
        works.desk.steer(signer, document)
    return whole(hub, works, task)


@download(router, "/{task_id}/model", responses=documented(404))
def task_model(hub: TheHub, caller: TheCaller, works: TheWorks, task_id: TaskId, request: Request) -> Response:
    """The task's present model (safetensors), for those who may see its models, where its sites were asked for it."""
    task = seen_task(hub, caller, task_id)
    hub.allow(caller, Operation.VIEW, Resource.MODEL, target_of(task))
    record = works.history.run(task.run)
    check_gives_model(record)
    return file_answer(request, works.artifacts, record.model, f"{task.run}.safetensors")


@router.get("/{task_id}/privacy-report", responses=documented(404))
def task_privacy(hub: TheHub, caller: TheCaller, works: TheWorks, task_id: TaskId) -> PrivacyReport:
    """What the task cost in privacy, as far as its sites publish it: the director knows no more."""
    task = seen_task(hub, caller, task_id)
    hub.allow(caller, Operation.VIEW, Resource.REPORT, target_of(task))
    return PrivacyReport(task_id=task.run, **of_run(works.desk.show(task.run)))


def target_of(task: Task) -> Target:
    """Whose a task is."""
    return Target(task.organization, frozenset([task.collaboration]), task.user)


def seen_task(hub: Hub, caller: Caller, task_id: str) -> Task:
    """A task that the caller may see.

    Raises:
        UnknownEntityError: there is none, or it may not.
    """
    task = hub.tasks.get(task_id)
    hub.allow(caller, Operation.VIEW, Resource.TASK, target_of(task))
    return task


def whole(hub: Hub, works: Works, task: Task) -> TaskBody:
    """A task as it is shown."""
    view, record = works.desk.show(task.run), works.history.run(task.run)
    envoys, steering = hub.tasks.envoys(task.collaboration), works.history.steering(task.run)
    proposed = steering.sites(proposal_of(record.proposal.content).sites if record.proposal else ()) or tuple(envoys)
    found = subtasks(
        frozenset(proposed) & envoys.keys(),
        view.approved_by,
        record.expelled.keys(),
        works.history.rounds(task.run),
        is_over=record.state.is_over,
    )
    return TaskBody.whole(
        task,
        view,
        hub.users.get(task.user).name,
        hub.agreements.get(task.processing),
        [SubtaskBody.of(one, envoys.get(one.envoy) or hub.stations.whose(one.envoy)) for one in found],
    )


def _summary(hub: Hub, works: Works, task: Task) -> TaskSummary:
    view = works.desk.show(task.run)
    return TaskSummary.of(task, view, hub.users.get(task.user).name, hub.agreements.get(task.processing))


def _may_start(hub: Hub, caller: Caller, collaboration_id: str, manifest: Manifest) -> Agreement:
    """Which of the two agreements on data applies.

    Raises:
        AgreementError: the organization may start nothing, or not with this dataset.
    """
    organization = hub.organizations.get(caller.user.organization)
    if organization.status is not Status.ACTIVE:
        raise AgreementError(f"organization {organization.name} is {organization.status.value}")
    collaboration = hub.collaborations.get(collaboration_id)
    return check_may_start(
        collaboration,
        hub.agreements.about(collaboration),
        organization.id,
        dataset_of(manifest),
        hub.now(),
        needs_infrastructure_user=hub.needs_infrastructure_user,
    )


def _check_no_other_model(hub: Hub, caller: Caller, manifest: Manifest) -> None:
    """Nobody begins with, and so gets, a model that it may not see, by knowing its SHA-256."""
    given = hub.tasks.models_of({one.sha256 for one in manifest.files})
    for digest, runs in given.items():
        is_seen = hub.models.seen(caller.actor, digest) or any(_may_have(hub, caller, run) for run in runs)
        if not is_seen:
            raise UnknownEntityError(f"there is no blob {digest} that you may use")


def _may_have(hub: Hub, caller: Caller, run: str) -> bool:
    task = hub.tasks.find(run)
    target = Target() if task is None else target_of(task)
    return hub.may(caller, Operation.VIEW, Resource.MODEL, target)
