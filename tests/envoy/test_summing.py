"""A real envoy in secure sums with three others, under a director that is right, breaks off, or lies."""

import os
import queue
import threading
import time
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedveil.envoy.config import EnvoyConfig, TrainingSettings, Work
from fedveil.envoy.orders import WorkResult
from fedveil.envoy.policy import OPEN_POLICY, PLAIN_ALLOWED, ProtectionPolicy, SecureAggregationPolicy, Step
from fedveil.envoy.session import Session
from fedveil.envoy.summing import SumIdentity
from fedveil.utils import messages as m
from fedveil.utils.certificates import public_bytes
from fedveil.utils.errors import (
    IdentityError,
    MalformedMessageError,
    SumRefusedError,
    UnreachableError,
    WrongRoundError,
)
from fedveil.utils.metrics import mean_of
from fedveil.utils.plan_bundle import open_bundle
from fedveil.utils.roster import Roster, RosterEntry
from fedveil.utils.secure_sum import encoding, opened, participant, relayed, summation
from fedveil.utils.secure_sum.cohort import fixed_point
from fedveil.utils.secure_sum.participant import Site as Puppet
from fedveil.utils.secure_sum.rules import Promises, SumFloors
from fedveil.utils.secure_sum.sealed_stream import open_stream
from fedveil.utils.secure_sum.spec import spec_of
from fedveil.utils.secure_sum.statements import CohortCall, ConsentSet, SurvivorsCall
from fedveil.utils.secure_sum.tallies import MetricShape
from fedveil.utils.secure_sum.terms import NoiseTerms, Suite, SumTerms
from fedveil.utils.tensors import digest_of
from fedveil.workspace.own_plans import OwnPlans
from fedveil.workspace.plan_builder import build_plan

SECONDS = 60.0
NAMES = ("site-a", "site-b", "site-c", "site-d")
OTHERS = NAMES[1:]
SIZE = 1001  # an odd number, so that the body is padded
TOY = """
import numpy as np
from fedveil import ArrayPlan, DataKind, DataSpec, mean_of

class Toy(ArrayPlan):
    data = DataSpec("none", DataKind.NONE)

    def initial(self):
        return {"w": np.zeros(1001, np.float32)}

    def train(self, weights, data, rng):
        return {"w": weights["w"] + 1}, 5

    def evaluate(self, weights, data):
        yield mean_of("mean", weights["w"].mean(), 1)
"""
UPDATE = np.linspace(-1, 1, SIZE, dtype=np.float32)
LOSS = mean_of("loss", 1.5, 3)
TERMS = SumTerms(bounds=(2.0,), max_weight=100)


