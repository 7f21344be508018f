"""What is said arrives as it was said; what is no message is refused, and nothing else happens."""

import math
import string
from collections.abc import Callable

import pytest
from fedveil.protos import federation_pb2 as pb
from fedveil.utils import messages as m
from fedveil.utils import wire, wire_sums
from fedveil.utils import wire_control as control
from fedveil.utils.errors import MalformedMessageError
from fedveil.utils.metrics import AUC_BINS, MetricKind, MetricSum, mean_of
from fedveil.utils.privacy.values import PublishedEpsilon, Unit
from fedveil.utils.secure_sum.terms import LEAST_NOISE, MAX_GROUP, MAX_WEIGHT, MOST_NOISE, NoiseTerms, Suite, SumTerms
from fedveil.utils.signed_document import SignedDocument
from hypothesis import example, given, settings
from hypothesis import strategies as st

PLAN = "ab" * 32
REF = m.TaskRef(m.RunId("lungs-1"), 3, 1, PLAN)

digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
names = st.from_regex(m.NAME_PATTERN, fullmatch=True)
lines = st.text(st.characters(exclude_categories=("C", "Z")) | st.just(" "), max_size=60)
lengths = st.integers(0, 1 << 40)
finite = st.floats(allow_nan=False, allow_infinity=False)
grants = st.text("0123456789abcdef", min_size=32, max_size=32)
refs = st.builds(m.TaskRef, names, st.integers(1, 1 << 30), st.integers(1, 1 << 30), digests)
held = st.lists(refs, max_size=3).map(tuple)
values = st.floats(-1e100, 1e100)
counts = st.floats(0, 1e100)
metric_names = st.text(string.ascii_letters + string.digits + "-_./@", min_size=1, max_size=32)
metric = st.one_of(
    st.builds(mean_of, metric_names, values, counts),
    st.builds(
        lambda name, count, weight: MetricSum(name, MetricKind.AUC, (count,) * (2 * AUC_BINS), weight),
        metric_names,
        counts,
        counts,
    ),
)
metrics = st.lists(metric, max_size=3, unique_by=lambda one: one.name).map(tuple)
kinds = st.sampled_from(m.TaskKind)
payloads = st.just((m.PayloadKind.PLAIN, None)) | st.tuples(st.just(m.PayloadKind.CODED), digests)
positive = st.floats(1e-300, 1e300)
asked = st.one_of(
    st.just(m.AskedProtection()),
    st.builds(m.AskedProtection, positive, st.just(0.0) | positive),
)
epsilons = st.builds(PublishedEpsilon, st.floats(0, 1e9), st.floats(1e-12, 0.5), st.sampled_from(Unit))
bounds = st.lists(st.floats(1e-37, 1e38), min_size=1, max_size=4).map(tuple)
terms = st.builds(
    lambda equal, weight, **fields: SumTerms(equal_weights=equal, max_weight=1 if equal else weight, **fields),
    st.booleans(),
    st.integers(1, MAX_WEIGHT),
    suite=st.sampled_from(Suite),
    bounds=bounds,
    aggregator=st.just("") | names,
    histogram=st.booleans(),
    group=st.integers(0, MAX_GROUP),
)
noises = st.builds(NoiseTerms, st.floats(2.0**-60, 2.0**60), st.floats(LEAST_NOISE, MOST_NOISE), st.integers(1, 128))
terms |= noises.map(lambda one: SumTerms(bounds=(one.bound,), max_weight=1, equal_weights=True, noise=one))
contents = st.binary(min_size=1, max_size=300)
documents = st.builds(
    SignedDocument, st.binary(min_size=1, max_size=300), st.binary(min_size=64, max_size=64), st.binary(max_size=300)
)
approved = st.lists(digests, max_size=3).map(tuple)
heads = st.just(b"") | st.binary(min_size=136, max_size=136)
tasks = st.builds(
    lambda coded, **fields: m.Task(payload=coded[0], codec=coded[1], **fields),
    payloads,
    ref=refs,
    kind=kinds,
    model=digests,
    model_bytes=st.integers(1, 1 << 40),
    layout=digests,
    seed=st.binary(min_size=32, max_size=32),
    seconds_left=st.floats(0, 1e8),
    min_participants=st.integers(1, 10_000),
    cohort=st.lists(names, max_size=4).map(tuple),
    asked=asked,
    sum=st.none() | terms,
    proposal=st.none() | digests,
    patches=st.lists(documents, max_size=2).map(tuple),
    fairness_min_cell=st.integers(0, 100_000),
)
masked = st.tuples(st.just(m.PayloadKind.MASKED), st.none() | digests)
receipts = st.builds(m.Receipt, refs, digests, lengths)
turns = st.builds(m.Turn, refs, grants, lengths, st.integers(1 << 10, m.MAX_PART_BYTES))
openings = lengths.flatmap(
    lambda length: st.builds(
        m.Opening, st.just(length), st.integers(0, length), st.just("") | grants, st.none() | digests
    )
)
sums = st.builds(
    m.SumView,
    st.lists(names, max_size=3).map(tuple),
    st.integers(0, 1 << 30),
    st.integers(0, 1 << 30),
    lengths,
    digests,
)
rounds = st.builds(
    m.RoundView,
    round=st.integers(0, 1 << 30),
    attempt=st.integers(0, 1 << 30),
    kind=kinds,
    state=lines,
    invited=st.integers(0, 1 << 30),
    received=st.integers(0, 1 << 30),
    seconds=finite,
    metrics=st.dictionaries(metric_names, finite, max_size=3),
    model=st.none() | digests,
    reason=lines,
    sum=st.none() | sums,
    privacy=st.dictionaries(names, epsilons, max_size=2),
    leakage=st.dictionaries(names, st.floats(-1, 1), max_size=2),
    fairness=st.dictionaries(names, documents, max_size=2),
)
experiments = st.builds(
    m.ExperimentView,
    run=names,
    name=lines,
    state=lines,
    reason=lines,
    plan=digests,
    model=st.none() | digests,
    model_bytes=lengths,
    max_rounds=st.integers(0, 1 << 30),
    submitted_at=finite,
    rounds=st.lists(rounds, max_size=2).map(tuple),
    bytes_up=lengths,
    bytes_down=lengths,
    proposal=st.none() | digests,
    approved_by=st.lists(names, max_size=2).map(tuple),
    patches=st.integers(0, 200),
)
envoys = st.builds(m.EnvoyView, names, lines, st.booleans(), finite, lines)

