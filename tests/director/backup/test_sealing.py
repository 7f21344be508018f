"""A backup's outer layer: what went in comes out, or an error."""

from __future__ import annotations

import io

import pytest
from fedveil.director.backup import sealing
from fedveil.director.backup.sealing import is_sealed, sink_to, source_of
from fedveil.utils.errors import PassphraseError, StorageError
from hypothesis import given
from hypothesis import strategies as st

PIECE = 64
PASSPHRASE = b"correct horse battery staple"


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "_PIECE_BYTES", PIECE)


def written(pieces: list[bytes], passphrase: bytes | None) -> bytes:
    file = io.BytesIO()
    sink = sink_to(file, passphrase, cost=10)
    for piece in pieces:
        sink.write(piece)
    sink.close()
    return file.getvalue()


def read(raw: bytes, passphrase: bytes | None, at_a_time: int = 50) -> bytes:
    source, found = source_of(io.BytesIO(raw), passphrase), b""
    while piece := source.read(at_a_time):
        found += piece
    return found


@pytest.mark.parametrize("passphrase", [PASSPHRASE, None])
@pytest.mark.parametrize("length", [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 3 * PIECE + 7])
def test_what_went_in_comes_out_whatever_its_length(length, passphrase):
    content = bytes(range(256)) * 4
    assert read(written([content[:length]], passphrase), passphrase) == content[:length]


@given(st.lists(st.binary(max_size=100), max_size=8), st.integers(1, 300))
def test_it_does_not_depend_on_how_much_is_written_or_read_at_a_time(pieces, at_a_time):
    for passphrase in (PASSPHRASE, None):
        assert read(written(pieces, passphrase), passphrase, at_a_time) == b"".join(pieces)


@pytest.mark.parametrize("passphrase", [PASSPHRASE, None])
def test_every_flipped_byte_is_found(passphrase):
    raw = written([b"x" * (2 * PIECE + 5)], passphrase)
    for place in range(len(raw)):
        damaged = bytearray(raw)
        damaged[place] ^= 1 << place % 8
        with pytest.raises((StorageError, PassphraseError)):
            read(bytes(damaged), passphrase)


@pytest.mark.parametrize("passphrase", [PASSPHRASE, None])
def test_every_cut_is_found_and_so_is_anything_behind_the_end(passphrase):
    raw = written([b"x" * (2 * PIECE)], passphrase)
    for length in range(len(raw)):
        with pytest.raises((StorageError, PassphraseError)):
            read(raw[:length], passphrase)
    with pytest.raises(StorageError):
        read(raw + b"y", passphrase)


def test_pieces_cannot_change_places_nor_be_taken_from_another_backup():
    one, other = (written([bytes([n]) * 3 * PIECE], PASSPHRASE) for n in (1, 2))
    start, sealed = one.index(b"\n") + 1, PIECE + 16
    swapped = one[:start] + one[start + sealed : start + 2 * sealed] + one[start : start + sealed]
    with pytest.raises((StorageError, PassphraseError)):
        read(swapped + one[start + 2 * sealed :], PASSPHRASE)
    with pytest.raises(StorageError):
        read(one[: start + sealed] + other[start + sealed :], PASSPHRASE)


def test_another_passphrase_or_none_opens_nothing():
    raw = written([b"keys"], PASSPHRASE)
    assert is_sealed(io.BytesIO(raw))
    assert b"keys" not in raw
    for wrong in (b"correct horse battery stapl", b"", None):
        with pytest.raises(PassphraseError):
            read(raw, wrong)


def test_no_two_backups_share_a_key():
    assert len({written([b"same"], PASSPHRASE) for _ in range(5)}) == 5


def test_a_file_that_asks_for_gigabytes_of_memory_is_refused():
    raw = written([b"x"], PASSPHRASE)
    with pytest.raises(StorageError):
        read(raw.replace(b'"cost":10', b'"cost":30'), PASSPHRASE)
