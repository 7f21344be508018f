"""The answer that is a file: whole or in part, once more or not at all, and always the bytes that its digest says."""

import base64
import contextlib
import hashlib
import os
import re
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
from fastapi import APIRouter, FastAPI, Request
from fastapi.testclient import TestClient
from fedveil.director.config import load_config
from fedveil.director.founding import ROOT_FILE, init_federation
from fedveil.director.issuer import IssuerFile
from fedveil.director.rest import files, problems
from fedveil.director.rest.serving import RestServer
from fedveil.director.server_certificate import ServerCertificate
from fedveil.utils.addresses import Address
from fedveil.utils.artifacts import ArtifactStore
from fedveil.utils.tensors import Digest
from hypothesis import given
from hypothesis import strategies as st

CONTENT = bytes(range(256)) * 5
TAG = f'"{hashlib.sha256(CONTENT).hexdigest()}"'
OTHER = '"' + "0" * 64 + '"'


class Shelf:
    """Artifacts behind a door: ``/files/DIGEST``."""

    def __init__(self, folder) -> None:
        self.store = ArtifactStore(folder, durable=False)
        self.app = FastAPI()
        self.app.state.ends = threading.Event()  # as ``make_app`` has it
        problems.install(self.app)
        router = APIRouter()

        @files.download(router, "/files/{digest}")
        def show(digest: str, request: Request):
            return files.file_answer(request, self.store, Digest(digest), "m-1.0.0.safetensors", {"Fedveil-Mark": "no"})

        self.app.include_router(router)
        self.client = TestClient(self.app, raise_server_exceptions=False)

    def put(self, content: bytes) -> str:
        return f"/files/{self.store.put([content])}"


@pytest.fixture
def shelf(tmp_path):
    made = Shelf(tmp_path / "artifacts")
    yield made
    made.client.close()


def sha256(content: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


def test_the_whole_is_answered_with_its_digest_as_tag_and_as_digest(shelf):
    answer = shelf.client.get(shelf.put(CONTENT))
    told = answer.headers
    assert (answer.status_code, answer.content, told["etag"]) == (200, CONTENT, TAG)
    assert told["repr-digest"] == told["content-digest"] == sha256(CONTENT)
    assert (told["accept-ranges"], told["content-length"]) == ("bytes", str(len(CONTENT)))
    assert (told["content-type"], told["fedveil-mark"]) == ("application/octet-stream", "no")
    assert told["content-disposition"] == 'attachment; filename="m-1.0.0.safetensors"'


def test_to_head_all_is_said_and_nothing_sent(shelf):
    whole = shelf.client.get(path := shelf.put(CONTENT))
    answer = shelf.client.head(path, headers={"Range": "bytes=0-1"})
    assert (answer.status_code, answer.content) == (200, b"")
    for name in ("etag", "content-length", "repr-digest", "accept-ranges", "content-type"):
        assert answer.headers[name] == whole.headers[name]


SIZE = len(CONTENT)


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-", 0, SIZE),
        ("bytes=7-9", 7, 10),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE),
        (f"bytes=3-{SIZE + 100}", 3, SIZE),
        ("bytes=-5", SIZE - 5, SIZE),
        (f"bytes=-{SIZE + 5}", 0, SIZE),
        ("bytes= 7-9", 7, 10),
        ("BYTES=7-9 ", 7, 10),
        ("bytes=007-0009", 7, 10),
    ],
)
def test_a_part_is_just_what_was_asked_for(shelf, asked, start, end):
    answer = shelf.client.get(shelf.put(CONTENT), headers={"Range": asked})
    assert (answer.status_code, answer.content) == (206, CONTENT[start:end])
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{SIZE}"
    assert answer.headers["content-length"] == str(end - start)
    assert answer.headers["repr-digest"] == sha256(CONTENT)  # of the whole
    assert "content-digest" not in answer.headers


@pytest.mark.parametrize(
    "odd",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=--1",
        "bytes=5-3",
        "bytes=0-1,5-6",
        "bytes=0-1,",
        "bytes=0x1-2",
        "bytes=1.0-2",
        "bytes=+1-2",
        "bytes=1-2-3",
        "bytes:1-2",
        "items=1-2",
        "bytes=" + "9" * 400 + "-",
        "bytes=\u00b2-3".encode(),
    ],
)
def test_what_is_no_one_range_is_answered_with_the_whole(shelf, odd):
    answer = shelf.client.get(shelf.put(CONTENT), headers={"Range": odd})
    assert (answer.status_code, answer.content) == (200, CONTENT)


@pytest.mark.parametrize("beyond", [f"bytes={SIZE}-", f"bytes={SIZE + 5}-{SIZE + 9}", "bytes=-0", f"bytes={10**17}-"])
def test_bytes_that_are_not_there_are_refused_and_it_is_said_how_many_there_are(shelf, problem_of, beyond):
    answer = shelf.client.get(shelf.put(CONTENT), headers={"Range": beyond})
    assert str(SIZE) in problem_of(answer, 416)["detail"]
    assert answer.headers["content-range"] == f"bytes */{SIZE}"


def test_of_an_empty_file_there_is_the_whole_and_no_part(shelf, problem_of):
    path = shelf.put(b"")
    for headers in ({}, {"Range": "bytes=-5"}):
        answer = shelf.client.get(path, headers=headers)
        assert (answer.status_code, answer.content) == (200, b"")
    problem_of(shelf.client.get(path, headers={"Range": "bytes=0-"}), 416)


