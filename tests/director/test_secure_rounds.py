"""Secure sums inside rounds: real participants as puppets of the test, the real coordinator, no network between."""

from __future__ import annotations

import json
import os
import threading
import time
import tracemalloc
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedveil.director.active_run import ActiveRun, Outcome
from fedveil.director.coordinator import Coordinator
from fedveil.director.database import open_database
from fedveil.director.experiment_desk import ExperimentDesk
from fedveil.director.history import History
from fedveil.director.identity_store import IdentityStore
from fedveil.director.lines import Line
from fedveil.director.records import RoundRecord, RunRecord, RunState
from fedveil.director.rounds import RoundState
from fedveil.director.sums import Sums
from fedveil.director.uploads import Uploads
from fedveil.gradient_leakage.vae.codec import Codec, codec_bytes, round_seed
from fedveil.gradient_leakage.vae.fitting import seeded
from fedveil.utils import identity
from fedveil.utils import messages as m
from fedveil.utils.artifacts import ArtifactStore
from fedveil.utils.certificates import public_bytes
from fedveil.utils.errors import (
    ConfigError,
    DigestMismatchError,
    FederationError,
    LengthMismatchError,
    NotInvitedError,
    ProtocolError,
    UnsendableUpdateError,
    WrongRoundError,
)
from fedveil.utils.metrics import mean_of
from fedveil.utils.plan_bundle import open_bundle
from fedveil.utils.proposal import Output, Patch, Proposal, Step
from fedveil.utils.roster import Roster, RosterEntry
from fedveil.utils.secure_sum import encoding, participant
from fedveil.utils.secure_sum.fixed_point import FixedPoint
from fedveil.utils.secure_sum.rules import Promises, SumFloors
from fedveil.utils.secure_sum.signed import Kind, signed
from fedveil.utils.secure_sum.spec import rounding_key, spec_of
from fedveil.utils.secure_sum.statements import Unmasking
from fedveil.utils.secure_sum.tallies import MetricShape
from fedveil.utils.signed_document import SignedDocument
from fedveil.utils.tensors import Layout, Role, digest_of, read_model
from fedveil.workspace.plan_builder import build_plan
from fedveil.workspace.secagg_run import read_sums

PLAN = Path(__file__).parents[2] / "workspace" / "benchmarks" / "noop_plan.py"
ELEMENTS = 5_001  # odd: padded
PARTS = 1_000
FEDERATION = "toys"
NAMES = tuple(m.EnvoyName(f"site-{letter}") for letter in "abcdefghijkl")
SETTINGS = """
name = "toy"
plan = "plan"
secure_aggregation = "required"
[rounds]
max_rounds = {rounds}
min_participants = 3
max_attempts = {attempts}
final_evaluation = {evaluates}
[secure_sum]
clip = 1.0
"""
STAGES = ("advert", "shares", "masked", "consent", "unmasking")


@dataclass
class Site:
    """One site that takes part as the protocol says, step by step, when the test wants it."""

    name: m.EnvoyName
    examples: int
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    floors: SumFloors = field(default_factory=SumFloors)
    roster: Roster | None = None
    promises: Promises | None = None
    state: object = None
    task: m.Task | None = None
    said: bytes = b""
    codec: Codec | None = None
    organization: str = ""  # its own, where none is given
    lies: bool = False  # it sends the largest numbers that it may

    def update(self, task: m.Task) -> np.ndarray:
        """What it would send in clear: another one each round and site, the same in each attempt."""
        if self.lies:
            return np.full(ELEMENTS, task.sum.bounds[0], np.float32)
        rng = np.random.default_rng([task.ref.round, NAMES.index(self.name)])
        return rng.normal(0, 0.1, ELEMENTS).astype(np.float32)

    def payload(self, task: m.Task) -> np.ndarray:
        """What stands under the masks."""
        return self.update(task) if self.codec is None else self.round_codec(task).encode(self.update(task))

    def round_codec(self, task: m.Task) -> Codec:
        """With the directions of the round."""
        return self.codec.for_round(round_seed(task.ref, task.model, self.codec.digest))

    def start(self, task: m.Task) -> bytes:
        """An advert."""
        sizes = [entry.size for entry in self.codec.payload_layout.entries] if self.codec else [ELEMENTS]
        spec = spec_of(FEDERATION, task, tuple(sizes))
        site = participant.Site(self.name, self.key.sign, self.roster, self.floors)
        shapes = (MetricShape("loss", mean_of("loss", 1, 1).kind),)
        self.task, known = task, self.promises or Promises(task.ref.run)
        self.state, content = participant.advertise(site, spec, shapes, known, os.urandom)
        self.promises = self.state.promises
        return content

    def answer(self, content: bytes) -> bytes:
        """What follows an item, but for the masked vector."""
        match self.state:
            case participant.Advertised():
                self.state, said = participant.share(self.state, content, self.promises, os.urandom)
            case participant.Masked():
                self.state, said = participant.consent(self.state, content, self.promises)
            case participant.Consented():
                self.state, said = participant.unmask(self.state, content, self.promises)
            case _:
                raise AssertionError(self.state)
        self.promises = self.state.promises
        return said

    def vector(self, content: bytes) -> np.ndarray:
        """The masked vector, once the delivery came."""
        self.state = participant.receive(self.state, content, self.promises)
        self.promises = self.state.promises
        return self.masked()

    def masked(self) -> np.ndarray:
        """The masked vector once more."""
        assert self.task is not None
        payload = self.payload(self.task) if self.task.kind is m.TaskKind.TRAIN else None
        metrics = [mean_of("loss", self.examples / 2, self.examples)]
        parts = participant.stream(self.state, payload, self.examples, metrics, self.task.seed, part_words=PARTS)
        return np.concatenate([part.copy() for part in parts])

    def header(self, vector: np.ndarray) -> m.UpdateHeader:
        """Announces it."""
        assert self.task is not None
        return m.UpdateHeader(
            self.task.ref, self.task.layout, vector.nbytes, 0, (), m.PayloadKind.MASKED, self.task.codec
        )


