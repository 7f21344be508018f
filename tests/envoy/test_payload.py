"""What is checked is what leaves: payloads are held where a plan cannot change them."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
import pytest
from fedveil.envoy.payload import PAYLOAD_FILE, UPDATE_FILE, Payloads
from fedveil.utils.errors import DigestMismatchError, LengthMismatchError, StorageError
from fedveil.utils.tensors import digest_of

UPDATE = np.arange(1000, dtype=np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / UPDATE_FILE).write_bytes(UPDATE.tobytes())
    return tmp_path


def test_a_plan_that_writes_to_its_mapped_update_changes_nothing_that_was_taken(folder):
    payloads = Payloads(folder)
    with (folder / UPDATE_FILE).open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        update = payloads.take_update(4000)
        name, digest = payloads.keep(update, update)
        mapped[:] = b"\xff" * 4000
        assert bytes(payloads.view(name, digest, 4000)) == UPDATE.tobytes()


def test_an_unchanged_update_is_kept_in_its_own_file_and_another_payload_in_one_of_ours(folder):
    payloads = Payloads(folder)
    update = payloads.take_update(4000)
    assert payloads.keep(update, update) == (UPDATE_FILE, digest_of(UPDATE.tobytes()))
    assert not (folder / PAYLOAD_FILE).exists()
    half = update / 2
    assert payloads.keep(half, update) == (PAYLOAD_FILE, digest_of(half.tobytes()))
    assert (folder / PAYLOAD_FILE).read_bytes() == half.tobytes()
    assert not (folder / PAYLOAD_FILE).stat().st_mode & 0o077


@pytest.mark.parametrize("sizes", [(1000, 10), (10, 1000), (10, 10)])
def test_a_later_payload_takes_the_place_of_an_earlier_one_whatever_its_length(folder, sizes):
    payloads = Payloads(folder)
    for size in sizes:
        payload = np.full(size, size, np.float32)
        payloads.keep(payload, UPDATE)
        assert (folder / PAYLOAD_FILE).read_bytes() == payload.tobytes()


@pytest.mark.parametrize("is_changed", [False, True])
def test_another_process_finds_the_same_bytes(folder, is_changed):
    before = Payloads(folder)
    update = before.take_update(4000)
    payload = update + 1 if is_changed else update
    name, digest = before.keep(payload, update)
    assert bytes(Payloads(folder).view(name, digest, 4000)) == payload.tobytes()


def test_bytes_that_were_changed_on_disk_are_not_sent_by_another_process(folder):
    update = Payloads(folder).take_update(4000)
    name, digest = Payloads(folder).keep(update + 1, update)
    with (folder / name).open("r+b") as file:
        file.write(b"\x01")
    with pytest.raises(DigestMismatchError, match="no longer what was to be sent"):
        Payloads(folder).view(name, digest, 4000)


def test_taking_the_next_update_forgets_the_last_payload(folder):
    payloads = Payloads(folder)
    update = payloads.take_update(4000)
    name, digest = payloads.keep(update, update)
    (folder / UPDATE_FILE).write_bytes((UPDATE + 1).tobytes())
    payloads.take_update(4000)
    with pytest.raises(DigestMismatchError):
        payloads.view(name, digest, 4000)


@pytest.mark.parametrize("length", [0, 3996, 4004])
def test_an_update_of_another_length_is_not_taken(folder, length):
    with pytest.raises(LengthMismatchError, match=f"has 4000 bytes, the plan's layout {length}"):
        Payloads(folder).take_update(length)


@pytest.mark.parametrize("kind", ["missing", "pipe", "link", "folder"])
def test_what_is_no_file_is_refused_and_never_waited_for(folder, kind):
    path = folder / UPDATE_FILE
    path.rename(folder / "elsewhere")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(folder / "elsewhere")
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(StorageError, match=r"update\.f32"):
        Payloads(folder).take_update(4000)


def test_a_payload_is_not_written_into_a_pipe(folder):
    os.mkfifo(folder / PAYLOAD_FILE)
    with pytest.raises(StorageError, match="no room"):
        Payloads(folder).keep(UPDATE, UPDATE + 1)


def test_a_payload_is_not_written_through_a_link(folder):
    (folder / PAYLOAD_FILE).symlink_to(folder / "elsewhere")
    with pytest.raises(StorageError, match="no room"):
        Payloads(folder).keep(UPDATE, UPDATE + 1)
    assert not (folder / "elsewhere").exists()