class Director:
    """The way of one envoy to a director in memory."""

    def __init__(self, bundle):
        self.has = {bundle.digest: bundle.manifest.to_json()}
        self.has |= {file.sha256: bundle.blob(file.path) for file in bundle.manifest.files}
        self.items = queue.SimpleQueue()
        self.told = queue.SimpleQueue()
        self.statements, self.headers, self.refusals, self.uploads = [], [], [], {}
        self.failures, self.cuts, self.replies = {}, [], {}
        self.spool, self.polls = b"", 0
        self._closed = threading.Event()

    def fail(self, method, *errors):
        self.failures.setdefault(method, []).extend(errors)

    def _answers(self, method):
        if self._closed.is_set():
            raise UnreachableError("the line is down")
        if self.failures.get(method):
            raise self.failures[method].pop(0)

    def work(self, held, approved=()):
        self._answers("work")
        yield m.Idle()
        while (item := self.items.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    def next_work(self, held, wait_seconds, approved=()):
        self._answers("work")
        self.polls += 1
        try:
            self.latest = self.items.get(timeout=0.01)
        except queue.Empty:
            return getattr(self, "latest", m.Idle())  # a poll is answered with what is known already
        return m.Idle() if self.latest is None else self.latest

    def download(self, request):
        content = self.has[request.digest]
        yield m.Opening(len(content), request.offset, digest=request.digest)
        yield m.Data(content[request.offset :])

    def request_upload(self, header):
        self._answers("request_upload")
        self.headers.append(header)
        if header.ref in self.uploads:
            return m.Receipt(header.ref, digest_of(self.uploads[header.ref]), header.length)
        return m.Turn(header.ref, "0" * 32, len(self.spool), 1024)

    def upload(self, parts):
        self._answers("upload")
        opening = next(iter(parts))
        assert opening.offset == len(self.spool)
        for part in parts:
            if isinstance(part, m.Closing):
                whole, self.spool = self.spool, b""
                assert len(whole) == opening.length
                assert digest_of(whole) == part.digest
                self.uploads[self.headers[-1].ref] = whole
                self._answers("after_upload")
                return m.Receipt(self.headers[-1].ref, part.digest, len(whole))
            content = bytes(part.content)
            if self.cuts and len(self.spool) + len(content) > self.cuts[0]:
                self.spool += content[: self.cuts.pop(0) - len(self.spool)]
                raise UnreachableError("the line broke")
            self.spool += content
        raise AssertionError("an upload without a closing")

    def tell_sum(self, statement):
        self._answers("tell_sum")
        self.statements.append(statement.content)
        self.told.put(statement.content)
        self._answers("after_tell")
        return m.SumReply(b"")

    def report(self, report):
        raise AssertionError("metrics in the clear")

    def decline(self, refusal):
        self.refusals.append(refusal)

    def beat(self, heartbeat):
        pass

    def close(self):
        self._closed.set()
        self.items.put(None)


@dataclass
class Trainer:
    """Gives one update, and counts."""

    update: np.ndarray = field(default_factory=UPDATE.copy)
    num_examples: int = 5
    metrics: tuple = (LOSS,)
    orders: list = field(default_factory=list)

    def run(self, order, timeout_seconds, cancelled):
        self.orders.append(order)
        if order.kind is m.TaskKind.TRAIN:
            order.update_path.write_bytes(self.update.tobytes())
            return WorkResult(self.num_examples, self.metrics)
        return WorkResult(0, self.metrics)

    def warm_up(self):
        pass

    def close(self):
        pass


class Site:
    """The real envoy, in its folder."""

    def __init__(self, folder, bundle, keys, roster):
        self.folder, self.bundle, self.keys, self.roster = folder, bundle, keys, roster
        self.director, self.trainer = Director(bundle), Trainer()
        self.config = EnvoyConfig(training=TrainingSettings(preload_torch=False), protection=OPEN_POLICY)
        self.audit, self.accepted, self.gatekeeper = None, lambda: self.roster, None
        folder.mkdir(exist_ok=True)
        self._thread = None

    def start(self):
        identity = SumIdentity("toys", self.keys["site-a"].sign, self.accepted, self.audit)
        self.session = Session(
            "site-a",
            self.folder,
            self.director,
            self.trainer,
            self.config,
            self.gatekeeper,
            identity,
            approvals=OwnPlans(self.bundle.digest),
        )
        self._thread = threading.Thread(target=self.session.run, daemon=True)
        self._thread.start()

    def end(self):
        if self._thread is not None:
            self.session.end()
            self._thread.join(SECONDS)
            assert not self._thread.is_alive()
            self._thread = None

    def restart(self):
        """Another process, as it were; the director is the same."""
        self.end()
        before, self.director = self.director, Director(self.bundle)
        self.director.uploads = before.uploads
        self.start()

    def task(self, number=1, attempt=1, **changes):
        fields = {
            "ref": m.TaskRef("lungs-1", number, attempt, self.bundle.digest),
            "kind": m.TaskKind.TRAIN,
            "model": self.bundle.manifest.file("initial.safetensors").sha256,
            "model_bytes": self.bundle.manifest.file("initial.safetensors").size,
            "layout": self.bundle.layout.digest,
            "seed": bytes(32),
            "seconds_left": 60.0,
            "min_participants": 3,
            "cohort": NAMES,
            "sum": TERMS,
        }
        return m.Task(**(fields | changes))

    def give(self, item):
        self.director.items.put(item)

    def refusal(self):
        until(lambda: self.director.refusals)
        return self.director.refusals[-1]

    def rest(self):
        """Until nothing is done here any more."""
        until(lambda: not self.session._held())


class Round:
    """One attempt: the aggregator, three puppets, and the site. Each step may alter what the site is told."""

    def __init__(self, site, task, puppets=None):
        self.site, self.task, self.ref = site, task, task.ref
        self.spec = spec_of("toys", task, (SIZE,))
        self.puppets = puppets or {
            name: Puppet(name, site.keys[name].sign, site.roster, SumFloors()) for name in OTHERS
        }
        self.promises = {name: Promises(task.ref.run) for name in OTHERS}
        self.vectors = {
            name: np.random.default_rng(i).uniform(-1, 1, SIZE).astype(np.float32) for i, name in enumerate(OTHERS)
        }
        self.state = summation.begin(self.spec, site.roster)
        self.states, self.masked, self.total = {}, {}, None
        self.secrets = {name: bytes([i + 1]) * 32 for i, name in enumerate(OTHERS)}  # of the noise

    def say(self, content):
        self.site.give(m.SumItem(self.ref, content))

    def hear(self):
        """The site's next statement."""
        content = self.site.director.told.get(timeout=SECONDS)
        self.state = summation.take(self.state, "site-a", content)
        return content

    def advertise(self):
        self.site.give(self.task)
        heard = self.hear()
        offered = () if self.spec.terms.equal_weights else (MetricShape("loss", LOSS.kind),)
        for name, puppet in self.puppets.items():
            self.states[name], said = participant.advertise(puppet, self.spec, offered, self.promises[name], os.urandom)
            self.state = summation.take(self.state, name, said)
        return heard

    def close(self, alter=lambda content: content):
        self.state, items = summation.close_cohort(self.state)
        for name in self.puppets:
            self.states[name], said = participant.share(self.states[name], items[name], self.promises[name], os.urandom)
            self.promises[name] = self.states[name].promises
            self.state = summation.take(self.state, name, said)
        self.say(alter(items["site-a"]))

    def deliver(self, alter=lambda content: content):
        self.hear()
        self.state, items = summation.deliver(self.state)
        for name in self.puppets:
            ready = participant.receive(self.states[name], items[name], self.promises[name])
            self.promises[name] = ready.promises
            said = (self._vector(name), 10, (LOSS,), self.task.seed)
            secret = self.secrets.get(name)
            words = np.concatenate([part.copy() for part in participant.stream(ready, *said, noise_secret=secret)])
            self.masked[name] = words
            self.states[name], said = participant.announce(ready, digest_of(words.tobytes()))
            self.state = summation.take(self.state, name, said)
        self.say(alter(items["site-a"]))

    def _vector(self, name):
        return self.vectors[name] if self.task.kind is m.TaskKind.TRAIN else None

    def call(self, survivors=NAMES, alter=lambda content: content):
        self.hear()
        self.masked["site-a"] = np.frombuffer(self.site.director.uploads[self.ref], "<u4")
        self.state, items = summation.call_survivors(self.state, survivors)
        for name in set(self.puppets) & set(survivors):
            self.states[name], said = participant.consent(self.states[name], items[name], self.promises[name])
            self.promises[name] = self.states[name].promises
            self.state = summation.take(self.state, name, said)
        self.say(alter(items["site-a"]))

    def reveal(self, alter=lambda content: content):
        self.hear()
        self.state, items = summation.reveal(self.state)
        for name in set(self.puppets) & set(self.state.survivors):
            self.states[name], said = participant.unmask(self.states[name], items[name], self.promises[name])
            self.state = summation.take(self.state, name, said)
        self.say(alter(items["site-a"]))

    def open(self):
        """The mean and the tallies of the sum."""
        self.hear()
        done = summation.open_sum(self.state)
        total = np.zeros(done.words, np.uint32)
        for name in done.survivors:
            opened.add_vector(done.cohort, total, self.masked[name])
        opened.unmask_total(done, total)
        self.total = total.copy()
        tallies = opened.tallies(done, total)
        mean = np.empty(fixed_point(self.spec).size, np.float32)
        if mean.size:
            opened.decode(done, total[: mean.size], tallies.num_examples, mean)
        return mean, tallies

    def whole(self):
        for step in (self.advertise, self.close, self.deliver, self.call, self.reveal):
            step()
        return self.open()

    def expected(self, own=5):
        weights = {"site-a": own} | dict.fromkeys(OTHERS, 10)
        total = sum(weights[n] * v.astype(np.float64) for n, v in ({"site-a": UPDATE} | self.vectors).items())
        return total / sum(weights.values())


def until(is_so):
    deadline, pause = time.monotonic() + SECONDS, threading.Event()
    while not is_so():
        assert time.monotonic() < deadline
        pause.wait(0.005)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr("fedveil.envoy.patience._FIRST_SECONDS", 0.001)
    monkeypatch.setattr("fedveil.envoy.patience._MOST_SECONDS", 0.01)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    (folder / "toy.py").write_text(TOY)
    build_plan(folder / "toy.py", folder / "bundle")
    return open_bundle(folder / "bundle")


@pytest.fixture(scope="module")
def keys():
    return {name: Ed25519PrivateKey.generate() for name in NAMES}


@pytest.fixture(scope="module")
def roster(keys):
    return roster_of(keys)


def roster_of(keys, organization=lambda name: name.title()):
    entries = [RosterEntry(n, organization(n), public_bytes(k.public_key())) for n, k in keys.items()]
    return Roster("toys", tuple(entries))


@pytest.fixture
def site(tmp_path, bundle, keys, roster):
    made = Site(tmp_path / "site", bundle, keys, roster)
    yield made
    made.end()


# a sum from its task to its end


@pytest.mark.parametrize("work", Work)
def test_a_site_trains_and_is_in_the_sum_and_nothing_of_it_is_said_in_the_clear(site, work):
    site.config = replace(site.config, work=work)
    site.start()
    this = Round(site, site.task())
    mean, tallies = this.whole()
    np.testing.assert_allclose(mean, this.expected(), atol=4 * 2.0 / (1 << 30) * 400 / 35)
    assert (tallies.num_examples, tallies.contributions, tallies.clipped) == (35, 4, (0,))
    assert tallies.metrics[0].value == pytest.approx(LOSS.value)
    site.rest()
    (header,) = site.director.headers
    assert (header.payload, header.num_examples, header.metrics) == (m.PayloadKind.MASKED, 0, ())
    assert UPDATE[:64].tobytes() not in site.director.uploads[this.ref]
    assert site.director.refusals == []
    assert site.session.status().rounds_received == 1


def test_an_evaluation_is_a_sum_of_metrics_alone(site):
    site.start()
    this = Round(site, site.task(kind=m.TaskKind.EVALUATE))
    mean, tallies = this.whole()
    assert mean.size == 0
    assert (tallies.contributions, tallies.metrics[0].weight) == (4, 12.0)
    site.rest()
    assert site.session._journal.departures()[0].kind == "masked metrics"


def test_a_site_with_more_than_max_examples_counts_as_so_many_and_says_so_at_the_site_alone(site, caplog):
    caplog.set_level("INFO")
    site.trainer.num_examples = 5000
    site.start()
    this = Round(site, site.task())
    mean, tallies = this.whole()
    assert tallies.num_examples == 30 + 100
    np.testing.assert_allclose(mean, this.expected(own=100), atol=1e-6)
    site.rest()
    assert "more than max_examples count as so many" in caplog.text


def test_a_withheld_update_is_in_the_sum_with_weight_zero_like_everybody_else(site):
    site.config = replace(site.config, protection=ProtectionPolicy((Step.CHECK, Step.AUDIT), max_leakage=0.1))
    site.start()
    this = Round(site, site.task())
    _, tallies = this.whole()
    assert (tallies.num_examples, tallies.contributions) == (30, 4)
    assert [(one.name, one.weight) for one in tallies.metrics] == [("loss", 9.0)]  # and its metrics say nothing
    site.rest()
    (row,) = site.session._journal.departures()
    assert row.is_withheld


def test_with_equal_weights_every_site_counts_one_and_sends_no_metrics(site):
    site.start()
    _, tallies = Round(site, site.task(sum=SumTerms(bounds=(2.0,), max_weight=1, equal_weights=True))).whole()
    assert (tallies.num_examples, tallies.metrics) == (4, ())


def test_what_left_is_in_the_outbox_as_masked(site):
    site.start()
    Round(site, site.task()).whole()
    site.rest()
    (row,) = site.session._journal.departures()
    assert (row.kind, row.num_bytes) == ("masked", len(site.director.uploads[row.ref]))
    assert row.chain == "check, secure sum of 4, threshold 3"
    assert row.received_at is not None


# an aggregator elsewhere


class RelayedRound(Round):
    """One attempt whose sum ``site-d`` opens: what the site seals to it is opened here, with its key."""

    def __init__(self, site):
        site.config = replace(
            site.config, secure_aggregation=SecureAggregationPolicy(aggregators=("director", "site-d"))
        )
        super().__init__(site, site.task(sum=replace(TERMS, aggregator="site-d")))
        self.key, self.sealed = relayed.opening_key(site.keys["site-d"]), b""

    def hear(self):
        content = self.site.director.told.get(timeout=SECONDS)
        if isinstance(self.state, summation.Masking):
            self.sealed = self.site.director.uploads[self.ref]
            binding = relayed.vector_binding(self.state.cohort, "site-a")
            self.site.director.uploads[self.ref] = b"".join(open_stream(binding, self.key, [self.sealed]))
        elif isinstance(self.state, summation.Unmasking):
            content = relayed.open_unmasking(self.state.cohort, "site-a", content, self.key)
        self.state = summation.take(self.state, "site-a", content)
        return content


def test_masked_words_and_shares_leave_sealed_to_an_aggregator_that_this_site_named(site):
    this = RelayedRound(site)
    site.start()
    mean, tallies = this.whole()
    np.testing.assert_allclose(mean, this.expected(), atol=1e-6)
    assert tallies.num_examples == 35
    masked = this.masked["site-a"].tobytes()
    assert masked[:64] not in this.sealed
    (header,) = site.director.headers
    assert header.length == len(this.sealed) == relayed.vector_binding(this.state.cohort, "site-a").sealed_length
    with pytest.raises(MalformedMessageError):  # what the director is told at the end
        encoding.decode(site.director.statements[-1])


def test_a_sealed_stream_that_breaks_goes_on_with_the_very_same_bytes(site):
    site.director.cuts = [40, 400, 3996]
    this = RelayedRound(site)
    site.start()
    mean, _ = this.whole()
    np.testing.assert_allclose(mean, this.expected(), atol=1e-6)


@pytest.mark.parametrize(
    ("aggregators", "who", "why"),
    [
        (("director",), "site-d", "aggregators in"),
        (("site-d",), "", "summed by director"),
        (("director", "stranger"), "stranger", "not in this site's roster"),
    ],
)
def test_an_aggregator_that_this_site_did_not_name_or_does_not_know_gets_nothing(site, aggregators, who, why):
    site.config = replace(site.config, secure_aggregation=SecureAggregationPolicy(aggregators=aggregators))
    site.start()
    site.give(site.task(sum=replace(TERMS, aggregator=who)))
    assert why in site.refusal().reason
    assert not site.director.statements
    assert not site.trainer.orders


# lines that break


def test_a_stream_that_breaks_goes_on_where_it_stopped_with_the_very_same_words(site):
    site.director.cuts = [1000, 1000, 3996]
    site.start()
    this = Round(site, site.task())
    mean, _ = this.whole()
    np.testing.assert_allclose(mean, this.expected(), atol=1e-6)


def test_a_receipt_or_an_answer_that_is_lost_is_asked_for_again(site):
    site.director.fail("after_upload", UnreachableError("the answer was lost"))
    site.director.fail("tell_sum", UnreachableError("down"))
    site.start()
    mean, _ = Round(site, site.task()).whole()
    assert np.isfinite(mean).all()


def test_items_that_come_again_after_a_line_broke_are_answered_once(site):
    site.start()
    this = Round(site, site.task())
    this.advertise()
    this.close(lambda content: [this.say(content), this.site.give(UnreachableError("cut")), content][-1])
    for step in (this.deliver, this.call, this.reveal):
        step()
    this.open()
    site.rest()
    assert len(site.director.statements) == 5


def test_a_reply_may_hold_the_next_item_at_once(site):
    site.start()
    this = Round(site, site.task())
    tell, said = site.director.tell_sum, []

    def told(statement):
        tell(statement)
        if len(site.director.statements) != 2:
            return m.SumReply(b"")
        this.say = said.append  # the others' shares come as the answer to this site's
        this.deliver()
        del this.say
        return m.SumReply(said[0])

    site.director.tell_sum = told
    this.advertise()
    this.close()
    until(lambda: said)
    this.call()
    this.reveal()
    this.open()


@pytest.mark.parametrize("stage", ["cohort", "delivery", "survivors", "consents"])
def test_a_withdrawal_ends_the_wait_at_every_stage_and_the_next_task_is_done(site, stage):
    site.start()
    this = Round(site, site.task())
    steps = [this.advertise, this.close, this.deliver, this.call][
        : 1 + ["cohort", "delivery", "survivors", "consents"].index(stage)
    ]
    for step in steps:
        step()
    this.hear() if len(steps) > 1 else None
    site.give(m.Withdrawal(this.ref, "the round failed"))
    site.rest()
    assert site.director.refusals == []
    following = Round(site, site.task(2))
    following.whole()


def test_a_director_that_says_nothing_any_more_is_not_waited_for_for_ever(site, monkeypatch):
    monkeypatch.setattr("fedveil.envoy.summing._LEAST_SECONDS", 0.01)
    site.start()
    this = Round(site, site.task(seconds_left=0.0))
    this.advertise()
    refusal = site.refusal()
    assert refusal.error == "SumAbortedError"
    assert "the cohort did not come within 0 s" in refusal.reason


def test_a_sum_that_was_opened_without_this_sites_shares_counts_all_the_same(site):
    site.start()
    this = Round(site, site.task())
    for step in (this.advertise, this.close, this.deliver, this.call):
        step()
    this.hear()
    site.director.fail("tell_sum", WrongRoundError("round 1 of lungs-1 is closed"))
    _, items = summation.reveal(this.state)
    this.say(items["site-a"])
    site.rest()
    assert site.session.status().rounds_received == 1
    assert site.director.refusals == []


# restarts, and another attempt


@pytest.mark.parametrize("steps", [2, 3, 4])
def test_an_envoy_restarted_in_the_middle_sits_the_attempt_out_and_says_so(site, steps):
    site.start()
    this = Round(site, site.task())
    for step in [this.advertise, this.close, this.deliver, this.call][:steps]:
        step()
    this.hear()
    site.restart()
    site.give(this.task)
    refusal = site.refusal()
    assert refusal.error == "SumAbortedError"
    assert "restarted in the middle of round 1 of lungs-1" in refusal.reason
    assert site.director.statements == []


@pytest.mark.parametrize("is_asked", [False, True])
@pytest.mark.parametrize(("steps", "is_answered"), [(3, True), (4, True), (5, False)])
def test_a_restarted_envoy_says_that_it_left_a_sum_also_where_it_gets_no_task_again(site, steps, is_answered, is_asked):
    """The director has its vector and counts it as an answer; without a word it would wait for more."""
    site.start()
    this = Round(site, site.task())
    for step in [this.advertise, this.close, this.deliver, this.call, this.reveal][:steps]:
        step()
    this.hear()
    if steps == 5:
        site.rest()
    site.restart()
    if is_asked:
        this.say(b"whatever is missing")
    site.give(replace(site.task(2), cohort=("site-b",)))  # declined: what came before it was dealt with
    until(lambda: site.director.refusals and site.director.refusals[-1].ref.round == 2)
    told = [one.error for one in site.director.refusals[:-1]]
    assert told == ["SumAbortedError"] * (is_answered + (is_answered and is_asked))


def test_an_attempt_that_failed_before_a_vector_left_is_repeated_without_another_training(site):
    site.start()
    this = Round(site, site.task())
    this.advertise()
    this.close()
    this.hear()
    site.give(m.Withdrawal(this.ref, "the round failed"))
    site.rest()
    again = Round(site, site.task(attempt=2))
    mean, _ = again.whole()
    np.testing.assert_allclose(mean, again.expected(), atol=1e-6)
    site.rest()
    assert len(site.trainer.orders) == 1
    assert site.session.status().rounds_received == 1


def test_an_update_that_was_masked_is_masked_again_for_the_same_sites_also_after_a_restart(site):
    site.start()
    this = Round(site, site.task())
    for step in (this.advertise, this.close, this.deliver):
        step()
    this.hear()
    site.restart()
    again = Round(site, site.task(attempt=2))
    mean, _ = again.whole()
    np.testing.assert_allclose(mean, again.expected(), atol=1e-6)
    assert len(site.trainer.orders) == 1


def test_an_update_that_was_masked_is_not_summed_with_others_before_enough_gave_the_first_sum_up(site):
    site.start()
    this = Round(site, site.task())
    for step in (this.advertise, this.close, this.deliver):
        step()
    this.hear()
    site.give(m.Withdrawal(this.ref, "the round failed"))
    site.rest()
    puppets = {name: Puppet(name, site.keys[name].sign, site.roster, SumFloors()) for name in OTHERS[:2]}
    again = Round(site, site.task(attempt=2), puppets)
    again.advertise()
    again.close()
    refusal = site.refusal()
    assert refusal.error == "SumRefusedError"
    assert "was masked in attempt 1" in refusal.reason


def test_with_enough_that_gave_the_first_sum_up_the_same_update_goes_into_another(site):
    site.start()
    this = Round(site, site.task())
    for step in (this.advertise, this.close, this.deliver):
        step()
    this.hear()
    site.give(m.Withdrawal(this.ref, "the round failed"))
    site.rest()
    puppets = {name: Puppet(name, site.keys[name].sign, site.roster, SumFloors()) for name in OTHERS[:2]}
    again = Round(site, site.task(attempt=2), puppets)
    again.promises = this.promises  # what they promised in the first: they give it up in their adverts
    for step in (again.advertise, again.close, again.deliver):
        step()
    again.call(NAMES[:3])
    again.reveal()
    _, tallies = again.open()
    assert tallies.contributions == 3
    assert len(site.trainer.orders) == 1


def test_another_update_of_a_round_is_not_masked_while_the_first_may_still_be_opened(site):
    """The first was lost here, and another training gave other numbers."""
    site.start()
    this = Round(site, site.task())
    for step in (this.advertise, this.close, this.deliver):
        step()
    this.hear()
    site.give(m.Withdrawal(this.ref, "the round failed"))
    site.rest()
    site.end()
    (site.folder / "work" / "update.f32").unlink()
    site.trainer.update = UPDATE + 1
    site.restart()
    again = Round(site, site.task(attempt=2))
    for step in (again.advertise, again.close, again.deliver):
        step()
    until(lambda: [one for one in site.director.refusals if one.ref == again.ref])
    refusal = site.director.refusals[-1]
    assert refusal.error == "SumRefusedError"
    assert "masked in attempt 1 of round 1 is no longer here" in refusal.reason
    assert again.ref not in site.director.uploads


def test_another_model_for_the_same_round_is_refused_before_any_training(site, bundle):
    site.start()
    this = Round(site, site.task())
    for step in (this.advertise, this.close, this.deliver):
        step()
    this.hear()
    site.give(m.Withdrawal(this.ref, "the round failed"))
    site.rest()
    site.give(site.task(attempt=2, model="ab" * 32))
    assert "begins with another model than attempt 1" in site.refusal().reason
    assert len(site.trainer.orders) == 1


# a director that lies


def test_a_task_in_the_clear_is_declined_before_anything_is_done_for_it(site):
    site.start()
    site.give(site.task(sum=None))
    refusal = site.refusal()
    assert refusal.error == "ConfigError"
    assert "this site takes part in secure sums alone" in refusal.reason
    assert site.trainer.orders == []


def test_what_was_made_for_a_sum_does_not_leave_in_the_clear_also_where_that_is_allowed(site):
    site.config = replace(site.config, secure_aggregation=PLAIN_ALLOWED)
    site.start()
    this = Round(site, site.task())
    this.advertise()
    site.give(m.Withdrawal(this.ref, "the round failed"))
    site.rest()
    site.give(replace(this.task, sum=None))
    until(lambda: this.ref in site.director.uploads)
    assert len(site.trainer.orders) == 2  # it was asked for in the clear, and is another answer


def test_a_run_of_secure_sums_gets_nothing_in_the_clear_also_where_that_is_allowed(site):
    """The sum of a round less one site's answer in the clear would be the other sites'."""
    site.config = replace(site.config, secure_aggregation=PLAIN_ALLOWED)
    site.start()
    Round(site, site.task()).whole()
    site.rest()
    later = site.task(attempt=2, sum=None)
    site.give(later)
    assert "in a run of secure sums" in site.refusal().reason
    assert later.ref not in site.director.uploads
    assert len(site.trainer.orders) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sum": SumTerms(suite=Suite.X25519)}, "seals with x25519; this site takes mlkem768-x25519"),
        ({"cohort": ("site-a", "site-b"), "min_participants": 2}, "asks envoys of 2 organizations"),
        ({"cohort": ("site-a", "x", "y", "z")}, "asks envoys of 1 organizations"),
        ({"sum": SumTerms(aggregator="site-b")}, "is summed by site-b"),
    ],
    ids=["a-suite-below-the-sites", "too-few", "strangers", "another-aggregator"],
)
def test_a_sum_that_this_site_will_not_be_in_is_declined_before_any_training(site, changes, words):
    site.start()
    site.give(site.task(**changes))
    assert words in site.refusal().reason
    assert site.trainer.orders == []