class Desk:
    """A coordinator over a folder, and sites; started anew on the same folder it is the director after a kill -9."""

    def __init__(self, folder: Path, sites: dict[m.EnvoyName, Site], *, keep: bool = False) -> None:
        self.folder, self.sites = folder, sites
        self.engine = open_database(f"sqlite:///{folder / 'director.sqlite'}", durable=False)
        self.history = History(self.engine)
        self.artifacts = ArtifactStore(folder / "artifacts", durable=False)
        self.uploads = Uploads(folder / "uploads", 4, durable=False)
        self.broke, self.ahead = threading.Event(), 0.0
        roster = Roster(
            FEDERATION,
            tuple(
                RosterEntry(s.name, s.organization or s.name, public_bytes(s.key.public_key())) for s in sites.values()
            ),
        )
        for site in sites.values():
            site.roster = roster
        sums = Sums(folder / "sums", lambda: roster, durable=False, keep=keep)
        self.coordinator = Coordinator(
            self.history,
            self.artifacts,
            self.uploads,
            lambda: frozenset(sites),
            sums=sums,
            now=lambda: time.time() + self.ahead,
            broken=self.broke.set,
        )
        self.lines = {}

    def open(self) -> None:
        """All sites are there, with what they hold."""
        approved = tuple(run.proposal_digest for run in self.history.runs())
        for name in self.sites:  # who approves before a run starts is in its groups
            self.coordinator.beat(name, m.Heartbeat(approved=approved))
        self.coordinator.start()
        for name, site in self.sites.items():
            held = (site.task.ref,) if site.task is not None else ()
            self.lines[name] = self.open_line(name, held)

    def open_line(self, envoy: m.EnvoyName, held: tuple[m.TaskRef, ...] = ()) -> Line:
        """An envoy is there, whose site approved all that was proposed."""
        approved = tuple(run.proposal_digest for run in self.history.runs())
        return self.coordinator.open_line(envoy, held, approved)

    def queue(self, settings: str) -> None:
        """One run, toy-1."""
        build_plan(PLAN, self.folder / "plan", {"elements": ELEMENTS})
        bundle = open_bundle(self.folder / "plan")
        for file in bundle.manifest.files:
            self.artifacts.put([bundle.blob(file.path)])
        plan = self.artifacts.put([bundle.manifest.to_json()])
        initial = bundle.manifest.file("initial.safetensors").sha256
        proposal = Proposal(
            FEDERATION,
            "toy",
            plan,
            "00" * 32,
            "a test",
            "",
            100,
            False,
            "director",
            None,
            m.AskedProtection(),
            (),
            (Output.MODEL,),
            identity.PeerId(FEDERATION, identity.Role.OPERATOR, "alice"),
            0.0,
            4e9,
        )
        self.coordinator.enqueue(
            RunRecord(
                run=m.RunId("toy-1"),
                name="toy",
                state=RunState.QUEUED,
                settings=settings,
                plan=plan,
                layout=bundle.layout.digest,
                seed=bytes(32),
                submitted_at=0.0,
                started_at=None,
                ended_at=None,
                reason="",
                model=initial,
                proposal=SignedDocument(proposal.to_json(), bytes(64), b""),
            )
        )

    def item(self, name: m.EnvoyName, kind: type = m.SumItem) -> m.Task | m.SumItem:
        """The next item of a kind for a site."""
        while not isinstance(item := self.lines[name].next(20), kind):
            assert item is not None, f"no {kind.__name__} came to {name}"
        return item

    def tell(self, site: Site, content: bytes) -> None:
        """Say something for a site."""
        assert site.task is not None
        site.said = content
        self.coordinator.tell_sum(site.name, m.SumStatement(site.task.ref, content))

    def upload(self, site: Site, vector: np.ndarray) -> m.Receipt:
        """Send a masked vector."""
        turn = self.coordinator.request_upload(site.name, site.header(vector))
        raw = vector.tobytes()
        assert isinstance(turn, m.Turn)
        parts = [m.Opening(len(raw), turn.offset, turn.grant), m.Data(raw), m.Closing(digest_of(raw))]
        return self.coordinator.upload(site.name, iter(parts))

    def step(self, stage: str, names: Collection[m.EnvoyName]) -> None:
        """Everybody named takes one step."""
        for name in names:
            site = self.sites[name]
            if stage == "advert":
                task = self.item(name, m.Task)
                assert isinstance(task, m.Task)
                self.tell(site, site.start(task))
            elif stage == "masked":
                vector = site.vector(self.item(name).content)
                digest = self.upload(site, vector).digest
                site.state, said = participant.announce(site.state, digest)
                self.tell(site, said)
            else:
                self.tell(site, site.answer(self.item(name).content))

    def play(self, drops: Mapping[m.EnvoyName, str] = {}, until: str = "", *, is_last: bool = False) -> None:
        """One attempt, in which some drop out in silence before they take a step; it may be the last of it."""
        left = list(self.sites)
        for stage in STAGES:
            if stage == until:
                return
            silent = [name for name in left if drops.get(name) == stage]
            left = [name for name in left if name not in silent]
            self.step(stage, left)
            if silent:
                self.ahead += 601
            if is_last and silent and stage == max(drops.values(), key=STAGES.index):
                return

    def ended(self) -> RunRecord:
        """The run, once it is over."""
        for _ in range(400):
            record = self.history.run(m.RunId("toy-1"))
            if record.state.is_over:
                return record
            self.coordinator.wait_for_change(m.RunId("toy-1"), 0.05)
        raise AssertionError(f"toy-1 is {record.state}")

    def until(self, is_so: Callable[[], bool]) -> None:
        """Wait for something that will be."""
        deadline = time.monotonic() + 60.0
        while not is_so():
            assert time.monotonic() < deadline, "it did not come to pass"
            self.coordinator.wait_for_change(m.RunId("toy-1"), 0.05)  # returns at once when the run is over
            time.sleep(0.001)

    def rounds(self) -> tuple[RoundRecord, ...]:
        """All attempts."""
        return self.history.rounds(m.RunId("toy-1"))

    def model(self, digest: str) -> np.ndarray:
        """A model's vector."""
        layout = open_bundle(self.folder / "plan").layout
        return read_model(layout, self.artifacts.read(digest))[0].copy()

    def close(self) -> None:
        """End this director; what is on disk stays."""
        self.coordinator.close()
        self.engine.dispose()


