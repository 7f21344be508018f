"""A director that relays counts what it cannot open, hands over what was said, and takes back what was signed."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from fedveil.director.coordinator import Coordinator
from fedveil.director.database import open_database
from fedveil.director.history import History
from fedveil.director.relayed_sum import Handover, RelayedSum
from fedveil.director.rounds import Round, RoundState
from fedveil.director.spool import HEADER_BYTES
from fedveil.director.sum_log import SumLog
from fedveil.director.sum_progress import SumPolicy
from fedveil.director.uploads import Uploads
from fedveil.utils.artifacts import ArtifactStore
from fedveil.utils.errors import (
    DigestMismatchError,
    DuplicateUpdateError,
    LengthMismatchError,
    MalformedMessageError,
    NotInvitedError,
    ProtocolError,
    SumAbortedError,
    SumRefusedError,
    UnsendableUpdateError,
)
from fedveil.utils.messages import EnvoyName, PayloadKind, SumItem, SumStatement, TaskKind, UpdateHeader
from fedveil.utils.secure_sum import handover, relayed, summation
from fedveil.utils.secure_sum.case import Case, tried
from fedveil.utils.secure_sum.rehearsal import Contribution, Network, Outcome, Step, cast_of, identity_of, spec_for
from fedveil.utils.secure_sum.sealed_stream import Sealer
from fedveil.utils.secure_sum.terms import Suite, SumTerms
from fedveil.utils.tensors import digest_of

AGGREGATOR = EnvoyName("university")
SITES = tuple(map(EnvoyName, "abcde"))
SIZE = 400_000  # a total of two parts
CAST = cast_of((*SITES, AGGREGATOR))
STEPS = (Step.ADVERT, Step.SHARES, Step.MASKED, Step.CONSENT)
POLICY = SumPolicy(quorum=3, timeout_seconds=60.0, stage_timeout_seconds=30.0)


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    """What sites say in such a sum; their shares in clear, as they are before they are sealed."""
    terms = SumTerms(suite=Suite.X25519, bounds=(1.0,), max_weight=1000, aggregator=AGGREGATOR)
    rng = np.random.default_rng(3)
    given = {name: Contribution(rng.normal(0, 0.1, SIZE).astype(np.float32), 20) for name in SITES}
    return Network(CAST, spec_for((SIZE,), len(SITES), terms), given).run()


@dataclass
class Desk:
    """One attempt at the director."""

    folder: Path
    outcome: Outcome
    artifacts: ArtifactStore
    uploads: Uploads
    sum: RelayedSum

    def said(self, step: Step) -> dict[EnvoyName, bytes]:
        return {by: content for up, by, content in self.outcome.upward if up is step}

    def sealed(self, name: EnvoyName) -> bytes:
        return relayed.seal_unmasking(self.outcome.opened.cohort, name, self.said(Step.UNMASKING)[name], CAST.roster)

    def goes_to(self, last: Step) -> None:
        """Everybody says everything up to a step."""
        arrived = {name: digest_of(name.encode()) for name in SITES}  # sealed: not what was announced
        for step in STEPS[: STEPS.index(last) + 1]:
            for name, content in self.said(step).items():
                self.sum.take(name, content, arrived, 0.0)
            assert self.sum.advance(SITES, (), 0.0).keys() == set(SITES)

    def given(self) -> Handover:
        """Enough revealed their shares; sealed vectors lie on disk."""
        self.goes_to(Step.CONSENT)
        for name in SITES:
            self.sum.take(name, self.sealed(name), {}, 0.0)
        for name in SITES:
            raw = self.outcome.vectors[name].tobytes()
            binding = relayed.vector_binding(self.outcome.opened.cohort, name)
            sealer = Sealer(binding, relayed.seal_key(CAST.roster, AGGREGATOR), os.urandom)
            stream = b"".join(sealer.stream(lambda start, end, raw=raw: raw[start:end]))
            self.uploads.path(name).write_bytes(bytes(HEADER_BYTES) + stream + b"of a longer one before")
        return Handover(self.sum, self.artifacts, self.uploads)

    def total(self, given: Handover) -> np.ndarray:
        """As the aggregator opens it."""
        order = handover.from_bytes(given.order.content)
        case = Case.from_bytes(self.artifacts.read(order.case))
        key = relayed.opening_key(identity_of(AGGREGATOR))
        held = tried(case, AGGREGATOR, CAST.roster, key)
        assert not held.spoilt
        return relayed.open_total(
            held.opened, held.announced, lambda name: [self.artifacts.read(case.vectors[name])], key
        )

    def finished(self, raw: bytes, by: str = AGGREGATOR) -> bytes:
        signature = relayed.sign_total(self.sum.open(), digest_of(raw), identity_of(by).sign)
        return handover.to_bytes(handover.Finished(digest_of(raw), signature))


def opened(folder: Path, outcome: Outcome) -> RelayedSum:
    log = SumLog(folder / "sums", outcome.spec.ref, durable=False, keep=False)
    return RelayedSum(summation.begin(outcome.spec, CAST.roster), POLICY, log, None, 0.0)


@pytest.fixture
def desk(tmp_path: Path, outcome: Outcome) -> Desk:
    artifacts = ArtifactStore(tmp_path / "artifacts", durable=False)
    uploads = Uploads(tmp_path / "uploads", 2, durable=False)
    return Desk(tmp_path, outcome, artifacts, uploads, opened(tmp_path, outcome))


def parts(raw: bytes) -> list[bytes]:
    size = handover.PART_BYTES
    return [handover.to_bytes(handover.Part(at, raw[at : at + size])) for at in range(0, len(raw), size)]


def test_what_the_aggregator_gives_back_is_the_sum_itself(desk, outcome):
    given = desk.given()
    raw = desk.total(given).tobytes()
    assert len(parts(raw)) == 2
    for content in parts(raw):
        given.take(content)
    assert not given.is_over
    given.take(desk.finished(raw))
    assert given.is_over
    assert np.array_equal(given.total(), outcome.total)


def test_parts_that_come_again_count_once_and_one_that_does_not_follow_is_refused(desk):
    given = desk.given()
    raw = desk.total(given).tobytes()
    first, second = parts(raw)
    with pytest.raises(ProtocolError, match="not from 0"):
        given.take(second)
    for content in (first, first, second, first):
        given.take(content)
    given.take(desk.finished(raw))
    assert given.total().tobytes() == raw


def test_a_total_of_another_length_is_refused(desk):
    given = desk.given()
    raw = desk.total(given).tobytes()
    given.take(parts(raw)[0])
    with pytest.raises(LengthMismatchError, match="came"):
        given.take(desk.finished(raw))
    with pytest.raises(LengthMismatchError, match="at least 2097152 came"):
        given.take(handover.to_bytes(handover.Part(1 << 20, bytes(1 << 20))))


def test_a_total_that_is_not_the_one_signed_or_signed_by_another_is_no_total(desk):
    given = desk.given()
    raw = desk.total(given).tobytes()
    other = bytes([raw[0] ^ 1]) + raw[1:]
    for content in parts(other):
        given.take(content)
    with pytest.raises(DigestMismatchError):
        given.take(desk.finished(raw))
    for content in parts(raw):  # it may tell it once more
        given.take(content)
    with pytest.raises(SumRefusedError, match="not signed by university"):
        given.take(desk.finished(raw, by="a"))
    assert not given.is_over
    with pytest.raises(SumAbortedError, match="in time"):
        given.total()


def test_an_aggregator_that_declines_ends_the_waiting_with_its_reason(desk):
    given = desk.given()
    given.take(handover.to_bytes(handover.Declined("ConfigError: no aggregator here")))
    assert given.is_over
    with pytest.raises(SumAbortedError, match="no aggregator here"):
        given.total()


def test_only_the_aggregators_own_word_is_about_the_total(desk):
    given = desk.given()
    assert given.is_for(AGGREGATOR, parts(b"x")[0])
    assert not given.is_for(EnvoyName("a"), parts(b"x")[0])
    assert not given.is_for(AGGREGATOR, desk.sealed(EnvoyName("a")))
    with pytest.raises(MalformedMessageError, match="gives an order"):
        given.take(given.order.content)


def test_nothing_of_it_stays_among_the_artifacts(desk):
    given = desk.given()
    assert len(list((desk.folder / "artifacts").iterdir())) == len(SITES) + 1
    given.close()
    assert all(path.name.startswith(".") for path in (desk.folder / "artifacts").iterdir())


def test_a_sealed_vector_that_is_gone_is_said_to_be(desk):
    desk.given().close()
    desk.uploads.path(EnvoyName("b")).write_bytes(bytes(100))
    with pytest.raises(UnsendableUpdateError, match="what b had sent"):
        Handover(desk.sum, desk.artifacts, desk.uploads)


def test_what_is_handed_over_is_there_for_the_aggregator_alone(desk):
    given = desk.given()
    case = handover.from_bytes(given.order.content).case
    vectors = Case.from_bytes(desk.artifacts.read(case)).vectors.values()
    assert all(given.hands(AGGREGATOR, digest) for digest in (case, *vectors))
    others = set(SITES) - {AGGREGATOR}
    assert others
    assert not any(given.hands(site, digest) for site in others for digest in (case, *vectors))
    assert not given.hands(AGGREGATOR, digest_of(b"something else"))


def test_a_director_that_was_killed_hands_over_the_very_same(desk, outcome):
    given = desk.given()
    again = opened(desk.folder, outcome)
    assert again.is_ready
    assert Handover(again, desk.artifacts, desk.uploads).order == given.order


def test_the_announced_length_is_that_of_the_sealed_stream(desk, outcome):
    for step in STEPS[:2]:
        for name, content in desk.said(step).items():
            desk.sum.take(name, content, {}, 0.0)
        desk.sum.advance(SITES, (), 0.0)
    sealed = relayed.vector_binding(outcome.opened.cohort, EnvoyName("a")).sealed_length

    def header(length: int) -> UpdateHeader:
        return UpdateHeader(outcome.spec.ref, outcome.spec.layout, length, 0, (), PayloadKind.MASKED, None)

    desk.sum.check_header(EnvoyName("a"), header(sealed))
    with pytest.raises(LengthMismatchError):
        desk.sum.check_header(EnvoyName("a"), header(outcome.opened.words * 4))


def test_a_vector_that_is_announced_and_did_not_come_is_not_in_the_sum(desk):
    for step in STEPS[:2]:
        for name, content in desk.said(step).items():
            desk.sum.take(name, content, {}, 0.0)
        desk.sum.advance(SITES, (), 0.0)
    with pytest.raises(DigestMismatchError):
        desk.sum.take(EnvoyName("a"), desk.said(Step.MASKED)[EnvoyName("a")], {}, 0.0)


def test_shares_come_sealed_once_and_from_those_who_are_in_the_sum(desk):
    desk.goes_to(Step.CONSENT)
    a = EnvoyName("a")
    box = desk.sealed(a)
    desk.sum.take(a, box, {}, 0.0)
    desk.sum.take(a, box, {}, 0.0)
    with pytest.raises(DuplicateUpdateError):
        desk.sum.take(a, desk.sealed(a), {}, 0.0)
    with pytest.raises(NotInvitedError):
        desk.sum.take(AGGREGATOR, box, {}, 0.0)
    with pytest.raises(MalformedMessageError):
        desk.sum.take(EnvoyName("b"), relayed.SEALED + bytes(2 << 20), {}, 0.0)
    assert not desk.sum.is_ready


@dataclass
class Shell:
    """A coordinator whose round waits for the aggregator's total."""

    coordinator: Coordinator
    round: Round
    answer: Future

    def tell(self, name: EnvoyName, content: bytes) -> None:
        self.coordinator.tell_sum(name, SumStatement(self.round.ref, content))