def test_the_floors_are_the_sites_own(site):
    site.config = replace(site.config, secure_aggregation=SecureAggregationPolicy(min_organizations=5))
    site.start()
    site.give(site.task())
    assert "asks envoys of 4 organizations of this site's roster; this site asks for 5" in site.refusal().reason


def test_without_a_roster_that_the_site_accepted_it_is_in_no_sum_and_says_what_to_do(site, caplog):
    def none_yet():
        raise IdentityError("/srv/ward-7: this site has accepted no roster")

    site.accepted = none_yet
    site.start()
    site.give(site.task())
    refusal = site.refusal()
    assert "`envoy roster fetch`" in refusal.reason
    assert "ward-7" not in refusal.reason
    assert "ward-7" in caplog.text
    assert site.trainer.orders == []


def dropped(call):
    """The cohort without its last envoy, as if the director had not heard it; the threshold stays."""
    said = encoding.decode(call)
    return encoding.encode(CohortCall(said.adverts[:-2], 2))


def swapped(call):
    """One envoy's advert, signed by another's key."""
    said = encoding.decode(call)
    forged = replace(said.adverts[1], signature=said.adverts[2].signature)
    return encoding.encode(CohortCall((said.adverts[0], forged, *said.adverts[2:]), said.threshold))


def lower(call):
    return encoding.encode(CohortCall(encoding.decode(call).adverts, 2))


