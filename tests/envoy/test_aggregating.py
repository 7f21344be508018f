"""An envoy opens the sums of others only where its own data manager said so, and gives the director the total alone."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from fedveil.envoy.aggregating import Aggregating, AggregatorIdentity
from fedveil.envoy.fetching import Fetcher
from fedveil.envoy.policy import SecureAggregationPolicy
from fedveil.envoy.summing import SumIdentity
from fedveil.utils import messages as m
from fedveil.utils.errors import IdentityError, ProtocolError, StorageError
from fedveil.utils.secure_sum import handover, relayed, summation
from fedveil.utils.secure_sum.case import Case
from fedveil.utils.secure_sum.rehearsal import Contribution, Network, Outcome, Step, cast_of, identity_of, spec_for
from fedveil.utils.secure_sum.sealed_stream import Sealer
from fedveil.utils.secure_sum.terms import Suite, SumTerms
from fedveil.utils.tensors import digest_of

ME = m.EnvoyName("university")
SITES = tuple(map(m.EnvoyName, "abcde"))
SIZE = 300_000
CAST = cast_of((*SITES, ME))
SECONDS = 60.0


@dataclass
class Director:
    """Has what it put there, and hears what is told."""

    has: dict[str, bytes]
    told: list[handover.Handover] = field(default_factory=list)
    refusals: list[Exception] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)  # lines that break after so many bytes
    heard: threading.Condition = field(default_factory=threading.Condition)

    def download(self, request: m.DownloadRequest) -> Iterator[m.Part]:
        content = self.has[request.digest]
        yield m.Opening(len(content), request.offset, digest=request.digest)
        for start in range(request.offset, len(content), 100_000):
            if self.cuts and start > self.cuts[0]:
                self.cuts.pop(0)
                raise StorageError("as busy as a director can be")
            yield m.Data(content[start : start + 100_000])

    def tell_sum(self, statement: m.SumStatement, _: object) -> bytes:
        with self.heard:
            if self.refusals:
                raise self.refusals.pop(0)
            self.told.append(handover.from_bytes(statement.content))
            self.heard.notify_all()
        return b""

    def last(self, kind: type) -> handover.Handover:
        with self.heard:
            assert self.heard.wait_for(lambda: self.told and isinstance(self.told[-1], kind), SECONDS), self.told
            return self.told[-1]


@dataclass
class Log:
    events: list[tuple] = field(default_factory=list)
    director: Director | None = None

    def summed(self, ref, transcript, survivors, total):
        assert self.director is not None
        assert not self.director.told  # before anything leaves
        self.events.append((ref, transcript, tuple(survivors), total))


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    terms = SumTerms(suite=Suite.X25519, bounds=(1.0,), max_weight=1000, aggregator=ME)
    rng = np.random.default_rng(3)
    given = {name: Contribution(rng.normal(0, 0.1, SIZE).astype(np.float32), 20) for name in SITES}
    return Network(CAST, spec_for((SIZE,), len(SITES), terms), given).run()


@pytest.fixture(scope="module")
def handed(outcome: Outcome) -> tuple[Case, dict[str, bytes]]:
    """A case and the sealed vectors, as a director that relays puts them there."""

    def said(step: Step) -> dict[m.EnvoyName, bytes]:
        return {by: content for up, by, content in outcome.upward if up is step}

    opened = outcome.opened
    assert opened is not None
    streams = {}
    for name in SITES:
        raw = outcome.vectors[name].tobytes()
        sealer = Sealer(relayed.vector_binding(opened.cohort, name), relayed.seal_key(CAST.roster, ME), os.urandom)
        streams[name] = b"".join(sealer.stream_of([raw]))
    unmaskings = {
        by: relayed.seal_unmasking(opened.cohort, by, content, CAST.roster)
        for by, content in said(Step.UNMASKING).items()
    }
    case = Case(
        spec=outcome.spec,
        rules=summation.SumRules(),
        adverts=said(Step.ADVERT),
        cohort=opened.cohort.names,
        shares=said(Step.SHARES),
        headers=said(Step.MASKED),
        survivors=opened.survivors,
        audit_head=b"",
        consents=said(Step.CONSENT),
        unmaskings=unmaskings,
        vectors={name: digest_of(stream) for name, stream in streams.items()},
    )
    return case, {digest_of(stream): stream for stream in streams.values()}


class Desk:
    """The aggregator at work, over a director in memory."""

    def __init__(self, folder: Path, case: Case, vectors: dict[str, bytes], **changes: object) -> None:
        raw = case.to_bytes()
        self.director, self.log = Director(vectors | {digest_of(raw): raw}), Log()
        self.log.director = self.director
        self.item = m.SumItem(case.spec.ref, handover.to_bytes(handover.Order(digest_of(raw))))
        key = identity_of(ME)
        site = SumIdentity(CAST.roster.federation, key.sign, changes.get("roster", lambda: CAST.roster))
        policy = changes.get("policy", SecureAggregationPolicy(suites=tuple(Suite), aggregators=("director", ME)))
        identity = AggregatorIdentity(site, relayed.opening_key(key), self.log)
        self.work = Aggregating(
            ME,
            changes.get("identity", identity),
            policy,
            Fetcher(self.director, folder, 1 << 30),
            self.director,
            folder / "work",
        )
        self.folder = folder


@pytest.fixture
def made(tmp_path: Path, handed):
    desks = []

    def make(case: Case | None = None, **changes: object) -> Desk:
        desks.append(Desk(tmp_path, case or handed[0], handed[1], **changes))
        return desks[-1]

    yield make
    for desk in desks:
        desk.work.end()


def total_told(director: Director) -> bytes:
    whole = bytearray()
    for message in director.told:
        if isinstance(message, handover.Part):
            assert message.offset == len(whole)
            whole += message.content
    return bytes(whole)


def test_the_director_gets_the_total_and_a_signature_that_fits(made, outcome):
    desk = made()
    desk.work.take(desk.item)
    finished = desk.director.last(handover.Finished)
    raw = total_told(desk.director)
    assert raw == outcome.total.tobytes()
    assert finished.total == digest_of(raw)
    relayed.check_total(outcome.opened, finished.total, finished.signature, CAST.roster)
    assert desk.log.events == [(outcome.spec.ref, outcome.opened.transcript, SITES, digest_of(raw))]


def test_a_line_that_breaks_while_vectors_come_changes_nothing(made, outcome):
    desk = made()
    desk.director.cuts += [200_000, 700_000, 100_000]
    desk.work.take(desk.item)
    desk.director.last(handover.Finished)
    assert total_told(desk.director) == outcome.total.tobytes()


def test_nothing_of_a_sum_stays_at_the_aggregator(made):
    desk = made()
    desk.work.take(desk.item)
    desk.director.last(handover.Finished)
    assert not [path for path in (desk.folder / "work").iterdir() if path.name.startswith("aggregating")]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"policy": SecureAggregationPolicy()}, "has not put its name among the aggregators"),
        ({"identity": None}, "is no aggregator"),
    ],
)
def test_without_its_data_managers_word_it_opens_nothing_and_says_so(made, changes, why):
    desk = made(**changes)
    desk.work.take(desk.item)
    assert why in desk.director.last(handover.Declined).reason
    assert not desk.log.events


def test_without_a_roster_it_opens_nothing(made):
    def none() -> None:
        raise IdentityError("/srv/university: this site has accepted no roster")

    desk = made(roster=none)
    desk.work.take(desk.item)
    reason = desk.director.last(handover.Declined).reason
    assert "accepted no roster" in reason
    assert "/srv" not in reason


def test_a_case_of_another_task_or_for_another_aggregator_is_declined(made, handed):
    case, _ = handed
    desk = made()
    desk.work.take(replace(desk.item, ref=replace(desk.item.ref, round=2)))
    assert "its case for" in desk.director.last(handover.Declined).reason
    other = replace(case, spec=replace(case.spec, terms=replace(case.spec.terms, aggregator="elsewhere")))
    desk = made(other)
    desk.work.take(desk.item)
    assert "summed by elsewhere" in desk.director.last(handover.Declined).reason


def test_an_order_that_comes_again_while_it_is_at_work_is_done_once(made):
    desk = made()
    for _ in range(5):
        desk.work.take(desk.item)
    assert not desk.work.is_news(desk.item) or desk.director.told
    desk.director.last(handover.Finished)
    assert sum(isinstance(one, handover.Finished) for one in desk.director.told) == 1


def test_a_director_that_lost_its_way_and_asks_again_is_told_once_more(made, outcome):
    desk = made()
    with desk.director.heard:  # it cannot be told anything before this was arranged
        desk.director.refusals.append(ProtocolError("the total is here up to byte 0, and goes on elsewhere"))
        desk.work.take(desk.item)
        desk.work.take(desk.item)
    finished = desk.director.last(handover.Finished)
    assert finished.total == digest_of(outcome.total.tobytes())


def test_it_takes_a_few_orders_at_a_time_and_no_flood(made):
    desk = made()
    items = [replace(desk.item, ref=replace(desk.item.ref, attempt=number)) for number in range(2, 50)]
    with desk.director.heard:  # the first cannot end before all have come
        for item in items:
            desk.work.take(item)
        assert len(desk.work._known) <= 4