@pytest.fixture
def shell(desk, tmp_path: Path):
    """Asked, and not answered yet; ended after the test."""
    desk.given().close()
    engine = open_database(f"sqlite:///{tmp_path / 'director.sqlite'}", durable=False)
    coordinator = Coordinator(History(engine), desk.artifacts, desk.uploads, lambda: frozenset(SITES))
    this = Round(desk.outcome.spec.ref, TaskKind.TRAIN, 0.0, RoundState.AGGREGATING, frozenset(SITES))
    coordinator._round = this
    line = coordinator.open_line(AGGREGATOR, ())
    with ThreadPoolExecutor(1) as pool:
        conclusion, is_void = coordinator._conclusion, lambda: coordinator._ends or coordinator._round is not this
        answer = pool.submit(conclusion.summed_elsewhere, coordinator._sum, desk.sum, is_void)
        item = line.next(20.0)
        assert isinstance(item, SumItem)
        assert handover.is_handover(item.content)
        yield Shell(coordinator, this, answer)
        with coordinator._lock:
            coordinator._ends = True
            coordinator._lock.notify_all()
    engine.dispose()


def test_the_round_waits_for_the_total_and_no_longer(shell, desk, outcome):
    raw = outcome.total.tobytes()
    for content in (*parts(raw), desk.finished(raw)):
        shell.tell(AGGREGATOR, content)
    assert np.array_equal(shell.answer.result(20.0), outcome.total)
    assert not [path for path in (desk.folder / "artifacts").iterdir() if not path.name.startswith(".")]