@pytest.mark.parametrize("alter", [dropped, swapped, lower, lambda call: b"\xff" * 100, lambda call: call[:-5]])
def test_a_cohort_that_is_not_right_is_refused_and_no_share_leaves(site, alter):
    site.start()
    this = Round(site, site.task())
    this.advertise()
    this.close(alter)
    refusal = site.refusal()
    assert refusal.error in ("SumRefusedError", "MalformedMessageError")
    assert len(site.director.statements) == 1
    assert site.director.headers == []


def test_an_item_of_another_stage_is_refused(site):
    site.start()
    this = Round(site, site.task())
    this.advertise()
    this.close(lambda _: encoding.encode(SurvivorsCall(b"x")))
    assert site.refusal().error in ("SumRefusedError", "MalformedMessageError")


def test_a_delivery_that_was_tampered_with_is_refused_and_no_masked_word_leaves(site):
    site.start()
    this = Round(site, site.task())
    this.advertise()
    this.close()

    def flipped(content):
        said = encoding.decode(content)
        piece = bytearray(said.dealt[1].piece)
        piece[40] ^= 1
        return encoding.encode(
            replace(said, dealt=(said.dealt[0], replace(said.dealt[1], piece=bytes(piece)), *said.dealt[2:]))
        )

    this.deliver(flipped)
    assert site.refusal().error in ("SumRefusedError", "BadShareError", "MalformedMessageError")
    assert site.director.headers == []