published = st.none() | epsilons

# name: (message, to the wire, from the wire)
MESSAGES: dict[str, tuple[st.SearchStrategy[object], Callable[..., bytes], Callable[[bytes], object]]] = {
    "opening": (openings, wire.part_to_wire, wire.part_from_wire),
    "data": (st.builds(m.Data, st.binary(min_size=1, max_size=300)), wire.part_to_wire, wire.part_from_wire),
    "closing": (st.builds(m.Closing, digests), wire.part_to_wire, wire.part_from_wire),
    "work_request": (
        st.builds(m.WorkRequest, lines, held, st.floats(0, 60), approved),
        wire.work_request_to_wire,
        wire.work_request_from_wire,
    ),
    "work_item": (
        st.one_of(
            st.just(m.Idle()),
            st.builds(m.Withdrawal, refs, lines),
            tasks,
            st.builds(m.SumItem, refs, contents),
            st.builds(m.Offer, names, documents),
        ),
        wire.work_item_to_wire,
        wire.work_item_from_wire,
    ),
    "download": (
        st.builds(m.DownloadRequest, digests, lengths, st.none() | refs),
        wire.download_to_wire,
        wire.download_from_wire,
    ),
    "header": (
        st.builds(
            lambda coded, privacy, score, told, *fields: m.UpdateHeader(*fields, *coded, privacy, score, told),
            payloads,
            published,
            st.none() | st.floats(-1, 1),
            st.none() | documents,
            refs,
            digests,
            lengths,
            st.integers(0, 1 << 40),
            metrics,
        )
        | st.builds(
            lambda coded, privacy, score, told, *fields: m.UpdateHeader(*fields, 0, (), *coded, privacy, score, told),
            masked,
            published,
            st.none() | st.floats(-1, 1),
            st.none() | documents,
            refs,
            digests,
            lengths,
        ),
        wire.header_to_wire,
        wire.header_from_wire,
    ),
    "grant": (st.one_of(turns, st.builds(m.Wait, refs), receipts), wire.grant_to_wire, wire.grant_from_wire),
    "receipt": (receipts, wire.receipt_to_wire, wire.receipt_from_wire),
    "report": (
        st.builds(m.MetricsReport, refs, metrics, st.none() | documents),
        wire.report_to_wire,
        wire.report_from_wire,
    ),
    "statement": (
        st.builds(m.SumStatement, refs, contents),
        wire_sums.statement_to_wire,
        wire_sums.statement_from_wire,
    ),
    "sum_reply": (
        st.builds(m.SumReply, st.binary(max_size=300)),
        wire_sums.sum_reply_to_wire,
        wire_sums.sum_reply_from_wire,
    ),
    "roster_request": (
        st.just(m.RosterRequest()),
        wire_sums.roster_request_to_wire,
        wire_sums.roster_request_from_wire,
    ),
    "roster_reply": (
        st.builds(
            m.RosterReply,
            names,
            st.lists(
                st.builds(m.RosterMember, names, lines, st.binary(min_size=32, max_size=32)),
                max_size=3,
                unique_by=lambda one: one.name,
            ).map(tuple),
        ),
        wire_sums.roster_reply_to_wire,
        wire_sums.roster_reply_from_wire,
    ),
    "refusal": (st.builds(m.Refusal, refs, lines, lines), wire.refusal_to_wire, wire.refusal_from_wire),
    "heartbeat": (st.builds(m.Heartbeat, held, approved, heads), wire.heartbeat_to_wire, wire.heartbeat_from_wire),
    "acknowledgement": (
        st.builds(m.Acknowledgement, finite, heads),
        wire.acknowledgement_to_wire,
        wire.acknowledgement_from_wire,
    ),
    "hello_request": (st.just(m.HelloRequest()), wire.hello_request_to_wire, wire.hello_request_from_wire),
    "hello_reply": (
        st.builds(m.HelloReply, names, lines, finite),
        wire.hello_reply_to_wire,
        wire.hello_reply_from_wire,
    ),
    "renew_request": (
        st.builds(
            m.RenewRequest,
            st.binary(max_size=300),
            st.binary(max_size=300),
            finite,
            st.binary(min_size=64, max_size=64),
        ),
        wire.renew_request_to_wire,
        wire.renew_request_from_wire,
    ),
    "patch": (documents, control.patch_to_wire, control.patch_from_wire),
    "join_request": (
        st.builds(
            m.JoinRequest,
            st.binary(max_size=300),
            st.binary(min_size=32, max_size=32),
            st.binary(min_size=64, max_size=64),
            st.binary(max_size=300),
        ),
        wire.join_request_to_wire,
        wire.join_request_from_wire,
    ),
    "join_reply": (
        st.builds(m.JoinReply, names, names, lines, *[st.binary(max_size=99)] * 3),
        wire.join_reply_to_wire,
        wire.join_reply_from_wire,
    ),
    "submission": (
        st.builds(m.Submission, st.text(max_size=99), st.binary(max_size=99), st.none() | documents),
        control.submission_to_wire,
        control.submission_from_wire,
    ),
    "submit_reply": (
        st.builds(m.SubmitReply, st.lists(digests, max_size=3).map(tuple), st.none() | names),
        control.submit_reply_to_wire,
        control.submit_reply_from_wire,
    ),
    "show": (names, control.show_to_wire, control.show_from_wire),
    "experiment": (experiments, control.experiment_to_wire, control.experiment_from_wire),
    "experiments": (
        st.lists(experiments, max_size=2).map(tuple),
        control.experiments_to_wire,
        control.experiments_from_wire,
    ),
    "status": (
        st.builds(
            m.StatusReply,
            names,
            lines,
            finite,
            st.lists(envoys, max_size=2).map(tuple),
            st.lists(experiments, max_size=1).map(tuple),
        ),
        control.status_to_wire,
        control.status_from_wire,
    ),
}