def test_an_aggregator_that_comes_back_finds_its_order_again(shell):
    line = shell.coordinator.open_line(AGGREGATOR, ())
    assert isinstance(line.next(20.0), SumItem)
    assert shell.coordinator.open_line(EnvoyName("a"), ()).next(0.0) is None


def test_nobody_else_gives_a_total(shell, outcome):
    with pytest.raises(ProtocolError):
        shell.tell(EnvoyName("a"), parts(outcome.total.tobytes())[0])
    assert not shell.answer.done()


def test_a_round_that_is_ended_meanwhile_waits_for_nothing(shell):
    with shell.coordinator._lock:
        shell.coordinator._round = None
        shell.coordinator._lock.notify_all()
    assert shell.answer.result(20.0) is None


def test_a_director_that_ends_leaves_the_total_to_its_next_start(shell):
    with shell.coordinator._lock:
        shell.coordinator._ends = True
        shell.coordinator._lock.notify_all()
    assert shell.answer.result(20.0) is None


@pytest.mark.parametrize(("last", "limit"), [(Step.SHARES, 60.0), (Step.MASKED, 30.0)])
def test_nothing_binding_is_asked_of_sites_while_the_aggregator_is_away(desk, last, limit):
    desk.goes_to(last)
    desk.sum.is_aggregator_there = False
    following = STEPS[STEPS.index(last) + 1]
    for name, content in desk.said(following).items():
        desk.sum.take(name, content, {name: digest_of(b"sealed") for name in SITES}, 0.0)
    assert not desk.sum.advance(SITES, (), limit - 1)
    with pytest.raises(SumAbortedError, match="not connected; nothing was revealed"):
        desk.sum.advance(SITES, (), limit + 1)
    desk.sum.is_aggregator_there = True
    assert desk.sum.advance(SITES, (), limit - 1).keys() == set(SITES)


def test_too_few_sealed_shares_end_the_attempt_in_time(desk):
    desk.goes_to(Step.CONSENT)
    desk.sum.take(EnvoyName("a"), desk.sealed(EnvoyName("a")), {}, 0.0)
    assert not desk.sum.advance(SITES, (), 29.0)
    with pytest.raises(SumAbortedError, match="1 of 4 shares of the masks"):
        desk.sum.advance(SITES, (), 31.0)