def test_a_second_set_of_survivors_gets_no_consent_in_any_attempt_of_the_round(site):
    site.start()
    this = Round(site, site.task())
    for step in (this.advertise, this.close, this.deliver, this.call):
        step()
    this.hear()
    site.give(m.Withdrawal(this.ref, "failed before consent, says the director"))
    site.rest()
    again = Round(site, site.task(attempt=2))
    for step in (again.advertise, again.close, again.deliver):
        step()
    again.call(NAMES[:3])
    refusal = site.refusal()
    assert refusal.error == "SumRefusedError"
    assert "in attempt 1 of round 1 this site consented to a sum over 4 other envoys" in refusal.reason


def test_a_site_stays_in_the_group_that_it_was_summed_in_first(site):
    site.start()
    Round(site, site.task(sum=replace(TERMS, group=1))).whole()
    site.rest()
    for number, attempt in ((2, 1), (1, 2)):
        moved = Round(site, site.task(number, attempt, sum=replace(TERMS, group=2)))
        moved.advertise()
        moved.close()  # with others that have promised nothing yet
        refusal = site.refusal()
        site.director.refusals.clear()
        assert refusal.error == "SumRefusedError"
        assert "was in group 1 in round 1 and is asked to be in group 2 now" in refusal.reason


def test_a_set_of_survivors_without_this_site_gets_no_consent(site):
    site.start()
    this = Round(site, site.task())
    for step in (this.advertise, this.close, this.deliver):
        step()
    this.hear()
    _, items = summation.call_survivors(this.state, NAMES[1:])
    this.say(items["site-b"])
    assert "consent to a sum that it is not in" in site.refusal().reason