def refused(read: Callable[[bytes], object], raw: bytes) -> bool:
    """Is it refused as malformed? Anything else that is raised fails the test."""
    try:
        read(raw)
    except MalformedMessageError as error:
        assert str(error).isprintable()  # noqa: PT017 - whether it is raised is the answer
        return True
    return False


def test_every_message_is_in_this_test():
    readers = {name for room in (wire, control, wire_sums) for name in vars(room) if name.endswith("_from_wire")}
    tested = {read.__name__ for _, _, read in MESSAGES.values()}
    assert readers - tested == {"ref_from_wire"}


@pytest.mark.parametrize("name", MESSAGES)
@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_what_is_said_arrives_as_it_was_said(name: str, data: st.DataObject):
    message, write, read = MESSAGES[name]
    said = data.draw(message)
    assert read(write(said)) == said


@pytest.mark.parametrize("name", MESSAGES)
@settings(deadline=None, max_examples=150)
@given(raw=st.binary(max_size=200))
@example(b"")
@example(b"\x12")
@example(b"\xff" * 40)
def test_random_bytes_are_refused_or_make_a_message(name: str, raw: bytes):
    _, write, read = MESSAGES[name]
    if not refused(read, raw):
        write(read(raw))


@pytest.mark.parametrize("name", MESSAGES)
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_a_damaged_message_is_refused_or_makes_a_message_that_can_be_said_again(name: str, data: st.DataObject):
    message, write, read = MESSAGES[name]
    raw = bytearray(write(data.draw(message)))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(raw)))
        match data.draw(st.sampled_from(["change", "insert", "delete", "cut", "repeat"])):
            case "change" if place < len(raw):
                raw[place] = data.draw(st.integers(0, 255))
            case "insert":
                raw[place:place] = data.draw(st.binary(min_size=1, max_size=8))
            case "delete":
                del raw[place : place + data.draw(st.integers(1, 8))]
            case "cut":
                del raw[place:]
            case "repeat":
                raw += raw[place:]
    if not refused(read, bytes(raw)):
        understood = read(bytes(raw))
        assert read(write(understood)) == understood