@pytest.mark.parametrize("held", [TAG, f"W/{TAG}", f"{OTHER}, {TAG}", f"{OTHER},W/{TAG}", "*", f' "a,b" ,{TAG}'])
def test_who_has_it_gets_nothing(shelf, held):
    for ask in (shelf.client.get, shelf.client.head):
        answer = ask(shelf.put(CONTENT), headers={"If-None-Match": held})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", TAG)


@pytest.mark.parametrize("held", [OTHER, TAG.strip('"'), "", '"', TAG[:-2] + '"', "W/*"])
def test_who_has_another_gets_it(shelf, held):
    answer = shelf.client.get(shelf.put(CONTENT), headers={"If-None-Match": held})
    assert (answer.status_code, answer.content) == (200, CONTENT)


def test_a_part_is_given_only_of_what_the_caller_began_with(shelf):
    path = shelf.put(CONTENT)
    same = shelf.client.get(path, headers={"Range": "bytes=5-", "If-Range": TAG})
    assert (same.status_code, same.content) == (206, CONTENT[5:])
    for other in (OTHER, f"W/{TAG}", "Sun, 22 Nov 2026 01:00:00 GMT", TAG.strip('"')):
        answer = shelf.client.get(path, headers={"Range": "bytes=5-", "If-Range": other})
        assert (answer.status_code, answer.content) == (200, CONTENT)


def test_who_asks_for_another_is_told_so(shelf, problem_of):
    path = shelf.put(CONTENT)
    for fits in ("*", TAG, f"{OTHER}, {TAG}"):
        assert shelf.client.get(path, headers={"If-Match": fits}).status_code == 200
    for other in (OTHER, f"W/{TAG}"):
        problem_of(shelf.client.get(path, headers={"If-Match": other}), 412)


def test_what_is_not_there_or_no_digest_is_not_found(shelf, problem_of):
    for name in ("0" * 64, "../secret", "A" * 64, "x"):
        problem_of(shelf.client.get(f"/files/{name}"), 404)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_any_two_parts_that_meet_make_the_whole(length, one, other):
    content = os.urandom(length)
    cut = min(one, length)
    parts = [files.part_of(f"bytes={a}", length) for a in (f"0-{cut - 1}", f"{cut}-")] if 0 < cut < length else []
    assert b"".join(content[part.start : part.end] for part in parts if part) == (content if parts else b"")
    suffix = files.part_of(f"bytes=-{other}", length)
    if length and other:
        assert content[suffix.start : suffix.end] == content[-other:]


@given(st.text("bytes=-,0123456789 ", max_size=20), st.integers(0, 30))
def test_whatever_is_asked_no_byte_outside_the_file_is_given(asked, length):
    part = files.part_of(asked, length)
    assert part is None or 0 <= part.start <= part.end <= length


def test_a_file_that_is_discarded_while_it_is_read_stays_as_it_was(tmp_path):
    store = ArtifactStore(tmp_path / "artifacts", durable=False)
    large = os.urandom(5 << 20)  # so large that its file would be written over
    digest = store.put([large])
    with store.open(digest) as file:
        start = file.read(1000)
        store.discard(digest)
        store.put([bytes(5 << 20)])
        assert start + file.read() == large


class Line:
    """One TLS connection to a director's door."""

    def __init__(self, folder, port: int) -> None:
        context = ssl.create_default_context(cafile=str(folder / ROOT_FILE))
        self.tls = context.wrap_socket(socket.create_connection(("127.0.0.1", port), 30), server_hostname="127.0.0.1")
        self.file = self.tls.makefile("rb")

    def get(self, path: str, headers: str = "") -> tuple[int, int]:
        """Status and length; the content is in ``file``."""
        self.tls.sendall(f"GET {path} HTTP/1.1\r\nHost: director\r\n{headers}\r\n".encode())
        head = b"".join(iter(self.file.readline, b"\r\n"))
        return int(head.split()[1]), int(re.search(rb"(?i)content-length: (\d+)", head).group(1))

    def close(self) -> None:
        self.file.close()
        self.tls.close()


@pytest.fixture
def served(tmp_path, shelf):
    folder = tmp_path / "director"
    init_federation(folder, "lungs", ["127.0.0.1"], b"passphrase", time.time(), listen="127.0.0.1:0")
    certificate = ServerCertificate(folder, load_config(folder), IssuerFile(folder))
    server = RestServer(shelf.app, Address.parse("127.0.0.1:0"), certificate)
    yield lambda: Line(folder, server.port)
    server.close()


def test_over_tls_who_was_cut_off_goes_on_where_it_was(shelf, served):
    content = os.urandom(3_000_000)
    path = shelf.put(content)
    line = served()
    assert line.get(path) == (200, len(content))
    came = line.file.read(1_000_000)
    line.close()
    line = served()
    tag = f'"{hashlib.sha256(content).hexdigest()}"'
    status, left = line.get(path, f"Range: bytes={len(came)}-\r\nIf-Range: {tag}\r\n")
    assert (status, left) == (206, len(content) - len(came))
    assert came + line.file.read(left) == content
    assert line.get(path, f"If-None-Match: {OTHER}\r\n") == (200, len(content))  # the connection stands
    assert line.file.read(len(content)) == content
    line.close()


def test_who_hangs_up_holds_no_file_open(shelf, served):
    content = os.urandom(64 << 20)  # more than sockets hold
    path = shelf.put(content)
    line = served()
    line.get(path)
    line.close()
    deadline = time.monotonic() + 60
    while _open_files(shelf.store.folder):
        assert time.monotonic() < deadline
    line = served()
    assert line.get(path, "Range: bytes=-3\r\n") == (206, 3)
    line.close()


def _open_files(folder) -> list[str]:
    found = []
    for one in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the list itself
            found.append(str(one.readlink()))
    return [one for one in found if one.startswith(str(folder))]
