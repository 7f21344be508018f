"""Content-addressed files: whole or not there."""

from __future__ import annotations

import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fedveil.utils import artifacts
from fedveil.utils.artifacts import ArtifactStore
from fedveil.utils.errors import DigestMismatchError, LengthMismatchError, StorageError, UnknownArtifactError
from fedveil.utils.tensors import Digest, digest_of
from hypothesis import given, settings
from hypothesis import strategies as st

ABC = Digest("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")


@pytest.fixture(params=[False, True], ids=["plain", "durable"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "models", durable=request.param)


def names(store: ArtifactStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def test_an_artifact_is_named_by_its_sha256_and_read_back_whole(store: ArtifactStore) -> None:
    assert store.put([b"a", memoryview(b"b"), b"", b"c"]) == ABC
    assert (store.read(ABC), store.size(ABC), store.has(ABC)) == (b"abc", 3, True)
    assert store.path(ABC) == store.folder / ABC
    store.check(ABC)
    assert names(store) == [ABC]


def test_views_of_vectors_are_taken_without_a_copy_also_empty_ones(store: ArtifactStore) -> None:
    vector = np.arange(5, dtype=np.float32)
    digest = store.put([vector.data, vector[:0].data])
    assert store.read(digest) == vector.tobytes()


def test_the_same_bytes_twice_are_one_artifact(store: ArtifactStore) -> None:
    assert store.put([b"abc"]) == store.put([b"ab", b"c"])
    assert names(store) == [ABC]


@given(st.lists(st.binary(max_size=50), max_size=8))
@settings(deadline=None)
def test_how_the_bytes_are_cut_does_not_matter(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]) -> None:
    store = ArtifactStore(tmp_path_factory.mktemp("cut"), durable=False)
    whole = b"".join(pieces)
    assert store.put(pieces) == digest_of(whole)
    store.discard_except(())
    with store.receive(digest_of(whole), len(whole)) as receiving:
        for piece in pieces:
            receiving.write(piece)
    assert store.read(digest_of(whole)) == whole


@pytest.mark.parametrize(
    "name", ["", "../passwd", "a" * 63, "A" * 64, f"{'a' * 63}/", f"../{'a' * 61}", f"{'a' * 64}\n"]
)
def test_a_name_that_is_no_sha256_never_reaches_the_file_system(store: ArtifactStore, name: str) -> None:
    assert not store.has(Digest(name))
    for ask in (store.path, store.read, store.size, store.check, lambda digest: store.receive(digest, 1)):
        with pytest.raises(UnknownArtifactError, match="named by a SHA-256"):
            ask(Digest(name))


def test_what_is_not_here_is_unknown(store: ArtifactStore) -> None:
    with pytest.raises(UnknownArtifactError, match="no artifact ba7816bf8f01 here"):
        store.path(ABC)


def test_damage_is_noticed(store: ArtifactStore) -> None:
    store.put([b"abc"])
    store.path(ABC).write_bytes(b"abd")
    with pytest.raises(DigestMismatchError, match="is damaged"):
        store.check(ABC)
    store.put([b"abc"])
    store.check(ABC)


def test_a_source_that_fails_midway_leaves_nothing(store: ArtifactStore) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"ab"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.put(pieces())
    assert names(store) == []


def test_more_than_announced_is_refused_before_it_is_written(store: ArtifactStore) -> None:
    receiving = store.receive(ABC, 3)
    receiving.write(b"ab")
    with pytest.raises(LengthMismatchError, match="3 bytes were announced, more than 4 came"):
        receiving.write(b"cd")
    assert receiving.received == 2
    receiving.write(b"c")
    receiving.close()
    receiving.close()
    assert store.read(ABC) == b"abc"


def test_less_than_announced_is_refused_and_leaves_nothing(store: ArtifactStore) -> None:
    with pytest.raises(LengthMismatchError, match="3 bytes were announced, 2 came"), store.receive(ABC, 3) as receiving:
        receiving.write(b"ab")
    assert names(store) == []


def test_other_bytes_than_announced_are_refused_and_leave_nothing(store: ArtifactStore) -> None:
    with pytest.raises(DigestMismatchError, match="announced"), store.receive(ABC, 3) as receiving:
        receiving.write(b"abd")
    assert names(store) == []


def test_a_line_that_breaks_for_good_leaves_nothing(store: ArtifactStore) -> None:
    def line() -> Iterator[bytes]:
        yield b"ab"
        raise ConnectionError

    with pytest.raises(ConnectionError), store.receive(ABC, 3) as receiving:
        deque(map(receiving.write, line()))
    assert names(store) == []


def test_a_lying_length_is_refused_before_a_byte_is_written(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(StorageError, match=r"needs 11 bytes in .*, 10 are free; make room"):
        store.receive(ABC, 11)
    with pytest.raises(ValueError, match="negative"):
        store.receive(ABC, -1)
    assert names(store) == []


def test_old_models_are_discarded_and_kept_ones_stay(store: ArtifactStore) -> None:
    kept, _, _ = store.put([b"kept"]), store.put([b"old"]), store.put([b"older"])
    with store.receive(ABC, 3) as receiving:
        assert store.discard_except([kept, ABC]) == 2
        receiving.write(b"abc")
    assert names(store) == sorted([kept, ABC])


def test_what_an_earlier_process_left_half_written_is_removed(store: ArtifactStore) -> None:
    store.put([b"abc"])
    store.receive(ABC, 3).write(b"ab")
    assert len(names(store)) == 2
    ArtifactStore(store.folder, durable=False)
    assert names(store) == [ABC]


def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be used"):
        ArtifactStore(tmp_path / "file" / "models", durable=False)


FULL_DISK = """
import resource, sys
from pathlib import Path
from fedveil.utils.artifacts import ArtifactStore
from fedveil.utils.errors import StorageError

store = ArtifactStore(Path(sys.argv[1]), durable=False)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # python ignores SIGXFSZ: a write fails as on a full disk
for use in (lambda: store.put([bytes(70_000)] * 2), lambda: store.receive("0" * 64, 200_000).write(bytes(200_000))):
    try:
        use()
    except StorageError as error:
        print(error)
store.put([b"abc"])
"""


def test_a_full_disk_says_what_to_do_and_leaves_no_partial_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.count("is full (File too large): make room there and start again") == 2
    ArtifactStore(tmp_path, durable=False)
    assert [path.name for path in tmp_path.iterdir()] == [ABC]


KILLED = """
import sys
from pathlib import Path
from fedveil.utils.artifacts import ArtifactStore

with ArtifactStore(Path(sys.argv[1]), durable=False).receive("0" * 64, 2 << 20) as receiving:
    receiving.write(bytes(1 << 20))
    print("midway", flush=True)
    sys.stdin.read()
"""


def test_a_writer_killed_midway_leaves_no_artifact(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout.readline() == b"midway\n"
        writer.kill()
    left = [path.name for path in tmp_path.iterdir()]
    assert len(left) == 1
    assert left[0].endswith(".part")
    ArtifactStore(tmp_path, durable=False)
    assert not list(tmp_path.iterdir())


def test_a_discarded_artifact_is_gone_and_the_next_large_one_is_nothing_but_itself(tmp_path):
    store = ArtifactStore(tmp_path, durable=False)
    old = store.put([b"x" * (5 << 20)])
    store.discard(old)
    assert not store.has(old)
    new = store.put([b"y" * (4 << 20)])
    assert store.read(new) == b"y" * (4 << 20)
    small = store.put([b"z"])
    for digest in (new, small, small):
        store.discard(digest)
    assert ArtifactStore(tmp_path, durable=False).discard_except(()) == 0
    assert list(tmp_path.iterdir()) == []