@pytest.mark.parametrize("size", [1, 127, 128, 16_383, 16_384, (1 << 21) - 1, 1 << 21, m.MAX_PART_BYTES])
def test_a_part_is_the_same_bytes_that_protobuf_makes(size: int):
    content = bytes(i & 0xFF for i in range(251)) * (size // 251 + 1)
    content = content[:size]
    raw = pb.Part(data=content).SerializeToString()
    assert wire.part_to_wire(m.Data(memoryview(content))) == raw
    assert wire.part_from_wire(raw) == m.Data(content)
    assert pb.Part.FromString(wire.part_to_wire(m.Data(content))).data == content


@given(st.binary(min_size=1, max_size=2_000))
def test_a_part_reads_as_protobuf_reads_it(content: bytes):
    assert wire.part_from_wire(pb.Part(data=content).SerializeToString()) == m.Data(content)


@given(openings)
def test_an_opening_is_protobufs(opening: m.Opening):
    read = pb.Part.FromString(wire.part_to_wire(opening)).opening
    assert (read.length, read.offset, read.grant) == (opening.length, opening.offset, opening.grant)


def test_the_data_of_a_part_is_not_copied():
    raw = pb.Part(data=b"abc").SerializeToString()
    part = wire.part_from_wire(raw)
    assert isinstance(part, m.Data)
    assert isinstance(part.content, memoryview)
    assert part.content.obj is raw


@pytest.mark.parametrize(
    "raw",
    [
        b"\x12",  # no length
        b"\x12\x80\x80\x80\x80\x80\x80",  # a length without end
        b"\x12\xff\xff\xff\xff\x7fabc",  # 34 GB announced
        b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01abc",  # minus one
        b"\x12\x04abc",  # one byte too few
        b"\x12\x02abc",  # one too many
        b"\x12\x00",  # nothing
        b"\x12\x03abc\x12\x03abc",  # twice
        b"\x12\x03abc\x0a\x00",  # data, then an opening
        b"\x0a\x00\x12\x03abc",  # an opening, then data
        b"\x10\x03",  # field 2 as a number
        b"\x22\x03abc",  # a field of tomorrow, and nothing else
        pb.Part(data=b"x" * (m.MAX_PART_BYTES + 1)).SerializeToString(),
    ],
)
def test_a_part_that_lies_about_its_length_is_refused(raw: bytes):
    assert refused(wire.part_from_wire, raw)


def _task(**changes: object) -> bytes:
    fields = {
        "ref": pb.TaskRef(run="lungs-1", round=1, attempt=1, plan_digest=bytes(32)),
        "kind": pb.TASK_KIND_TRAIN,
        "model_digest": bytes(32),
        "model_bytes": 100,
        "layout_digest": bytes(32),
        "seed": bytes(32),
        "seconds_left": 1.0,
        "min_participants": 1,
        "cohort": ["site-a"],
        "payload": pb.PAYLOAD_KIND_PLAIN,
    }
    return pb.WorkItem(task=pb.Task(**(fields | changes))).SerializeToString()


def test_the_task_that_the_next_test_changes_is_whole():
    assert isinstance(wire.work_item_from_wire(_task()), m.Task)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": pb.TASK_KIND_UNSPECIFIED},
        {"kind": 7},
        {"payload": pb.PAYLOAD_KIND_UNSPECIFIED},
        {"payload": pb.PAYLOAD_KIND_CODED},  # by which codec?
        {"payload": pb.PAYLOAD_KIND_CODED, "codec_digest": bytes(31)},
        {"payload": pb.PAYLOAD_KIND_PLAIN, "codec_digest": bytes(32)},
        {"payload": pb.PAYLOAD_KIND_MASKED},  # what under the masks?
        {"sum": pb.SumTerms()},  # no suite
        {"sum": pb.SumTerms(suite="rot13", bounds=[1.0], max_weight=1)},
        {"sum": pb.SumTerms(suite="x25519", bounds=[], max_weight=1)},
        {"sum": pb.SumTerms(suite="x25519", bounds=[math.nan], max_weight=1)},
        {"sum": pb.SumTerms(suite="x25519", bounds=[1e-50], max_weight=1)},
        {"sum": pb.SumTerms(suite="x25519", bounds=[1e39], max_weight=1)},
        {"sum": pb.SumTerms(suite="x25519", bounds=[1.0], max_weight=0)},
        {"sum": pb.SumTerms(suite="x25519", bounds=[1.0], max_weight=2, equal_weights=True)},
        {"sum": pb.SumTerms(suite="x25519", bounds=[1.0], max_weight=1, aggregator="../a")},
        {"sum": pb.SumTerms(suite="x25519", bounds=[1.0], max_weight=1, group=MAX_GROUP + 1)},
        {"payload": 99},
        {"asked_max_norm": -1.0},
        {"asked_max_norm": math.nan},
        {"asked_max_norm": math.inf},
        {"asked_max_norm": 1.0, "asked_noise_multiplier": -1.0},
        {"asked_max_norm": 1.0, "asked_noise_multiplier": math.nan},
        {"asked_max_norm": 1.0, "asked_noise_multiplier": math.inf},
        {"asked_noise_multiplier": 1.0},  # of what bound?
        {"seconds_left": math.nan},
        {"seconds_left": math.inf},
        {"seconds_left": 1.1e8},
        {"seed": bytes(31)},
        {"model_digest": bytes(33)},
        {"layout_digest": b""},
        {"codec_digest": b"x"},
        {"model_bytes": 0},
        {"model_bytes": (1 << 64) - 1},
        {"min_participants": 0},
        {"cohort": ["../site-a"]},
        {"cohort": ["a/b"]},
        {"cohort": [".."]},
        {"cohort": [""]},
        {"cohort": ["site-a\n"]},
        {"cohort": ["a"] * 10_001},
        {"ref": pb.TaskRef(run="..", round=1, attempt=1, plan_digest=bytes(32))},
        {"ref": pb.TaskRef(run="/etc/passwd", round=1, attempt=1, plan_digest=bytes(32))},
        {"ref": pb.TaskRef(run="a" * 64, round=1, attempt=1, plan_digest=bytes(32))},
        {"ref": pb.TaskRef(run="a", round=0, attempt=1, plan_digest=bytes(32))},
        {"ref": pb.TaskRef(run="a", round=1, attempt=0, plan_digest=bytes(32))},
        {"ref": pb.TaskRef(run="a", round=(1 << 32) - 1, attempt=1, plan_digest=bytes(32))},
        {"ref": pb.TaskRef(run="a", round=1, attempt=1, plan_digest=bytes(31))},
        {"ref": None},
    ],
)
def test_a_task_that_says_what_cannot_be_is_refused(changes: dict[str, object]):
    assert refused(wire.work_item_from_wire, _task(**changes))