def test_the_very_same_answer_is_not_summed_among_others_in_another_run(site):
    """A run submitted twice with one seed trains to the same bits: without one site, the difference is its update."""
    site.start()
    Round(site, site.task()).whole()
    site.rest()
    second = m.TaskRef("lungs-2", 1, 1, site.bundle.digest)
    puppets = {name: Puppet(name, site.keys[name].sign, site.roster, SumFloors()) for name in OTHERS[:2]}
    this = Round(site, site.task(ref=second), puppets)
    for step in (this.advertise, this.close, this.deliver):
        step()
    assert "was masked among 4 envoys in round 1 of lungs-1; among others it would be told" in site.refusal().reason
    assert second not in site.director.uploads


def test_nor_among_the_same_sites_with_other_weights(site):
    """Where one more example counts, the difference is the update of the one site that has so many."""
    site.start()
    Round(site, site.task()).whole()
    site.rest()
    second = m.TaskRef("lungs-2", 1, 1, site.bundle.digest)
    this = Round(site, site.task(ref=second, sum=replace(TERMS, max_weight=4)))
    for step in (this.advertise, this.close, this.deliver):
        step()
    assert "weighed otherwise" in site.refusal().reason
    assert second not in site.director.uploads


@pytest.mark.parametrize("changes", [{"seed": b"1" * 32}, {"asked": m.AskedProtection(1e-12)}], ids=["seed", "asked"])
def test_a_director_that_asks_others_for_other_work_gets_no_sum(site, changes):
    """Were the others asked to clip their updates to nothing, the sum would be this site's."""
    site.start()
    this = Round(site, site.task())
    this.spec = spec_of("toys", site.task(**changes), (SIZE,))
    this.state = summation.begin(this.spec, site.roster)
    site.give(this.task)
    for name, puppet in this.puppets.items():
        this.states[name], said = participant.advertise(puppet, this.spec, (), this.promises[name], os.urandom)
        this.state = summation.take(this.state, name, said)
    _, items = summation.close_cohort(this.state)
    call = encoding.decode(items[OTHERS[0]])
    mine = encoding.decode(site.director.told.get(timeout=SECONDS))
    this.say(encoding.encode(replace(call, adverts=(mine, *call.adverts))))
    assert "site-b advertises for another sum" in site.refusal().reason
    assert site.director.uploads == {}


