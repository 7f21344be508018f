"""What came stays, whatever happens next; what is no update is not taken."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fedveil.director.spool import Spool, SpooledUpdate
from fedveil.utils.errors import (
    DigestMismatchError,
    LengthMismatchError,
    MalformedMessageError,
    NonFiniteUpdateError,
    StorageError,
    UnsendableUpdateError,
)
from fedveil.utils.messages import TaskRef
from fedveil.utils.tensors import digest_of
from hypothesis import given, settings
from hypothesis import strategies as st

REF = TaskRef("lungs-1", 2, 1, "ab" * 32)
UPDATE = np.arange(1000, dtype=np.float32) - 500
RAW = UPDATE.tobytes()
DIGEST = digest_of(RAW)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "site-a.spool"


def opened(path: Path, ref: TaskRef = REF, length: int = len(RAW), *, durable: bool = False) -> Spool:
    return Spool(path, ref, length, durable=durable)


def stored(path: Path) -> np.ndarray:
    update = SpooledUpdate(path, "site-a", 1)
    out = np.empty(UPDATE.size, np.float32)
    try:
        update.read(0, out)
    finally:
        update.close()
    return out


@pytest.mark.parametrize("durable", [False, True])
def test_a_whole_update_is_read_back(path: Path, durable: bool):
    spool = opened(path, durable=durable)
    spool.write(RAW[:400])
    spool.write(memoryview(RAW)[400:])
    spool.finish(DIGEST)
    spool.close()
    assert np.array_equal(stored(path), UPDATE)


@pytest.mark.parametrize("tenth", range(11))
def test_an_upload_cut_at_any_tenth_goes_on_where_it_was_cut(path: Path, tenth: int):
    cut = len(RAW) * tenth // 10 // 4 * 4
    first = opened(path)
    if cut:
        first.write(RAW[:cut])
    first.close()  # what a kill -9 leaves is the same
    second = opened(path)
    assert second.offset == cut
    if cut < len(RAW):
        second.write(RAW[cut:])
    second.finish(DIGEST)
    second.close()
    assert np.array_equal(stored(path), UPDATE)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 250), st.booleans()), max_size=40))
def test_any_parts_with_any_breaks_give_the_same_update(tmp_path_factory: pytest.TempPathFactory, parts: list):
    path = tmp_path_factory.mktemp("spool") / "x.spool"
    spool = opened(path)
    for numbers, breaks in parts:
        part = RAW[spool.offset : spool.offset + 4 * numbers]
        if part:
            spool.write(part)
        if breaks:
            spool.close()
            spool = opened(path)
    if spool.offset < len(RAW):
        spool.write(RAW[spool.offset :])
    spool.finish(DIGEST)
    spool.close()
    assert np.array_equal(stored(path), UPDATE)


@pytest.mark.parametrize(
    "other",
    [TaskRef("lungs-2", 2, 1, "ab" * 32), TaskRef("lungs-1", 3, 1, "ab" * 32), TaskRef("lungs-1", 2, 2, "ab" * 32)],
)
def test_what_came_for_one_task_is_nothing_for_another(path: Path, other: TaskRef):
    spool = opened(path)
    spool.write(RAW[:400])
    spool.close()
    spool = opened(path, other)
    assert spool.offset == 0
    spool.write(RAW)
    spool.finish(DIGEST)
    spool.close()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1, 499, 998, 999])
def test_nan_and_infinity_are_refused_at_any_place_and_what_came_before_stays(path: Path, place: int, bad: float):
    broken = UPDATE.copy()
    broken[place] = bad
    spool = opened(path)
    spool.write(RAW[:0] + broken[: place // 2].tobytes())
    before = spool.offset
    with pytest.raises(NonFiniteUpdateError, match="NaN or infinity"):
        spool.write(broken[place // 2 :].tobytes())
    assert spool.offset == before
    spool.write(RAW[before:])
    spool.finish(DIGEST)
    spool.close()


def test_more_than_was_announced_is_refused_before_it_is_written(path: Path):
    spool = opened(path)
    spool.write(RAW[:3996])
    with pytest.raises(LengthMismatchError, match="4000 bytes was announced, at least 4004 came"):
        spool.write(RAW[:8])
    spool.close()
    assert path.stat().st_size == 64 + 3996


def test_less_than_was_announced_is_no_update(path: Path):
    spool = opened(path)
    spool.write(RAW[:400])
    with pytest.raises(LengthMismatchError, match="400 came"):
        spool.finish(digest_of(RAW[:400]))
    spool.close()
    assert opened(path).offset == 400


def test_half_a_number_is_malformed(path: Path):
    spool = opened(path)
    with pytest.raises(MalformedMessageError, match="whole float32 numbers"):
        spool.write(RAW[:6])
    spool.close()


def test_other_bytes_than_were_promised_are_forgotten(path: Path):
    spool = opened(path)
    spool.write(RAW[::-1].translate(bytes(256)))
    with pytest.raises(DigestMismatchError, match="send it again"):
        spool.finish(DIGEST)
    spool.close()
    again = opened(path)
    assert again.offset == 0
    again.write(RAW)
    again.finish(DIGEST)
    again.close()


@pytest.mark.parametrize("size", [0, 10, 64, 65, 66, 67, 68, 264])
def test_a_file_that_a_power_failure_cut_goes_on_at_a_whole_number(path: Path, size: int):
    spool = opened(path)
    spool.write(RAW)
    spool.close()
    os.truncate(path, size)
    spool = opened(path)
    assert spool.offset == (max(size - 64, 0) // 4 * 4 if size >= 40 else 0)
    spool.write(RAW[spool.offset :])
    spool.finish(DIGEST)
    spool.close()


def test_a_header_of_garbage_is_an_empty_spool(path: Path):
    path.write_bytes(b"\xff" * 200)
    assert opened(path).offset == 0


def test_a_header_that_lies_about_its_length_is_not_believed(path: Path):
    opened(path).write(RAW[:400])
    with path.open("r+b") as file:
        file.seek(32)
        file.write(b"\xff" * 8)
    assert opened(path).offset == 400


def test_a_stored_update_that_was_cut_on_disk_is_said_so(path: Path):
    spool = opened(path)
    spool.write(RAW)
    spool.close()
    os.truncate(path, 2000)
    with pytest.raises(UnsendableUpdateError, match="what site-a had sent is damaged or gone"):
        stored(path)


_FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from fedveil.director.spool import Spool
from fedveil.utils.errors import StorageError
from fedveil.utils.messages import TaskRef
from fedveil.utils.tensors import digest_of

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
raw = np.arange(100_000, dtype=np.float32).tobytes()
spool = Spool(Path(sys.argv[1]), TaskRef("lungs-1", 1, 1, "ab" * 32), len(raw), durable=False)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, hard))
spool.write(raw[:200_000])
try:
    spool.write(raw[200_000:])
except StorageError as error:
    print(error)
assert spool.offset == 200_000
spool.close()
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
spool = Spool(Path(sys.argv[1]), TaskRef("lungs-1", 1, 1, "ab" * 32), len(raw), durable=False)
assert spool.offset == 200_000
spool.write(raw[200_000:])
spool.finish(digest_of(raw))
print("whole")
"""


def test_a_full_disk_is_said_and_the_upload_goes_on_once_there_is_room(path: Path):
    done = subprocess.run([sys.executable, "-c", _FULL, str(path)], capture_output=True, text=True, check=True)
    assert "the director's disk is full" in done.stdout
    assert "make room, the upload then goes on" in done.stdout
    assert done.stdout.endswith("whole\n")


def test_a_file_that_cannot_be_made_is_a_storage_error(path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(StorageError, match="disk is full"):
        opened(path)
