"""What it takes to register a model: rounds, data and agreements are looked up, its card is drawn and signed."""

from __future__ import annotations

from ...utils.errors import AgreementError, ProtocolError
from ...utils.model_card import sign_card
from ...utils.proposal import Output, Proposal, proposal_of
from ..audit import audit_key
from ..hub.agreements import Collaboration, Kind, in_force
from ..hub.hub import Hub
from ..hub.lineage import Lineage, datasets_of, rounds_of
from ..hub.model_cards import Declared, Person, draw_card
from ..hub.models import Model
from ..hub.sign_in import Caller
from ..hub.store import new_id
from ..hub.tasks import Task
from ..records import RunRecord
from .works import Works


def register(
    hub: Hub, works: Works, task: Task, declared: Declared, number: int | None, by: Person, caller: Caller
) -> Model:
    """Keep the model that a round of a task gave.

    Args:
        hub: who takes part.
        works: the director's files and records.
        task: whose model it is; the caller may register it.
        declared: what it is to be called, and what is said of it.
        number: of the round; None: the last.
        by: who registers it.
        caller: the same, for the audit log.

    Raises:
        ProtocolError: the task goes on, or has no model; or its file was discarded.
        UnknownEntityError: the model did not go through that round.
        AgreementError: sites approved that the study gives metrics, and not its model.
        NameTakenError, ConfigError: the name or version cannot be this model's.
        StorageError: nothing was kept.
    """
    run, told = works.history.run(task.run), works.history.rounds(task.run)
    proposal = _given(run)
    rounds = rounds_of(task.run, told, works.history.steering(task.run), number)
    sites = {site for one in rounds for site in one.sites}
    parents, inherited = hub.models.parents(rounds[0].model_in, task.collaboration)
    offered = hub.models.offered(task.dataset, sites) if task.dataset is not None else ()
    used = datasets_of(rounds, offered, hub.models.whose(sites))
    lineage = Lineage(task.run, run.plan, task.dataset, rounds, used, parents)
    fed = (*inherited, *(one.dataset for one in used if one.dataset is not None))
    digest, collaboration = lineage.last.model_out, hub.collaborations.get(task.collaboration)
    with works.artifacts.turn:  # from the look at the file until it is written down that it stays
        if not works.artifacts.has(digest):
            raise ProtocolError(
                f"the model of round {lineage.last.round} of {task.run} is not kept any more (keep_models in"
                " director.toml): register the last round's, or models of earlier rounds while they are there"
            )
        card = draw_card(
            hub.federation,
            declared,
            works.artifacts.size(digest),
            run,
            proposal,
            lineage,
            told,
            works.history.published(task.run),
            collaboration,
            _names(hub, collaboration),
            hub.agreements.get(task.processing),
            in_force(hub.agreements.about(collaboration), Kind.CONSORTIUM, collaboration.id, hub.now()),
            hub.models.withdrawn_among(fed),
            by,
        )
        signed = sign_card(card, audit_key(works.folder))
        made = Model(
            id=new_id(),
            name=declared.name,
            semver=declared.semver,
            digest=digest,
            run=task.run,
            round=lineage.last.round,
            plan=run.plan,
            collaboration=collaboration.id,
            card=signed.card,
            key=signed.key,
            signature=signed.signature,
            organization=task.organization,
            user=task.user,
            is_published=False,
            created_at=hub.now(),
        )
        said = {"name": made.name, "semver": made.semver, "run": made.run, "file": digest, "card": signed.digest}
        hub.models.register(made, run.layout, fed, hub.did(caller, "model registered", target=made.id, **said))
    return made


def _given(run: RunRecord) -> Proposal | None:
    """What sites approved.

    Raises:
        ProtocolError: the run is not over; until then what it has is an intermediate of its own.
        AgreementError: its model is none of what it gives.
    """
    if not run.state.is_over:
        raise ProtocolError(f"{run.run} is {run.state.value}; its model is registered once it is over")
    proposal = proposal_of(run.proposal.content) if run.proposal else None
    if proposal is not None and Output.MODEL not in proposal.outputs:
        raise AgreementError(f"the sites approved that {run.run} gives metrics, and not its model")
    return proposal


def _names(hub: Hub, collaboration: Collaboration) -> dict[str, str]:
    return {one.id: one.name for one in hub.organizations.all(hub.organizations.among(collaboration.organizations))}