def test_nor_consented_to_among_others_where_the_cohort_was_the_same(site):
    site.start()
    Round(site, site.task()).whole()
    site.rest()
    this = Round(site, site.task(ref=m.TaskRef("lungs-2", 1, 1, site.bundle.digest)))
    for step in (this.advertise, this.close, this.deliver):
        step()
    this.call(NAMES[:3])
    assert "is in a sum over 4 other envoys in round 1 of lungs-1" in site.refusal().reason


def test_a_run_that_is_repeated_among_the_same_sites_gives_the_same_sum_once_more(site):
    site.start()
    Round(site, site.task()).whole()
    site.rest()
    Round(site, site.task(ref=m.TaskRef("lungs-2", 1, 1, site.bundle.digest))).whole()


def test_too_few_consents_open_nothing(site):
    site.start()
    this = Round(site, site.task())
    for step in (this.advertise, this.close, this.deliver, this.call):
        step()

    def fewer(content):
        said = encoding.decode(content)
        return encoding.encode(ConsentSet(said.body, said.voices[:2]))

    this.reveal(fewer)
    assert "2 consents, and the threshold is 3" in site.refusal().reason
    assert len(site.director.statements) == 4


def test_what_is_refused_says_nothing_of_the_site(site, caplog):
    site.start()
    this = Round(site, site.task())
    this.advertise()
    this.close(lower)
    refusal = site.refusal()
    assert str(site.folder) not in refusal.reason
    assert refusal.reason in caplog.text


# the site's own log


class Log:
    """Keeps what it is told, and may refuse."""

    def __init__(self, refusal=None):
        self.said, self.refusal = [], refusal

    def consented(self, ref, transcript, survivors, director_head):
        if self.refusal:
            raise self.refusal
        self.said.append(("consented", tuple(survivors), len(transcript)))

    def unmasked(self, ref, transcript):
        self.said.append(("unmasked",))


def test_a_consent_is_in_the_sites_log_before_it_leaves(site):
    site.audit = Log()
    site.start()
    Round(site, site.task()).whole()
    site.rest()
    assert site.audit.said == [("consented", NAMES, 32), ("unmasked",)]


def test_a_log_that_refuses_keeps_the_consent_here(site):
    site.audit = Log(SumRefusedError("the director's audit log went back from entry 9 to 8"))
    site.start()
    this = Round(site, site.task())
    for step in (this.advertise, this.close, this.deliver, this.call):
        step()
    assert "went back" in site.refusal().reason
    assert len(site.director.statements) == 3
    assert site.session._journal.promised("lungs-1")[0].promise.count('"consented":null') == 1


# what binds is on the disk first


@pytest.mark.parametrize(("stage", "kept"), [(3, "masked"), (4, "consented"), (5, "unmasked")])
def test_what_binds_is_in_the_journal_before_it_leaves(site, stage, kept, monkeypatch):
    """Each statement is looked at as it leaves: what it promises is on the disk by then."""
    seen = []
    tell = site.director.tell_sum

    def told(statement):
        rows = site.session._journal.promised("lungs-1")
        seen.append(rows[0].promise if rows else "")
        return tell(statement)

    site.director.tell_sum = told
    site.start()
    Round(site, site.task()).whole()
    words = {"masked": '"masked":true', "consented": '"consented":["site-a"', "unmasked": '"unmasked":true'}
    assert words[kept] in seen[stage - 1]
    assert words[kept] not in seen[stage - 2] or kept == "masked"


# noise inside the sum

NOISE = NoiseTerms(0.5, 1.0, 2)
NOISED = SumTerms(bounds=(NOISE.bound,), max_weight=1, equal_weights=True, noise=NOISE)


def noised(parts):
    noise = replace(NOISE, parts=parts)
    return replace(NOISED, noise=noise)