@pytest.mark.parametrize("clear", [{"num_examples": 1}, {"metrics": [pb.Metric(name="loss", kind=1, values=[1.0])]}])
def test_a_masked_update_says_nothing_in_clear(clear: dict[str, object]):
    fields = {"ref": wire.ref_to_wire(REF), "layout_digest": bytes(32), "payload": pb.PAYLOAD_KIND_MASKED, "length": 8}
    assert wire.header_from_wire(pb.UpdateHeader(**fields).SerializeToString()).num_examples == 0
    assert refused(wire.header_from_wire, pb.UpdateHeader(**(fields | clear)).SerializeToString())


@pytest.mark.parametrize("size", [0, m.MAX_PART_BYTES + 1])
def test_a_statement_is_neither_empty_nor_longer_than_a_call(size: int):
    raw = wire_sums.statement_to_wire(m.SumStatement(REF, bytes(size)))
    assert refused(wire_sums.statement_from_wire, raw)
    item = wire.work_item_to_wire(m.SumItem(REF, bytes(size)))
    assert refused(wire.work_item_from_wire, item)


@pytest.mark.parametrize("size", [31, 33])
def test_a_roster_with_a_key_that_is_none_or_a_name_twice_is_refused(size: int):
    member = m.RosterMember(m.EnvoyName("site-a"), "A", bytes(32))
    wrong = m.RosterReply("lungs", (m.RosterMember(m.EnvoyName("site-a"), "A", bytes(size)),))
    for reply in (wrong, m.RosterReply("lungs", (member, member))):
        assert refused(wire_sums.roster_reply_from_wire, wire_sums.roster_reply_to_wire(reply))