def made_sites(count: int = 4) -> dict[m.EnvoyName, Site]:
    """Sites of as many organizations."""
    return {name: Site(name, 10 * (nth + 1)) for nth, name in enumerate(NAMES[:count])}


def integer_mean(task: m.Task, sites: Collection[Site], contributors: int) -> np.ndarray:
    """The weighted mean of the quantised updates, by adding integers in clear."""
    assert task.sum is not None
    numbers = FixedPoint((ELEMENTS,), task.sum.bounds, contributors * task.sum.max_weight)
    total, mean = np.zeros(ELEMENTS, np.uint32), np.empty(ELEMENTS, np.float32)
    for site in sites:
        out = np.empty(ELEMENTS, np.uint32)
        key = rounding_key(task.seed, task.ref)
        numbers.encode(site.update(task), 0, site.examples, key, out, np.zeros(1, np.int64))
        total += out
    numbers.decode(total, sum(site.examples for site in sites), mean)
    return mean


@pytest.fixture
def desks(tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    """Makes directors on one folder; the last one is closed."""
    made: list[Desk] = []

    def make(
        sites: dict[m.EnvoyName, Site] | None = None,
        *,
        keep: bool = False,
        settings: str | None = "",
        blobs: Collection[bytes] = (),
        **keys: object,
    ) -> Desk:
        if made:
            made.pop().close()
        desk = Desk(tmp_path, sites or made_sites(), keep=keep)
        for blob in blobs:
            desk.artifacts.put([blob])
        if settings is not None:
            fields = {"rounds": 1, "attempts": 3, "evaluates": "false"} | keys
            desk.queue(settings or SETTINGS.format(**fields))
        desk.open()
        made.append(desk)
        return desk

    yield make
    for desk in made:
        desk.close()


def test_a_secure_round_gives_exactly_the_mean_of_the_quantised_integers(desks):
    desk = desks()
    desk.play()
    assert desk.ended().state is RunState.FINISHED
    sites = desk.sites.values()
    task = next(iter(sites)).task
    mean = integer_mean(task, sites, 4)
    assert np.array_equal(desk.model(desk.ended().model), mean)
    plain = sum(s.examples * s.update(task).astype(float) for s in sites) / sum(s.examples for s in sites)
    step = task.sum.bounds[0] / (1 << 30) * 4 * task.sum.max_weight / 100  # of the fixed point, in the mean's units
    assert np.abs(mean - plain).max() < 4 * step
    (record,) = desk.rounds()
    assert record.num_examples == 100
    assert record.metrics == (mean_of("loss", 50, 100),)
    assert record.sum is not None
    assert record.sum.survivors == NAMES[:4]
    assert (record.sum.cohort, record.sum.threshold, record.sum.total_weight) == (4, 3, 100)
    desk.until(lambda: not list((desk.folder / "sums").iterdir()))


@pytest.mark.parametrize("stage", STAGES)
def test_a_site_that_drops_out_at_any_stage_does_not_stop_the_sum(desks, stage: str):
    desk = desks()
    desk.play({NAMES[1]: stage})
    assert desk.ended().state is RunState.FINISHED
    (record,) = desk.rounds()
    is_in = stage in {"consent", "unmasking"}
    survivors = [site for site in desk.sites.values() if is_in or site.name != NAMES[1]]
    assert record.sum.survivors == tuple(site.name for site in survivors)
    task = desk.sites[NAMES[0]].task
    assert np.array_equal(desk.model(desk.ended().model), integer_mean(task, survivors, 4))


@pytest.mark.parametrize(
    "stages",
    [
        ("shares", "shares", "shares"),
        ("masked", "masked", "masked"),
        ("consent", "consent", "consent"),
        ("unmasking", "unmasking", "unmasking"),
        ("shares", "masked", "unmasking"),
        ("advert", "advert", "advert"),
    ],
)
def test_of_ten_sites_any_three_may_drop_out(desks, stages: tuple[str, ...]):
    desk = desks(made_sites(10))
    drops = dict(zip(NAMES[3:6], stages, strict=True))
    desk.play(drops)
    assert desk.ended().state is RunState.FINISHED
    (record,) = desk.rounds()
    survivors = [s for s in desk.sites.values() if drops.get(s.name, "consent") in {"consent", "unmasking"}]
    assert record.sum.survivors == tuple(site.name for site in survivors)
    assert record.sum.threshold == (5 if "advert" in stages else 7)
    task = desk.sites[NAMES[0]].task
    assert np.array_equal(desk.model(desk.ended().model), integer_mean(task, survivors, 10))


def test_of_ten_sites_four_are_too_many_and_the_next_attempt_sums_the_same_updates(desks):
    desk = desks(made_sites(10))
    drops = dict(zip(NAMES[3:7], ("shares", "shares", "masked", "masked"), strict=True))
    desk.play(drops, is_last=True)
    desk.until(lambda: desk.rounds()[0].round.state is RoundState.FAILED)
    assert "6 of 7 masked updates needed came; without site-f, site-g" in desk.rounds()[0].round.reason
    desk.play()
    assert desk.ended().state is RunState.FINISHED
    task = desk.sites[NAMES[0]].task
    assert np.array_equal(desk.model(desk.ended().model), integer_mean(task, desk.sites.values(), 10))


@pytest.mark.parametrize("stage", STAGES[1:])
def test_with_too_many_drop_outs_the_round_fails_and_its_next_attempt_sums_the_same_updates(desks, stage: str):
    desk = desks()
    desk.play({NAMES[0]: stage, NAMES[1]: stage}, is_last=True)
    desk.until(lambda: desk.rounds()[0].round.state is RoundState.FAILED)
    failed = desk.rounds()[0].round
    assert "2 of 3" in failed.reason
    assert "site-a, site-b" in failed.reason
    desk.play()
    assert desk.ended().state is RunState.FINISHED
    task = desk.sites[NAMES[0]].task
    assert task.ref.attempt == 2
    assert np.array_equal(desk.model(desk.ended().model), integer_mean(task, desk.sites.values(), 4))


@pytest.mark.parametrize("stage", [*STAGES, "opening"])
def test_a_director_that_is_killed_at_any_stage_goes_on_to_the_same_bits(desks, stage: str):
    desk = desks()
    if stage == "opening":
        desk.coordinator._conclude = lambda *_: None  # killed before the sum is opened
        desk.play()
    else:
        desk.play(until=stage)
        if stage != "advert":  # in the middle of the stage
            desk.step(stage, NAMES[:2])
    again = desks(desk.sites, settings=None)
    rest = STAGES[STAGES.index(stage) :] if stage != "opening" else ()
    for later in rest:
        is_first = later == stage and stage != "advert"
        again.step(later, NAMES[2:4] if is_first else NAMES[:4])
    assert again.ended().state is RunState.FINISHED
    assert [one.round.ref.attempt for one in again.rounds()] == [1]
    task = again.sites[NAMES[0]].task
    assert np.array_equal(again.model(again.ended().model), integer_mean(task, again.sites.values(), 4))


def test_a_sum_whose_log_was_damaged_fails_and_the_next_attempt_sums_the_same_updates(desks):
    desk = desks()
    desk.play(until="masked")
    events = desk.folder / "sums" / "toy-1" / "1-1" / "events.jsonl"
    desk.coordinator.close()
    events.write_bytes(events.read_bytes().replace(b'"up"', b'"in"', 1))
    desk.coordinator.close = lambda: None
    again = desks(desk.sites, settings=None)
    failed = again.rounds()[0].round
    assert failed.state is RoundState.FAILED
    assert "is no event of a secure sum" in failed.reason
    again.play()
    assert again.ended().state is RunState.FINISHED
    task = again.sites[NAMES[0]].task
    assert task.ref.attempt == 2
    assert np.array_equal(again.model(again.ended().model), integer_mean(task, again.sites.values(), 4))


def test_what_is_said_twice_counts_once_also_when_the_stage_is_over(desks):
    desk = desks()
    desk.step("advert", NAMES[:4])
    a = desk.sites[NAMES[0]]
    first = a.said
    desk.tell(a, first)
    item = desk.item(a.name)
    desk.tell(a, first)
    desk.tell(a, a.answer(item.content))
    desk.tell(a, a.said)
    desk.step("shares", NAMES[1:4])
    for stage in STAGES[2:]:
        desk.step(stage, NAMES[:4])
    assert desk.ended().state is RunState.FINISHED


def test_an_item_comes_again_on_a_new_line_until_it_is_answered(desks):
    desk = desks()
    desk.step("advert", NAMES[:4])
    a = desk.sites[NAMES[0]]
    item = desk.item(a.name)
    line = desk.open_line(a.name, (a.task.ref,))
    assert line.next(20) == item
    desk.tell(a, a.answer(item.content))
    assert desk.open_line(a.name, (a.task.ref,)).next(0.2) is None


def _wrong_statements(desk: Desk) -> dict[str, tuple[Site, m.SumStatement, type[FederationError]]]:
    """In the stage of the shares."""
    a, b = (desk.sites[name] for name in NAMES[:2])
    ref, content = a.task.ref, a.answer(desk.item(a.name).content)
    stranger = Site(m.EnvoyName("site-z"), 1)
    forged = signed(a.name, Kind.UNMASKING, b"x", b.key.sign)
    return {
        "a stranger's": (stranger, m.SumStatement(ref, content), NotInvitedError),
        "another site's": (b, m.SumStatement(ref, content), ProtocolError),
        "malformed": (a, m.SumStatement(ref, content[:-9]), FederationError),
        "random bytes": (a, m.SumStatement(ref, os.urandom(99)), FederationError),
        "of another round": (a, m.SumStatement(replace(ref, round=2), content), WrongRoundError),
        "of another attempt": (a, m.SumStatement(replace(ref, attempt=2), content), WrongRoundError),
        "of another plan": (a, m.SumStatement(replace(ref, plan="ab" * 32), content), WrongRoundError),
        "of another stage": (a, m.SumStatement(ref, encoding.encode(forged)), ProtocolError),
    }


def test_a_statement_that_does_not_belong_here_is_refused_and_nothing_happens(desks):
    desk = desks()
    desk.step("advert", NAMES[:4])
    said = _wrong_statements(desk)
    for site, statement, error in said.values():
        with pytest.raises(error):
            desk.coordinator.tell_sum(site.name, statement)
    _, shares, _ = said["a stranger's"]  # and what was right is still taken from whom it is
    desk.tell(desk.sites[NAMES[0]], shares.content)
    desk.step("shares", NAMES[1:4])
    for stage in STAGES[2:]:
        desk.step(stage, NAMES[:4])
    assert desk.ended().state is RunState.FINISHED


def test_a_masked_vector_of_another_length_or_kind_is_refused(desks):
    desk = desks()
    for stage in STAGES[:2]:
        desk.step(stage, NAMES[:4])
    a = desk.sites[NAMES[0]]
    vector = a.vector(desk.item(a.name).content)
    for wrong in (vector[:-2], np.concatenate([vector, vector[:2]])):
        with pytest.raises(LengthMismatchError, match="site-a announces"):
            desk.coordinator.request_upload(a.name, a.header(wrong))
    plain = replace(a.header(vector), payload=m.PayloadKind.PLAIN, num_examples=1)
    with pytest.raises(UnsendableUpdateError, match="takes masked ones alone"):
        desk.coordinator.request_upload(a.name, plain)
    with pytest.raises(ProtocolError, match="in clear"):
        desk.coordinator.report(a.name, m.MetricsReport(a.task.ref, ()))
    turn = desk.coordinator.request_upload(a.name, a.header(vector))
    raw = vector.tobytes()
    with pytest.raises(LengthMismatchError):  # truncated in the stream
        desk.coordinator.upload(
            a.name, iter([m.Opening(len(raw), 0, turn.grant), m.Data(raw[:-8]), m.Closing(digest_of(raw[:-8]))])
        )


def test_a_header_that_names_another_vector_than_came_is_refused(desks):
    desk = desks()
    for stage in STAGES[:2]:
        desk.step(stage, NAMES[:4])
    a = desk.sites[NAMES[0]]
    vector = a.vector(desk.item(a.name).content)
    ready, (_, early) = a.state, participant.announce(a.state, digest_of(vector.tobytes()))
    with pytest.raises(DigestMismatchError, match="is not the one that came"):
        desk.tell(a, early)  # nothing came yet
    desk.upload(a, vector)
    with pytest.raises(DigestMismatchError):
        desk.tell(a, participant.announce(ready, digest_of(b"another"))[1])
    desk.tell(a, early)


def test_a_site_that_reveals_a_wrong_share_is_named_and_not_asked_again(desks):
    desk = desks(made_sites(5), rounds=2)
    for stage in STAGES[:4]:
        desk.step(stage, NAMES[:5])
    a = desk.sites[NAMES[0]]
    content = a.answer(desk.item(a.name).content)
    said = encoding.read_unmasking(encoding.decode(content).body)
    wrong = Unmasking(said.transcript, said.consent, (bytes(33), *said.shares[1:]))
    forged = signed(a.name, Kind.UNMASKING, encoding.unmasking_body(wrong), a.key.sign)
    with pytest.raises(FederationError, match="site-a reveals another share"):
        desk.tell(a, encoding.encode(forged))
    desk.step("unmasking", NAMES[1:5])
    for stage in STAGES:
        desk.step(stage, NAMES[1:5])
    assert desk.ended().state is RunState.FINISHED
    assert set(desk.history.run(m.RunId("toy-1")).expelled) == {NAMES[0]}
    first, second = desk.rounds()
    assert NAMES[0] in first.round.cohort
    assert second.round.cohort == frozenset(NAMES[1:5])


def test_a_site_that_declines_in_the_middle_is_not_waited_for(desks):
    desk = desks()
    desk.step("advert", NAMES[:4])
    d = desk.sites[NAMES[3]]
    refusal = m.Refusal(d.task.ref, "SumRefusedError", "a cohort that this site does not accept")
    desk.coordinator.decline(d.name, refusal)
    for stage in STAGES[1:]:
        desk.step(stage, NAMES[:3])
    assert desk.ended().state is RunState.FINISHED
    assert desk.rounds()[0].sum.survivors == NAMES[:3]


def test_a_site_that_several_organizations_accuse_is_not_asked_again_and_one_accuser_is_not_enough(desks):
    desk = desks(made_sites(5), rounds=2)
    for stage in STAGES[:2]:
        desk.step(stage, NAMES[:5])
    accused, ref = NAMES[4], desk.sites[NAMES[0]].task.ref
    reason = f"{accused} dealt {{}} other shares or another pair seed than it committed to"
    desk.coordinator.decline(NAMES[0], m.Refusal(ref, "BadShareError", reason.format(NAMES[0])))
    assert not desk.history.run(m.RunId("toy-1")).expelled
    desk.coordinator.decline(NAMES[1], m.Refusal(ref, "BadShareError", reason.format(NAMES[1])))
    assert set(desk.history.run(m.RunId("toy-1")).expelled) == {accused}
    desk.until(lambda: desk.rounds()[0].round.state is RoundState.FAILED)  # three of five are left, and four are needed
    desk.step("advert", NAMES[:4])
    assert desk.rounds()[1].round.cohort == frozenset(NAMES[:4])


def test_when_too_many_decline_the_round_fails_with_what_they_said(desks):
    desk = desks(attempts=1)
    desk.step("advert", NAMES[:4])
    for name in NAMES[:2]:
        desk.coordinator.decline(name, m.Refusal(desk.sites[name].task.ref, "SumRefusedError", "no"))
    ended = desk.ended()
    assert ended.state is RunState.FAILED
    assert "site-a: SumRefusedError: no" in ended.reason


def test_an_evaluation_is_a_sum_of_tallies_alone(desks):
    desk = desks(evaluates="true")
    desk.play()
    desk.play()
    ended = desk.ended()
    assert ended.state is RunState.FINISHED
    training, evaluation = desk.rounds()
    assert evaluation.round.kind is m.TaskKind.EVALUATE
    assert evaluation.metrics == (mean_of("loss", 50, 100),)
    assert evaluation.sum.bounds == ()
    assert ended.model == training.model_out


def test_codes_are_summed_under_masks_and_decoded_once(desks):
    codec = seeded(Layout.of([("weights", (ELEMENTS,), Role.PARAMETER)]), 50.0)
    sites = made_sites()
    for site in sites.values():
        site.codec = codec
    text = SETTINGS.format(rounds=1, attempts=1, evaluates="false") + f'[codec]\ndigest = "{codec.digest}"\n'
    desk = desks(sites, settings=text, blobs=[codec_bytes(codec)])
    desk.play()
    ended, task = desk.ended(), desk.sites[NAMES[0]].task
    assert ended.state is RunState.FINISHED
    assert (task.payload, task.codec) == (m.PayloadKind.CODED, codec.digest)
    numbers = FixedPoint((codec.size,), task.sum.bounds, 4 * task.sum.max_weight)
    total, mean = np.zeros(codec.size, np.uint32), np.empty(codec.size, np.float32)
    for site in sites.values():
        out, key = np.empty(codec.size, np.uint32), rounding_key(task.seed, task.ref)
        numbers.encode(site.payload(task), 0, site.examples, key, out, np.zeros(1, np.int64))
        total += out
    numbers.decode(total, 100, mean)
    assert np.array_equal(desk.model(ended.model), sites[NAMES[0]].round_codec(task).decode(mean))


def test_clip_bounds_follow_the_sums_and_survive_a_restart(desks):
    settings = SETTINGS.format(rounds=3, attempts=3, evaluates="false").replace("clip = 1.0", "clip = 8.0")
    desk = desks(settings=settings)
    desk.play()  # the largest mean is a fortieth of 8: half
    desk.step("advert", NAMES[:4])
    assert desk.sites[NAMES[0]].task.sum.bounds == (4.0,)
    again = desks(desk.sites, settings=None)
    for stage in STAGES[1:]:
        again.step(stage, NAMES[:4])
    again.play()
    assert again.ended().state is RunState.FINISHED
    assert again.sites[NAMES[0]].task.sum.bounds == (2.0,)
    assert [one.sum.bounds for one in again.rounds()] == [(4.0,), (2.0,), (2.0,)]


def test_where_a_patch_changed_how_sites_train_the_clip_bound_starts_anew_also_after_a_restart(desks):
    settings = SETTINGS.format(rounds=4, attempts=3, evaluates="false").replace("clip = 1.0", "clip = 8.0")
    desk = desks(settings=settings)
    desk.play()
    desk.step("advert", NAMES[:4])  # round 2 is open, and goes by what was before the patch
    record = next(iter(desk.history.runs()))
    who = identity.PeerId(FEDERATION, identity.Role.OPERATOR, "operator")
    patch = Patch(record.run, record.proposal_digest, 1, Step.SET, {"local_epochs": 9}, None, {}, None, "", who, 0.0)
    desk.coordinator.steer(patch, SignedDocument(patch.to_json(), bytes(64), b"x"))
    again = desks(desk.sites, settings=None)
    for stage in STAGES[1:]:
        again.step(stage, NAMES[:4])
    bounds = [again.sites[NAMES[0]].task.sum.bounds]
    again.play()
    bounds.append(again.sites[NAMES[0]].task.sum.bounds)
    again.play()
    assert again.ended().state is RunState.FINISHED
    assert bounds == [(4.0,), (8.0,)]
    assert [one.sum.bounds for one in again.rounds()][:3] == [(4.0,), (2.0,), (4.0,)]


def test_too_narrow_a_bound_clips_and_doubles(desks):
    settings = SETTINGS.format(rounds=2, attempts=3, evaluates="false").replace("clip = 1.0", "clip = 0.27")
    desk = desks(settings=settings)
    desk.play()
    desk.play()
    assert desk.ended().state is RunState.FINISHED
    first = desk.rounds()[0].sum
    assert 0.004 < first.clipped[0] / (4 * ELEMENTS) < 1 / 64  # of normal numbers, beyond 2.7 standard deviations
    assert first.bounds == (0.54,)


def test_where_sums_are_kept_an_auditor_finds_all_that_the_director_saw(desks):
    desk = desks(keep=True)
    desk.play()
    desk.ended()
    folder = desk.folder / "sums" / "toy-1" / "1-1"
    desk.until((folder / "sum.json").exists)
    assert {path.name for path in folder.iterdir()} == {
        "events.jsonl",
        "sum.json",
        *(f"{name}.masked" for name in NAMES[:4]),
    }
    masked = np.frombuffer((folder / "site-a.masked").read_bytes(), np.uint32)
    assert masked.size == ELEMENTS + 1 + 2 * (2 + 1 + 2)  # padding; examples, sites, cuts, a metric and its weight
    summary = json.loads((folder / "sum.json").read_bytes())
    assert (summary["outcome"], summary["survivors"], summary["threshold"]) == ("opened", list(NAMES[:4]), 3)
    events = [json.loads(line) for line in (folder / "events.jsonl").read_bytes().splitlines()]
    went = [(one["way"], one["stage"]) for one in events]
    assert went.count(("up", "shares")) == went.count(("down", "shares")) == 4
    assert [one["envoys"] for one in events if one["way"] == "here"] == [list(NAMES[:4])] * 4


def test_opening_a_sum_takes_no_vector_of_memory_whatever_the_number_of_sites(desks, monkeypatch):
    """Four megabytes each, of five sites: a block, and the step of the server optimizer."""
    monkeypatch.setitem(globals(), "ELEMENTS", 1 << 20)
    monkeypatch.setitem(globals(), "PARTS", 1 << 18)
    desk, peaks = desks(made_sites(5)), []
    desk.play(until="unmasking")
    open_sum = ActiveRun.conclude_sum

    def traced(*arguments: object) -> Outcome:
        tracemalloc.start()
        try:
            outcome = open_sum(*arguments)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        return outcome

    monkeypatch.setattr(ActiveRun, "conclude_sum", traced)
    desk.step("unmasking", NAMES[:5])
    assert desk.ended().state is RunState.FINISHED
    assert peaks[0] < 1 << 20


def test_an_aggregator_that_never_joined_is_refused_when_the_experiment_is_submitted(desks, researcher):
    desk, alice = desks(), researcher(FEDERATION)
    operator = ExperimentDesk(
        FEDERATION,
        desk.history,
        desk.artifacts,
        desk.coordinator,
        IdentityStore(desk.engine),
        alice.root,
        max_model_bytes=1 << 20,
    )
    text = (
        'study.purpose = "a test"\n'
        + SETTINGS.format(rounds=1, attempts=1, evaluates="false")
        + 'aggregator = "envoy:university"\n'
    )
    manifest = open_bundle(desk.folder / "plan").manifest

    def submit(text: str) -> m.SubmitReply:
        signed = alice.sign(alice.proposal(text, manifest))
        return operator.submit(alice.peer, m.Submission(text, manifest.to_json(), signed))

    with pytest.raises(ConfigError, match="no envoy university has joined"):
        submit(text)
    assert submit(text.replace("envoy:university", "director")).run == "toy-2"


def test_a_stopped_run_leaves_no_sum_behind(desks):
    desk = desks()
    desk.step("advert", NAMES[:4])
    desk.coordinator.stop_run(m.RunId("toy-1"), "enough")
    assert desk.ended().state is RunState.STOPPED
    desk.until(lambda: not list((desk.folder / "sums").iterdir()))


# Groups that are summed apart.

GROUPED = """
name = "toy"
plan = "plan"
[rounds]
max_rounds = {rounds}
min_participants = {least}
final_evaluation = {evaluates}
[secure_sum]
clip = 1.0
groups = {groups}
stage_timeout_seconds = 600
[aggregation]
{rule}
"""
MEDIAN = 'method = "coordinate_median"'


def grouped(groups: int = 3, rule: str = MEDIAN, rounds: int = 1, evaluates: str = "false", least: int = 9) -> str:
    """experiment.toml."""
    return GROUPED.format(groups=groups, rule=rule, rounds=rounds, evaluates=evaluates, least=least)


def groups_in(desk: Desk) -> tuple[tuple[m.EnvoyName, ...], ...]:
    """Those of the run, once it has started."""
    desk.until(lambda: bool(desk.rounds()))
    return desk.history.run(m.RunId("toy-1")).groups


def means_of(desk: Desk, groups: Collection[Collection[m.EnvoyName]], out: Collection[m.EnvoyName] = ()) -> np.ndarray:
    """The mean of each group, by adding integers in clear; who is out trained, and is in no sum."""
    means = []
    for group in groups:
        sites = [desk.sites[name] for name in group if name not in out]
        means.append(integer_mean(sites[0].task, sites, len(group)))
    return np.stack(means)


def middle_of(means: np.ndarray, cut: int) -> np.ndarray:
    """The mean of what is left without the ``cut`` least and largest numbers, as the rule adds them up."""
    rows = np.sort(means, axis=0)[cut : len(means) - cut]
    total = np.zeros(means.shape[1], np.float32)
    for row in rows:
        total += row * np.float32(1 / len(rows))
    return total


@pytest.mark.parametrize(
    ("count", "groups", "rule"), [(9, 3, MEDIAN), (12, 4, 'method = "trimmed_mean"\ntrim_fraction = 0.25')]
)
def test_the_rule_is_over_exactly_the_means_of_the_groups_quantised_integers(desks, count, groups, rule):
    desk = desks(made_sites(count), settings=grouped(groups, rule, least=count))
    drawn = groups_in(desk)
    desk.play()
    ended = desk.ended()
    assert ended.state is RunState.FINISHED, ended.reason
    assert [len(group) for group in drawn] == [3] * groups
    assert np.array_equal(desk.model(ended.model), middle_of(means_of(desk, drawn), 1))
    (record,) = desk.rounds()
    assert record.sum.survivors == NAMES[:count]
    assert tuple(one.survivors for one in record.sum.groups) == drawn
    assert [(one.number, one.cohort, one.threshold) for one in record.sum.groups] == [
        (number, 3, 3) for number in range(1, groups + 1)
    ]
    weights = [sum(desk.sites[name].examples for name in group) for group in drawn]
    assert [one.total_weight for one in record.sum.groups] == weights
    assert record.metrics == (mean_of("loss", sum(weights) / 2, sum(weights)),)
    assert len({one.transcript for one in record.sum.groups}) == groups
    desk.until(lambda: not list((desk.folder / "sums").iterdir()))


def test_a_sites_task_names_its_own_group_alone_and_the_group_stays_for_the_run(desks):
    desk = desks(made_sites(9), settings=grouped(rounds=2, evaluates="true"))
    drawn = groups_in(desk)
    for _ in range(3):
        desk.play()
        for number, group in enumerate(drawn, 1):
            tasks = [desk.sites[name].task for name in group]
            assert {(task.cohort, task.sum.group, task.min_participants) for task in tasks} == {(group, number, 3)}
    ended = desk.ended()
    assert ended.state is RunState.FINISHED, ended.reason
    evaluation = desk.rounds()[2]
    assert evaluation.round.kind is m.TaskKind.EVALUATE
    assert evaluation.metrics == (mean_of("loss", 225, 450),)


def test_a_site_that_sends_huge_numbers_spoils_the_mean_of_its_own_group_alone(desks):
    sites = made_sites(9)
    sites[NAMES[4]].lies = True
    desk = desks(sites, settings=grouped())
    drawn = groups_in(desk)
    desk.play()
    model, means = desk.model(desk.ended().model), means_of(desk, drawn)
    spoiled = next(place for place, group in enumerate(drawn) if NAMES[4] in group)
    honest = np.delete(means, spoiled, axis=0)
    assert np.abs(means[spoiled]).max() > 0.15
    assert (model >= honest.min(axis=0)).all()
    assert (model <= honest.max(axis=0)).all()
    assert np.array_equal(model, middle_of(means, 1))
    assert desk.rounds()[0].sum.bounds == (1.0,)  # nor does one group move the clip bound


def test_who_drops_out_of_one_group_is_missed_in_that_group_alone(desks):
    desk = desks(made_sites(12), settings=grouped())
    first, *others = groups_in(desk)
    for stage in STAGES:
        desk.step(stage, [name for group in others for name in group])
    for stage in STAGES[:2]:
        desk.step(stage, first)
    desk.step("masked", first[1:])
    desk.ahead += 601  # the others are ready, and wait
    for stage in STAGES[3:]:
        desk.step(stage, first[1:])
    ended = desk.ended()
    assert ended.state is RunState.FINISHED, ended.reason
    (record,) = desk.rounds()
    assert [one.survivors for one in record.sum.groups] == [first[1:], *others]
    means = means_of(desk, (first, *others), out=first[:1])
    assert np.array_equal(desk.model(ended.model), middle_of(means, 1))


def refuse(desk: Desk, name: m.EnvoyName) -> None:
    """A site says no."""
    desk.coordinator.decline(name, m.Refusal(desk.sites[name].task.ref, "SumRefusedError", "not with these"))


def test_a_group_that_fails_is_left_out_where_three_remain_and_its_sites_are_told(desks):
    desk = desks(made_sites(12), settings=grouped(4))
    first, *others = groups_in(desk)
    desk.step("advert", first)
    refuse(desk, first[0])  # of three, none may drop out
    told = desk.item(first[1], m.Withdrawal).reason
    assert "the sum of its group does not go on" in told
    assert f"needed came; without {first[0]}" in told
    late = desk.sites[first[1]]
    with pytest.raises(WrongRoundError, match=r"group 1 of .* is left out"):
        desk.tell(late, late.said[:-1])
    assert isinstance(desk.open_line(late.name, (late.task.ref,)).next(5), m.Withdrawal)
    for stage in STAGES:
        desk.step(stage, [name for group in others for name in group])
    ended = desk.ended()
    assert ended.state is RunState.FINISHED, ended.reason
    (record,) = desk.rounds()
    assert [one.number for one in record.sum.groups] == [2, 3, 4]
    assert np.array_equal(desk.model(ended.model), middle_of(means_of(desk, others), 1))


def test_with_fewer_than_three_groups_the_round_fails_and_the_next_attempt_sums_the_same_updates(desks):
    desk = desks(made_sites(9), settings=grouped())
    first, *others = groups_in(desk)
    for stage in STAGES[:4]:
        desk.step(stage, [name for group in others for name in group])  # these consented to their sums already
    for stage in STAGES[:2]:
        desk.step(stage, first)
    refuse(desk, first[0])
    desk.until(lambda: desk.rounds()[0].round.state is RoundState.FAILED)
    failed = desk.rounds()[0].round
    assert "the sums of 2 groups are left, and 3 are needed; group 1: 0 of 3 masked updates needed" in failed.reason
    desk.play()
    ended = desk.ended()
    assert ended.state is RunState.FINISHED, ended.reason
    assert desk.sites[NAMES[0]].task.ref.attempt == 2
    assert np.array_equal(desk.model(ended.model), middle_of(means_of(desk, (first, *others)), 1))


def test_a_group_whose_tallies_are_nonsense_is_left_out(desks, monkeypatch):
    desk = desks(made_sites(12), settings=grouped(4))
    drawn = groups_in(desk)
    liar = desk.sites[drawn[1][0]]
    honest = liar.masked

    def spoiled() -> np.ndarray:
        vector = honest()
        vector[ELEMENTS + 1 + 2] += np.uint32(7)  # how many sites are in the sum
        return vector

    monkeypatch.setattr(liar, "masked", spoiled)
    desk.play()
    ended = desk.ended()
    assert ended.state is RunState.FINISHED, ended.reason
    assert [one.number for one in desk.rounds()[0].sum.groups] == [1, 3, 4]
    assert np.array_equal(desk.model(ended.model), middle_of(means_of(desk, [drawn[0], *drawn[2:]]), 1))


@pytest.mark.parametrize("stage", [*STAGES, "opening"])
def test_a_director_that_is_killed_amid_the_groups_goes_on_to_the_same_bits(desks, stage: str):
    """One group is left out, one is done, one is in the middle of a stage, and one has not begun."""
    desk = desks(made_sites(12), settings=grouped(4))
    gone, done, amid, late = drawn = groups_in(desk)
    desk.step("advert", gone)
    refuse(desk, gone[0])
    desk.item(gone[1], m.Withdrawal)
    for one in STAGES:
        desk.step(one, done)
    if stage == "opening":
        desk.coordinator._conclude = lambda *_: None  # killed before the sums are opened
        for one in STAGES:
            desk.step(one, (*amid, *late))
        desk.until(lambda: desk.rounds()[0].round.state is RoundState.AGGREGATING)
    else:
        for one in STAGES[: STAGES.index(stage)]:
            desk.step(one, amid)
        desk.step(stage, amid[:2])
    again = desks(desk.sites, settings=None)
    assert groups_in(again) == drawn
    if stage != "opening":
        again.step(stage, amid[2:])
        for one in STAGES[STAGES.index(stage) + 1 :]:
            again.step(one, amid)
        for one in STAGES:
            again.step(one, late)
    ended = again.ended()
    assert ended.state is RunState.FINISHED, ended.reason
    assert [one.round.ref.attempt for one in again.rounds()] == [1]
    assert [one.number for one in again.rounds()[0].sum.groups] == [2, 3, 4]
    assert np.array_equal(again.model(ended.model), middle_of(means_of(again, (done, amid, late)), 1))


def test_sites_of_one_organization_are_in_one_group(desks):
    sites = made_sites(12)
    for name in NAMES[9:]:
        sites[name].organization = NAMES[0]
    desk = desks(sites, settings=grouped())
    homes = [place for place, group in enumerate(groups_in(desk)) for name in group if name in {NAMES[0], *NAMES[9:12]}]
    assert len(set(homes)) == 1


def test_too_few_organizations_for_the_groups_are_said_when_the_run_starts(desks):
    sites = made_sites(10)
    for name in NAMES[1:4]:
        sites[name].organization = NAMES[0]
    ended = desks(sites, settings=grouped()).ended()
    assert ended.state is RunState.FAILED
    assert "7 organizations have joined, and of 3 groups of them one would have 2 organizations" in ended.reason


def test_where_sums_are_kept_each_group_has_a_folder_of_its_own(desks):
    desk = desks(made_sites(9), settings=grouped(), keep=True)
    drawn = groups_in(desk)
    desk.play()
    desk.ended()
    folder = desk.folder / "sums" / "toy-1"
    desk.until((folder / "1-1-3" / "sum.json").exists)
    for number, group in enumerate(drawn, 1):
        kept = folder / f"1-1-{number}"
        summary = json.loads((kept / "sum.json").read_bytes())
        assert (summary["terms"]["group"], summary["contributors"], tuple(summary["cohort"])) == (number, 3, group)
        assert {path.stem for path in kept.glob("*.masked")} == set(group)
    assert [kept.told["cohort"] for kept in read_sums(folder)] == [list(group) for group in drawn]