def test_with_noise_in_the_sum_an_update_is_clipped_noised_and_alone(site):
    site.start()
    this = Round(site, site.task(sum=NOISED))
    mean, tallies = this.whole()
    assert (tallies.num_examples, tallies.contributions, tallies.clipped, tallies.metrics) == (4, 4, (), ())
    clipped = UPDATE * (0.5 / np.linalg.norm(UPDATE))
    error = mean * 4 - clipped - sum(v.astype(np.float64) for v in this.vectors.values())
    # Deviation of one number: 0.5 times (4 sites / 2 parts)^(1/2); chi-square with 1001 degrees stays in this for sure.
    assert 0.75 < error.std() / (0.5 * np.sqrt(2)) < 1.25
    (row,) = site.session._journal.departures()
    assert row.has_noise
    assert row.chain == (
        "check, clip 0.5, in the sum Skellam noise 1.0 x 0.5 of 2 sites together, secure sum of 4, threshold 3, noise 2"
        " times the counted variance if nobody drops out"
    )
    assert row.metrics == ()


@pytest.mark.parametrize("is_restarted", [False, True])
def test_another_attempt_sums_the_very_same_noised_integers(site, is_restarted):
    site.start()
    this = Round(site, site.task(sum=NOISED))
    this.whole()
    site.rest()
    (site.restart if is_restarted else site.rest)()
    again = Round(site, site.task(attempt=2, sum=NOISED))
    again.whole()
    assert np.array_equal(this.total, again.total)
    assert not np.array_equal(this.masked["site-a"], again.masked["site-a"])  # under other masks
    assert len(site.trainer.orders) == 1


def test_noise_is_drawn_once_for_an_update_and_anew_for_the_next(site):
    site.start()
    secrets = []
    for number in (1, 2):
        this = Round(site, site.task(number, sum=NOISED))
        this.whole()
        site.rest()
        secrets.append(site.session._journal.finished(this.ref).noise_secret)
    assert len(set(secrets)) == 2
    assert all(len(secret) == 32 for secret in secrets)
    assert site.session._journal.finished(m.TaskRef("lungs-1", 1, 1, site.bundle.digest)).noise_secret is None


def test_under_other_terms_of_the_noise_an_update_that_may_be_opened_is_not_summed_again(site):
    """Else the director could have the same vector under two scales of noise."""
    site.start()
    this = Round(site, site.task(sum=NOISED))
    for step in (this.advertise, this.close, this.deliver):
        step()
    this.hear()
    site.give(m.Withdrawal(this.ref, "the round failed"))
    site.rest()
    louder = replace(NOISED, noise=replace(NOISE, noise_multiplier=2.0))
    again = Round(site, site.task(attempt=2, sum=louder))
    again.advertise()
    again.close()
    assert site.refusal().error == "SumRefusedError"
    assert again.ref not in site.director.uploads


def test_a_run_has_one_noise(site):
    """A norm that clips this site's update in one round and not in the next would be seen in the difference."""
    site.start()
    Round(site, site.task(sum=NOISED)).whole()
    site.rest()
    noise = replace(NOISE, max_norm=0.25)
    other = Round(site, site.task(2, sum=replace(NOISED, bounds=(noise.bound,), noise=noise)))
    other.advertise()
    other.close()
    assert "a run has one" in site.refusal().reason


def test_an_update_whose_noise_was_lost_is_not_summed_again_with_other_noise(site):
    """Two draws over one update: their mean would have less noise than was counted."""
    site.start()
    this = Round(site, site.task(sum=NOISED))
    for step in (this.advertise, this.close, this.deliver):
        step()
    this.hear()
    site.give(m.Withdrawal(this.ref, "the round failed"))
    site.rest()
    site.end()
    (site.folder / "work" / "payload.f32").unlink()
    site.restart()
    again = Round(site, site.task(attempt=2, sum=NOISED))
    for step in (again.advertise, again.close, again.deliver):
        step()
    until(lambda: [one for one in site.director.refusals if one.ref == again.ref])
    assert "masked in attempt 1 of round 1 is no longer here" in site.director.refusals[-1].reason
    assert again.ref not in site.director.uploads


@pytest.mark.parametrize(("colluding", "parts"), [(1, 4), (2, 3)])
def test_noise_for_more_honest_sites_than_this_site_counts_on_is_refused_before_any_training(site, colluding, parts):
    site.config = replace(site.config, secure_aggregation=SecureAggregationPolicy(colluding=colluding))
    site.start()
    site.give(site.task(sum=noised(parts)))
    refusal = site.refusal()
    assert refusal.error == "SumRefusedError"
    assert f"the noise is in {parts} parts" in refusal.reason
    assert site.trainer.orders == []


def test_a_threshold_under_which_too_few_honest_sites_have_the_noise_gets_no_share(site):
    """Three parts, and the director says threshold 3, of whom one may collude."""
    site.start()
    this = Round(site, site.task(sum=noised(3)))
    this.advertise()
    this.close(lambda content: encoding.encode(replace(encoding.decode(content), threshold=3)))
    refusal = site.refusal()
    assert refusal.error == "SumRefusedError"
    assert "with threshold 3 this site counts on 2 honest envoys alone" in refusal.reason
    assert site.director.told.empty()


def test_an_evaluation_under_noise_sends_no_metric(site):
    site.start()
    this = Round(site, site.task(kind=m.TaskKind.EVALUATE, sum=NOISED))
    mean, tallies = this.whole()
    assert (mean.size, tallies.metrics, tallies.contributions) == (0, (), 4)


def test_neither_log_nor_refusal_holds_the_secret(site, caplog):
    caplog.set_level("DEBUG")
    site.start()
    this = Round(site, site.task(sum=NOISED))
    this.whole()
    site.rest()
    secret = site.session._journal.finished(this.ref).noise_secret
    assert secret.hex() not in caplog.text
    assert repr(secret) not in caplog.text
    for folder, _, files in os.walk(site.folder):
        for file in files:
            if not file.startswith("envoy.sqlite"):
                assert secret not in (site.folder / folder / file).read_bytes()