def test_a_task_whose_time_is_over_has_no_seconds_left():
    item = wire.work_item_from_wire(_task(seconds_left=-3.5))
    assert isinstance(item, m.Task)
    assert item.seconds_left == 0.0


def _report(*reported: pb.Metric) -> bytes:
    return pb.MetricsReport(ref=wire.ref_to_wire(REF), metrics=reported).SerializeToString()


def _mean(value: float = 1.0, weight: float = 1.0, name: str = "loss", kind: int = pb.Metric.KIND_MEAN) -> pb.Metric:
    return pb.Metric(name=name, kind=kind, values=[value], weight=weight)


def test_the_metric_that_the_next_test_changes_is_whole():
    assert wire.report_from_wire(_report(_mean())) == m.MetricsReport(REF, (mean_of("loss", 1.0, 1.0),))


@pytest.mark.parametrize(
    "reported",
    [
        [_mean(math.nan)],
        [_mean(math.inf)],
        [_mean(-math.inf)],
        [_mean(weight=math.nan)],
        [_mean(weight=-1.0)],
        [_mean(weight=math.inf)],
        [_mean(1e101)],  # sums of such would leave the range of a float, at the director
        [_mean(weight=1e101)],
        [_mean(kind=pb.Metric.KIND_UNSPECIFIED)],
        [_mean(kind=pb.Metric.KIND_AUC)],  # one value is no histogram
        [_mean(kind=12)],
        [_mean(name="")],
        [_mean(name="a\nb")],
        [_mean(name="x" * 33)],
        [_mean(name="a b")],
        [_mean(name="größe")],
        [_mean(), _mean()],
        [_mean(name=str(number)) for number in range(17)],
        [pb.Metric(name="auc", kind=pb.Metric.KIND_AUC, values=[-1.0] + [0.0] * (2 * AUC_BINS - 1), weight=1)],
        [pb.Metric(name="auc", kind=pb.Metric.KIND_AUC, values=[0.0] * (2 * AUC_BINS + 1), weight=1)],
    ],
)
def test_a_metric_that_cannot_be_summed_is_refused(reported: list[pb.Metric]):
    assert refused(wire.report_from_wire, _report(*reported))


