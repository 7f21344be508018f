"""Over real sockets: what is no update is refused with the reason, and the round loses nothing by it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
from fedveil.utils import messages as m
from fedveil.utils import transport, wire
from fedveil.utils.errors import (
    DigestMismatchError,
    FederationError,
    LayoutMismatchError,
    LengthMismatchError,
    MalformedMessageError,
    NonFiniteUpdateError,
    NotInvitedError,
    ProtocolError,
    UnreachableError,
    UnsendableUpdateError,
    WrongRoundError,
)
from fedveil.utils.metrics import auc_of, mean_of
from fedveil.utils.tensors import digest_of

ELEMENTS = 10_000
UPDATE = np.full(ELEMENTS, 3.0, np.float32)
RAW = UPDATE.tobytes()
OTHER = "ef" * 32


def announce(**changes: object) -> Callable[[Any], object]:
    def say(opened) -> object:
        changed = {k: v(opened) if callable(v) else v for k, v in changes.items()}
        return opened.bad.client.request_upload(opened.bad.header(opened.task, **changed))

    return say


def with_ref(**changes: object) -> Callable[[Any], m.TaskRef]:
    return lambda opened: replace(opened.task.ref, **changes)


@pytest.mark.parametrize(
    ("say", "error", "words"),
    [
        (announce(ref=with_ref(round=2)), WrongRoundError, "round 1 of toy-1 is open; site-c answers round 2"),
        (announce(ref=with_ref(attempt=2)), WrongRoundError, r"answers round 1 \(attempt 2\)"),
        (announce(ref=with_ref(run="toy-2")), WrongRoundError, "answers round 1 of toy-2"),
        (announce(ref=with_ref(plan=OTHER)), WrongRoundError, "under another plan"),
        (announce(layout=OTHER), LayoutMismatchError, "site-c announces layout efefefefefef, expected"),
        (announce(length=len(RAW) - 4), LengthMismatchError, "announces 39996 bytes, expected 40000"),
        (announce(length=len(RAW) + 4), LengthMismatchError, "announces 40004 bytes"),
        (announce(length=1 << 40), LengthMismatchError, "announces 1099511627776 bytes"),
        (announce(length=1 << 41), MalformedMessageError, "an update's length is"),
        (
            announce(payload=m.PayloadKind.CODED, codec=OTHER),
            UnsendableUpdateError,
            "site-c announces a coded update of codec efefefefefef, expected a plain update without a codec",
        ),
        (announce(codec=OTHER), MalformedMessageError, "a plain payload with a codec"),
        (announce(payload=m.PayloadKind.CODED), MalformedMessageError, "a coded payload without a codec"),
    ],
)
def test_what_announces_another_update_is_refused_before_a_byte_is_sent(
    opened, say: Callable[[Any], object], error: type[FederationError], words: str
):
    with pytest.raises(error, match=words) as caught:
        say(opened)
    assert type(caught.value) is error
    opened.closes_with_everybody()


def parts_of(turn: m.Turn, update: np.ndarray, size: int = 4_000) -> list[m.Part]:
    raw = update.tobytes()
    data = [m.Data(raw[start : start + size]) for start in range(turn.offset, len(raw), size)]
    return [m.Opening(len(raw), turn.offset, turn.grant), *data, m.Closing(digest_of(raw))]


def broken_at(place: int, number: float) -> list[m.Part]:
    update = UPDATE.copy()
    update[place] = number
    return parts_of(m.Turn(m.TaskRef("x", 1, 1, OTHER), "", 0, 0), update)


@pytest.mark.parametrize(
    ("parts", "error", "words"),
    [
        (broken_at(0, np.nan), NonFiniteUpdateError, "NaN or infinity"),
        (broken_at(ELEMENTS // 2, np.inf), NonFiniteUpdateError, "NaN or infinity"),
        (broken_at(ELEMENTS - 1, -np.inf), NonFiniteUpdateError, "NaN or infinity"),
        ([m.Opening(len(RAW)), m.Data(RAW), m.Closing(OTHER)], DigestMismatchError, "send it again"),
        ([m.Opening(len(RAW)), m.Data(RAW[:-4]), m.Closing(OTHER)], LengthMismatchError, "39996 came"),
        ([m.Opening(len(RAW)), m.Data(RAW + RAW), m.Closing(OTHER)], LengthMismatchError, "at least 80000 came"),
        ([m.Opening(len(RAW) * 2), m.Data(RAW)], ProtocolError, "opens at 0 of 80000 bytes, expected 0 of 40000"),
        ([m.Opening(1 << 40), m.Data(RAW)], ProtocolError, "opens at 0 of 1099511627776"),
        ([m.Opening(1 << 41), m.Data(RAW)], MalformedMessageError, "the length of a stream"),
        ([m.Opening(len(RAW), 4), m.Data(RAW[4:])], ProtocolError, "opens at 4"),
        ([m.Opening(len(RAW)), m.Data(RAW)], MalformedMessageError, "without a closing"),
        ([m.Opening(len(RAW)), m.Data(RAW[:6])], MalformedMessageError, "whole float32"),
        ([m.Data(RAW)], MalformedMessageError, "starts with an opening"),
        ([], MalformedMessageError, "starts with an opening"),
    ],
)
def test_a_stream_that_is_not_the_update_is_refused_and_the_right_one_is_still_taken(
    opened, parts: list[m.Part], error: type[FederationError], words: str
):
    grant = opened.bad.turn(opened.task, 2).grant
    said = [replace(part, grant=grant) if isinstance(part, m.Opening) else part for part in parts]
    with pytest.raises(error, match=words) as caught:
        opened.bad.client.upload(said)
    assert type(caught.value) is error
    spool = opened.federation.folder / "uploads" / "site-c.spool"
    assert spool.stat().st_size <= 64 + len(RAW)
    opened.closes_with_everybody()


def test_an_update_that_comes_twice_counts_once(opened):
    first = opened.bad.send(opened.task, 3.0, 2)
    assert opened.bad.client.request_upload(opened.bad.header(opened.task, 2)) == first
    assert opened.bad.client.request_upload(opened.bad.header(opened.task, 1000)) == first
    opened.closes()


def test_a_second_stream_beside_the_first_changes_nothing(opened):
    """Its line broke and it asked again; then both streams end."""
    old = opened.bad.turn(opened.task, 2)
    new = opened.bad.turn(opened.task, 2)
    opened.bad.client.upload(parts_of(new, UPDATE))
    with pytest.raises(ProtocolError, match="no turn"):
        opened.bad.client.upload(parts_of(old, UPDATE * 100))
    opened.closes()


@pytest.mark.parametrize("grant", ["", "0" * 32])
def test_an_upload_without_a_turn_is_refused(opened, grant: str):
    with pytest.raises(ProtocolError, match="site-c has no turn to upload"):
        opened.bad.client.upload([m.Opening(len(RAW), 0, grant), m.Data(RAW), m.Closing(digest_of(RAW))])
    opened.closes_with_everybody()


def test_the_turn_of_another_is_refused_and_stays_the_others(opened):
    theirs = opened.good[0].turn(opened.task, 1)
    with pytest.raises(ProtocolError, match="site-c has no turn"):
        opened.bad.client.upload(parts_of(theirs, UPDATE))
    opened.good[0].client.upload(parts_of(theirs, np.full(ELEMENTS, 1.0, np.float32)))
    opened.good[1].send(opened.task, 2.0, 1)
    opened.bad.send(opened.task, 3.0, 2)
    view = opened.federation.finished(opened.run)
    assert np.array_equal(opened.federation.model(view), np.full(ELEMENTS, 2.25, np.float32))


def test_one_who_was_not_asked_is_refused_whatever_it_says(opened):
    outsider = opened.federation.puppet("site-d")
    header = outsider.header(opened.task)
    with pytest.raises(NotInvitedError, match="site-d was not asked to take part in round 1"):
        outsider.client.request_upload(header)
    with pytest.raises(NotInvitedError):
        outsider.client.decline(m.Refusal(opened.task.ref, "PlanError", "no"))
    with pytest.raises(ProtocolError):
        outsider.client.report(m.MetricsReport(opened.task.ref, ()))
    with pytest.raises(ProtocolError, match="site-d has no turn"):
        outsider.client.upload(parts_of(opened.bad.turn(opened.task, 2), UPDATE))
    opened.closes_with_everybody()


def test_metrics_alone_are_no_answer_to_a_training_task(opened):
    with pytest.raises(ProtocolError, match="asks for an update, site-c reports metrics alone"):
        opened.bad.client.report(m.MetricsReport(opened.task.ref, (mean_of("loss", 1, 1),)))
    opened.closes_with_everybody()


def test_an_envoy_that_means_another_kind_of_metric_shuts_nobody_out(opened):
    first, second = opened.good
    for envoy, value, number, metric in (
        (opened.bad, 3.0, 2, auc_of("loss", [0.5], [1])),
        (first, 1.0, 1, mean_of("loss", 1, 1)),
        (second, 2.0, 1, mean_of("loss", 1, 1)),
    ):
        given = envoy.client.request_upload(envoy.header(opened.task, number, metrics=(metric,)))
        assert isinstance(given, m.Turn)
        envoy.client.upload(parts_of(given, np.full(ELEMENTS, value, np.float32)))
    view = opened.federation.finished(opened.run)
    assert (view.state, view.rounds[0].metrics) == ("finished", {"loss": 1.0})


def test_metrics_that_no_float_can_sum_are_refused(opened):
    metrics = (mean_of("loss", 1.7e308, 1),)
    with pytest.raises(MalformedMessageError, match="lie within 1e"):
        opened.bad.client.request_upload(opened.bad.header(opened.task, metrics=metrics))
    opened.closes_with_everybody()


def test_a_metric_without_a_finite_value_leaves_the_operators_view_readable(opened):
    metrics = (mean_of("loss", 1e100, 5e-324),)
    given = opened.bad.client.request_upload(opened.bad.header(opened.task, 2, metrics=metrics))
    assert isinstance(given, m.Turn)
    opened.bad.client.upload(parts_of(given, UPDATE))
    opened.closes()


@pytest.mark.parametrize("tenth", range(10))
def test_a_stream_cut_at_any_tenth_is_resumed_to_the_same_receipt(opened, tenth: int):
    """The line really breaks: the call is cancelled, and the next turn starts behind what came."""
    cut = len(RAW) * tenth // 10
    client, task = opened.bad.client, opened.task
    turn = opened.bad.turn(task, 2)
    sent, never = threading.Event(), threading.Event()

    def half() -> object:
        yield m.Opening(len(RAW), 0, turn.grant)
        if cut:
            yield m.Data(RAW[:cut])
        sent.set()
        never.wait(20.0)

    call = client._upload.future(half())
    assert sent.wait(60.0)
    spool = opened.federation.folder / "uploads" / "site-c.spool"
    opened.federation.until(lambda: int.from_bytes(spool.read_bytes()[32:40], "little") == cut)
    call.cancel()
    never.set()
    again = opened.bad.turn(task, 2)
    assert again.offset == cut
    receipt = client.upload(parts_of(again, UPDATE))
    assert receipt == m.Receipt(task.ref, digest_of(RAW), len(RAW))
    opened.closes()


def _raw_upload(opened, *raws: bytes) -> bytes:
    call = opened.bad.client._channel.stream_unary(f"/{transport.FEDERATION}/Upload")
    try:
        return call(iter(raws), timeout=60.0)
    except grpc.RpcError as failure:
        raise transport.error_of(failure) from failure


def test_a_part_of_more_than_four_mebibytes_is_refused(opened):
    opening = wire.part_to_wire(m.Opening(len(RAW), 0, opened.bad.turn(opened.task, 2).grant))
    with pytest.raises(MalformedMessageError, match="a part announces 4194308 bytes"):
        _raw_upload(opened, opening, wire.part_to_wire(m.Data(bytes(m.MAX_PART_BYTES + 4))))
    opening = wire.part_to_wire(m.Opening(len(RAW), 0, opened.bad.turn(opened.task, 2).grant))
    with pytest.raises(UnreachableError, match=r"(?i)larger than max"):
        _raw_upload(opened, opening, wire.part_to_wire(m.Data(bytes(2 * m.MAX_PART_BYTES))))
    opened.closes_with_everybody()


@pytest.mark.parametrize("raw", [b"", b"\x12", b"\x12\xff\xff\xff\xff\x7fabc", b"\xff" * 50])
def test_bytes_that_are_no_part_are_refused(opened, raw: bytes):
    with pytest.raises(MalformedMessageError):
        _raw_upload(opened, raw)
    opened.closes_with_everybody()


@pytest.mark.parametrize("method", ["RequestUpload", "ReportMetrics", "Decline", "Beat", "NextWork"])
def test_bytes_that_are_no_message_are_refused(opened, method: str):
    call = opened.bad.client._channel.unary_unary(f"/{transport.FEDERATION}/{method}")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"\xff" * 50, timeout=60.0)
    assert isinstance(transport.error_of(caught.value), MalformedMessageError)
    opened.closes_with_everybody()


def test_an_update_after_the_round_closed_is_refused(federation):
    good, late = federation.attending("site-a", "site-b")
    run = federation.submit(quorum=1, rounds=2, approvals=2)
    task = late.task()
    turn = late.turn(task)
    good.task()
    late.client.decline(m.Refusal(task.ref, "PlanError", "no"))
    good.send(task, 1.0)
    following = good.task()
    assert following.ref.round == 2
    with pytest.raises(WrongRoundError, match="round 1 of toy-1 is over and takes no more updates"):
        late.client.upload(parts_of(turn, UPDATE))
    with pytest.raises(WrongRoundError):
        late.client.request_upload(late.header(task))
    assert late.task() == replace(following, seconds_left=following.seconds_left)
    good.send(following, 1.0)
    late.send(following, 1.0)
    view = federation.finished(run)
    assert np.array_equal(federation.model(view), np.full(ELEMENTS, 2.0, np.float32))


def test_an_update_while_nothing_runs_is_refused(federation):
    (envoy,) = federation.attending("site-a")
    ref = m.TaskRef("toy-1", 1, 1, federation.bundle.digest)
    with pytest.raises(WrongRoundError, match="no round is open; site-a answers round 1 of toy-1"):
        envoy.client.request_upload(m.UpdateHeader(ref, OTHER, 4, 1))


def test_the_same_answer_after_its_round_closed_gets_its_receipt(federation):
    """The receipt was lost with the line; the round closed meanwhile."""
    (envoy,) = federation.attending("site-a")
    run = federation.submit(quorum=1)
    task = envoy.task()
    receipt = envoy.send(task, 1.0)
    federation.finished(run)
    assert envoy.client.request_upload(envoy.header(task)) == receipt


def test_one_who_waited_for_a_turn_while_its_update_came_another_way_gets_the_receipt(opened, monkeypatch):
    uploads = opened.federation.director._coordinator._uploads
    give = uploads.turn

    def late(envoy: str, header: m.UpdateHeader, timeout_seconds: float) -> m.Turn | m.Wait:
        monkeypatch.undo()
        opened.bad.client.upload(parts_of(opened.bad.turn(opened.task, 2), UPDATE))
        return give(envoy, header, timeout_seconds)

    monkeypatch.setattr(uploads, "turn", late)
    receipt = opened.bad.client.request_upload(opened.bad.header(opened.task, 1000))
    assert receipt == m.Receipt(opened.task.ref, digest_of(RAW), len(RAW))
    opened.closes()


def test_two_streams_of_one_update_of_which_the_first_was_thought_broken_get_one_receipt(opened):
    uploads = opened.federation.director._coordinator._uploads
    opened.bad.client.upload(parts_of(opened.bad.turn(opened.task, 2), UPDATE))
    again = uploads.turn("site-c", opened.bad.header(opened.task, 2), 5.0)
    assert isinstance(again, m.Turn)
    assert again.offset == len(RAW)
    receipt = opened.bad.client.upload(parts_of(again, UPDATE))
    assert receipt == m.Receipt(opened.task.ref, digest_of(RAW), len(RAW))
    opened.closes()
