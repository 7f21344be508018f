"""Turns to upload: few at a time, nobody waits for ever, and a stream is worth what its grant says."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fedveil.director.uploads import Received, Uploads
from fedveil.utils.errors import (
    DigestMismatchError,
    FederationError,
    LengthMismatchError,
    MalformedMessageError,
    NonFiniteUpdateError,
    ProtocolError,
)
from fedveil.utils.messages import Closing, Data, Opening, Part, TaskRef, Turn, UpdateHeader, Wait
from fedveil.utils.tensors import digest_of

REF = TaskRef("lungs-1", 1, 1, "ab" * 32)
UPDATE = np.linspace(-1, 1, 2000, dtype=np.float32)
RAW = UPDATE.tobytes()
DIGEST = digest_of(RAW)
HEADER = UpdateHeader(REF, "cd" * 32, len(RAW), 5)


def make(folder: Path, slots: int = 2, patience_seconds: float = 60.0) -> Uploads:
    return Uploads(folder / "uploads", slots, durable=False, patience_seconds=patience_seconds)


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    return make(tmp_path)


def turn(uploads: Uploads, envoy: str = "site-a", timeout_seconds: float = 5.0) -> Turn:
    given = uploads.turn(envoy, HEADER, timeout_seconds)
    assert isinstance(given, Turn)
    return given


def parts_of(given: Turn, raw: bytes = RAW, size: int = 400) -> Iterator[Part]:
    yield Opening(len(RAW), given.offset, given.grant)
    for start in range(given.offset, len(raw), size):
        yield Data(raw[start : start + size])
    yield Closing(DIGEST)


def take(uploads: Uploads, parts: Iterator[Part], envoy: str = "site-a") -> Received:
    return uploads.receive(envoy, parts, lambda: None)


def is_whole(uploads: Uploads, envoy: str = "site-a") -> bool:
    out = np.empty(UPDATE.size, np.float32)
    update = uploads.stored(envoy, 5)
    update.read(0, out)
    update.close()
    return np.array_equal(out, UPDATE)


def send_whole(uploads: Uploads, envoy: str = "site-a") -> None:
    """After whatever went wrong before: the right update is taken."""
    assert take(uploads, parts_of(turn(uploads, envoy)), envoy) == Received(HEADER, DIGEST)
    assert is_whole(uploads, envoy)


def test_an_update_is_taken_and_heard_on_the_way(uploads: Uploads):
    heard = []
    received = uploads.receive("site-a", parts_of(turn(uploads)), lambda: heard.append(1))
    assert received == Received(HEADER, DIGEST)
    assert len(heard) >= 20
    assert is_whole(uploads)


@pytest.mark.parametrize("tenth", range(10))
def test_a_stream_cut_at_any_tenth_is_resumed_to_the_same_digest(uploads: Uploads, tenth: int):
    cut = len(RAW) * tenth // 10

    def broken(given: Turn) -> Iterator[Part]:
        yield Opening(len(RAW), given.offset, given.grant)
        if cut:
            yield Data(RAW[:cut])

    with pytest.raises(MalformedMessageError, match=f"ended at {cut} bytes"):
        take(uploads, broken(turn(uploads)))
    assert turn(uploads).offset == cut
    send_whole(uploads)


def test_a_stream_whose_line_breaks_leaves_its_slot(tmp_path: Path):
    uploads = make(tmp_path, slots=1)

    def broken(given: Turn) -> Iterator[Part]:
        yield Opening(len(RAW), given.offset, given.grant)
        yield Data(RAW[:800])
        raise ConnectionError

    with pytest.raises(ConnectionError):
        take(uploads, broken(turn(uploads)))
    send_whole(uploads, "site-b")
    assert turn(uploads, "site-a").offset == 800


@pytest.mark.parametrize("place", [0, 1, 99, 100, 1000, 1998, 1999])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_at_any_place_is_refused_and_the_right_update_is_still_taken(uploads: Uploads, place: int, bad: float):
    broken = UPDATE.copy()
    broken[place] = bad
    with pytest.raises(NonFiniteUpdateError):
        take(uploads, parts_of(turn(uploads), broken.tobytes()))
    send_whole(uploads)


def _opening(**changes: object) -> list[Part]:
    fields = {"length": len(RAW), "offset": 0}
    return [Opening(**(fields | changes)), Data(RAW), Closing(DIGEST)]


@pytest.mark.parametrize(
    ("parts", "error", "words"),
    [
        (_opening(length=len(RAW) + 4), ProtocolError, "expected 0 of 8000"),
        (_opening(length=1 << 40), ProtocolError, "opens at 0 of 1099511627776"),
        (_opening(length=4), ProtocolError, "opens at 0 of 4 bytes"),
        (_opening(offset=4), ProtocolError, "opens at 4"),
        ([Opening(len(RAW)), Data(RAW), Data(RAW[:4]), Closing(DIGEST)], LengthMismatchError, "at least 8004 came"),
        ([Opening(len(RAW)), Data(RAW[:4000]), Closing(DIGEST)], LengthMismatchError, "4000 came"),
        ([Opening(len(RAW)), Closing(DIGEST)], LengthMismatchError, "0 came"),
        ([Opening(len(RAW)), Data(RAW), Closing("ef" * 32)], DigestMismatchError, "send it again"),
        ([Opening(len(RAW)), Data(bytes(len(RAW))), Closing(DIGEST)], DigestMismatchError, "send it again"),
        ([Opening(len(RAW)), Opening(len(RAW))], MalformedMessageError, "opens twice"),
        ([Opening(len(RAW)), Data(RAW[:5])], MalformedMessageError, "whole float32"),
        ([Opening(len(RAW))], MalformedMessageError, "without a closing"),
        ([Data(RAW)], MalformedMessageError, "starts with an opening"),
        ([Closing(DIGEST)], MalformedMessageError, "starts with an opening"),
        ([], MalformedMessageError, "starts with an opening"),
    ],
)
def test_what_is_no_upload_is_refused_and_the_right_one_is_still_taken(
    uploads: Uploads, parts: list[Part], error: type[FederationError], words: str
):
    grant = turn(uploads).grant
    with_grant = [Opening(p.length, p.offset, grant, p.digest) if isinstance(p, Opening) else p for p in parts]
    with pytest.raises(error, match=words):
        take(uploads, iter(with_grant))
    send_whole(uploads)


def test_a_lying_length_makes_no_file_larger(uploads: Uploads):
    given = turn(uploads)
    with pytest.raises(ProtocolError):
        take(uploads, iter([Opening(1 << 40, 0, given.grant), Data(RAW)]))
    assert uploads.path("site-a").stat().st_size <= 64


@pytest.mark.parametrize("grant", ["", "0" * 32])
def test_an_upload_without_a_turn_is_refused(uploads: Uploads, grant: str):
    with pytest.raises(ProtocolError, match="site-a has no turn"):
        take(uploads, iter([Opening(len(RAW), 0, grant), Data(RAW), Closing(DIGEST)]))


def test_the_turn_of_another_is_refused_and_stays_the_others(uploads: Uploads):
    given = turn(uploads, "site-b")
    with pytest.raises(ProtocolError, match="site-a has no turn"):
        take(uploads, parts_of(given), "site-a")
    assert take(uploads, parts_of(given), "site-b").digest == DIGEST


def test_a_turn_is_good_once(uploads: Uploads):
    given = turn(uploads)
    take(uploads, parts_of(given))
    with pytest.raises(ProtocolError, match="no turn"):
        take(uploads, parts_of(given))


def test_a_turn_whose_stream_is_open_opens_no_second_one(uploads: Uploads):
    given = turn(uploads)
    refused = []

    def parts() -> Iterator[Part]:
        for part in parts_of(given):
            yield part
            if not refused:
                with pytest.raises(ProtocolError, match="no turn") as caught:
                    take(uploads, parts_of(given))
                refused.append(caught.value)

    assert take(uploads, parts()).digest == DIGEST
    assert refused


def test_a_new_turn_of_an_envoy_ends_its_old_stream(uploads: Uploads):
    def parts(given: Turn) -> Iterator[Part]:
        yield from list(parts_of(given))[:3]
        turn(uploads)  # its line broke, and it is back before the director noticed
        yield Data(RAW[800:1200])

    with pytest.raises(ProtocolError, match="asked for another turn"):
        take(uploads, parts(turn(uploads)))
    send_whole(uploads)


def test_only_so_many_upload_at_once_and_the_next_comes_when_one_is_done(tmp_path: Path):
    uploads = make(tmp_path, slots=2)
    first, _ = turn(uploads, "site-a"), turn(uploads, "site-b")
    assert uploads.turn("site-c", HEADER, 0.05) == Wait(REF)
    given: list[Turn] = []
    waiting = threading.Thread(target=lambda: given.append(turn(uploads, "site-c", 30.0)))
    waiting.start()
    take(uploads, parts_of(first))
    waiting.join(60.0)
    assert given
    assert take(uploads, parts_of(given[0]), "site-c").digest == DIGEST


def test_whoever_waited_long_enough_gets_a_turn_though_no_slot_is_free(tmp_path: Path):
    uploads = make(tmp_path, slots=1, patience_seconds=0.2)
    slow = turn(uploads, "site-a")
    stream = parts_of(slow)
    pulled = threading.Event()
    released = threading.Event()

    def slowly() -> Iterator[Part]:
        yield next(stream)
        pulled.set()
        released.wait(30.0)
        yield from stream

    received = []
    thread = threading.Thread(target=lambda: received.append(take(uploads, slowly())))
    thread.start()
    assert pulled.wait(60.0)
    started = time.monotonic()
    send_whole(uploads, "site-b")
    assert time.monotonic() - started >= 0.2
    released.set()
    thread.join(60.0)
    assert received == [Received(HEADER, DIGEST)]


def test_turns_come_in_the_order_in_which_they_were_asked_for(tmp_path: Path):
    uploads = make(tmp_path, slots=1)
    holder = turn(uploads, "site-0")
    order: list[str] = []

    def ask(name: str) -> None:
        given = turn(uploads, name, 30.0)
        order.append(name)
        take(uploads, parts_of(given), name)

    threads = []
    for number in range(1, 5):
        threads.append(threading.Thread(target=ask, args=(f"site-{number}",)))
        threads[-1].start()
        _until(lambda waiting=number: len(uploads._queue) == waiting)
    take(uploads, parts_of(holder), "site-0")
    for thread in threads:
        thread.join(60.0)
    assert order == [f"site-{number}" for number in range(1, 5)]


def test_a_turn_that_nobody_uses_is_given_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fedveil.director.uploads._UNCLAIMED_SECONDS", 0.05)
    uploads = make(tmp_path, slots=1)
    forgotten = turn(uploads, "site-a")
    send_whole(uploads, "site-b")
    with pytest.raises(ProtocolError, match="no turn"):
        take(uploads, parts_of(forgotten))


def test_an_upload_survives_a_restart_of_the_director(tmp_path: Path):
    uploads = make(tmp_path)
    with pytest.raises(MalformedMessageError):
        take(uploads, iter([Opening(len(RAW), 0, turn(uploads).grant), Data(RAW[:4000])]))
    restarted = make(tmp_path)
    assert turn(restarted).offset == 4000
    send_whole(restarted)


def _until(is_so) -> None:
    deadline = time.monotonic() + 60.0
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.002)