def test_sixteen_metrics_are_not_too_many():
    reported = wire.report_from_wire(_report(*(_mean(name=f"{number:032}") for number in range(16))))
    assert len(reported.metrics) == 16


def test_more_tasks_than_an_envoy_can_hold_are_refused():
    assert refused(wire.heartbeat_from_wire, wire.heartbeat_to_wire(m.Heartbeat((REF,) * 65)))


def test_a_stream_that_starts_behind_its_end_is_refused():
    assert refused(wire.part_from_wire, pb.Part(opening=pb.Opening(length=3, offset=4)).SerializeToString())
    assert refused(wire.part_from_wire, pb.Part(opening=pb.Opening(length=1 << 41)).SerializeToString())
    assert refused(wire.part_from_wire, pb.Part(opening=pb.Opening(length=3, grant="../x")).SerializeToString())


@settings(deadline=None)
@given(st.text(max_size=4_000))
def test_no_reason_makes_a_message_unreadable(reason: str):
    withdrawal = m.Withdrawal(REF, reason)
    arrived = wire.work_item_from_wire(wire.work_item_to_wire(withdrawal))
    assert isinstance(arrived, m.Withdrawal)
    assert arrived.reason == reason or not reason.isprintable() or len(reason) > 2_000
    wire.refusal_from_wire(wire.refusal_to_wire(m.Refusal(REF, reason, reason)))


def test_one_wait_is_never_longer_than_a_call():
    raw = pb.WorkRequest(software="x", wait_seconds=1e9).SerializeToString()
    assert wire.work_request_from_wire(raw).wait_seconds == 60.0


@pytest.mark.parametrize(
    "changes",
    [{"epsilon": -1.0}, {"epsilon": float("nan")}, {"epsilon": float("inf")}, {"delta": 0.0}, {"unit": "dog"}],
)
def test_a_published_epsilon_that_cannot_be_is_refused(changes: dict[str, object]):
    fields = {"ref": wire.ref_to_wire(REF), "layout_digest": bytes(32), "payload": pb.PAYLOAD_KIND_PLAIN, "length": 8}
    told = {"epsilon": 1.0, "delta": 1e-5, "unit": "patient"}
    right = pb.UpdateHeader(**fields, privacy=pb.PublishedEpsilon(**told))
    assert wire.header_from_wire(right.SerializeToString()).privacy == PublishedEpsilon(1.0, 1e-5, Unit.PATIENT)
    wrong = pb.UpdateHeader(**fields, privacy=pb.PublishedEpsilon(**(told | changes)))
    assert refused(wire.header_from_wire, wrong.SerializeToString())


@pytest.mark.parametrize("score", [1.01, -2.0, float("nan"), float("inf")])
def test_a_leakage_score_that_cannot_be_is_refused(score: float):
    fields = {"ref": wire.ref_to_wire(REF), "layout_digest": bytes(32), "payload": pb.PAYLOAD_KIND_PLAIN, "length": 8}
    assert wire.header_from_wire(pb.UpdateHeader(**fields).SerializeToString()).leakage_score is None
    least = wire.header_from_wire(pb.UpdateHeader(**fields, leakage_score=0.0).SerializeToString())
    assert least.leakage_score == 0
    assert refused(wire.header_from_wire, pb.UpdateHeader(**fields, leakage_score=score).SerializeToString())
