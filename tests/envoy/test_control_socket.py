"""The socket through which commands speak to the running envoy, through its folder."""

import getpass
import json
import os
import socket
import threading
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from fedveil.envoy.__main__ import app
from fedveil.envoy.control_socket import ControlSocket, ask, ask_status, is_running
from fedveil.envoy.session import EnvoyStatus
from fedveil.utils.errors import (
    DatasetError,
    FederationError,
    MalformedMessageError,
    StorageError,
    UnreachableError,
)
from typer.testing import CliRunner

STATUS = EnvoyStatus("site-a", True, "round 3 of lungs-1", 2, 1.5, "")


def refuse(request, by):
    raise DatasetError(f"{request['name']} is not here, {by}")


QUESTIONS = {
    "status": lambda request, by: asdict(STATUS),
    "echo": lambda request, by: {"said": request["said"], "by": by},
    "refuse": refuse,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / ("a-name-that-is-longer-than-a-socket-may-be" * 4)
    made.mkdir()
    return made


@pytest.fixture
def running(folder):
    made = ControlSocket(folder, QUESTIONS)
    yield made
    made.close()


def serving() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "envoy-control"]


def connected(folder) -> socket.socket:
    here = Path.cwd()
    os.chdir(folder)  # as a socket's name may only be short
    try:
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(10.0)
        made.connect("envoy.sock")
    finally:
        os.chdir(here)
    return made


def said_raw(folder, raw: bytes) -> dict:
    with connected(folder) as connection:
        connection.sendall(raw)
        pieces = b""
        while piece := connection.recv(1 << 16):
            pieces += piece
    return json.loads(pieces)


@pytest.mark.usefixtures("running")
def test_the_status_is_told_as_often_as_it_is_asked(folder):
    assert [ask_status(folder) for _ in range(3)] == [STATUS] * 3


@pytest.mark.usefixtures("running")
def test_who_asks_is_what_the_kernel_says_and_not_the_request(folder):
    assert ask(folder, {"ask": "echo", "said": "é\n", "by": "mallory"}) == {"said": "é\n", "by": getpass.getuser()}


@pytest.mark.usefixtures("running")
def test_what_the_envoy_refuses_is_raised_as_the_class_that_it_was(folder):
    with pytest.raises(DatasetError, match=r"chest-xray is not here"):
        ask(folder, {"ask": "refuse", "name": "chest-xray"})


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"\xff\n", "no JSON"),
        (b"[]\n", "no JSON object"),
        (b"{}\n", "expected one of echo, refuse, status"),
        (b'{"ask": "shutdown"}\n', "asked 'shutdown'"),
        (b"[" * 100_000 + b"\n", "no JSON"),
        (b"x" * ((1 << 20) + 1), "more than 1048576 bytes"),
    ],
)
def test_a_request_that_is_none_is_said_so_and_the_envoy_goes_on(folder, raw, complaint):
    reply = said_raw(folder, raw)
    assert reply["error"] == "MalformedMessageError"
    assert complaint in reply["message"]
    assert ask_status(folder) == STATUS


@pytest.mark.usefixtures("running")
def test_one_who_connects_and_says_nothing_keeps_nobody_waiting(folder):
    with connected(folder):
        assert ask_status(folder) == STATUS


def test_only_the_owner_may_ask(folder, running):
    assert running
    assert (folder / "envoy.sock").stat().st_mode & 0o777 == 0o600


def test_after_the_end_nobody_answers_and_nothing_is_left(folder):
    before = serving()
    ControlSocket(folder, QUESTIONS).close()
    for thread in serving():
        if thread not in before:
            thread.join(60.0)
            assert not thread.is_alive()
    assert list(folder.iterdir()) == []
    assert not is_running(folder)
    with pytest.raises(UnreachableError, match=r"no envoy runs in .*; start it with `envoy start`"):
        ask_status(folder)


@pytest.mark.usefixtures("running")
def test_a_second_envoy_in_one_folder_is_refused_and_the_first_goes_on(folder):
    with pytest.raises(StorageError, match="another envoy runs in"):
        ControlSocket(folder, QUESTIONS)
    assert ask_status(folder) == STATUS


def test_a_socket_that_a_killed_envoy_left_is_taken_over(folder):
    here = Path.cwd()
    os.chdir(folder)  # as a socket's name may only be short
    try:
        left = socket.socket(socket.AF_UNIX)
        left.bind("envoy.sock")
        left.close()
    finally:
        os.chdir(here)
    with pytest.raises(UnreachableError):
        ask_status(folder)
    running = ControlSocket(folder, QUESTIONS)
    assert ask_status(folder) == STATUS
    running.close()


def test_a_folder_that_is_not_there_is_no_running_envoy(tmp_path):
    with pytest.raises(UnreachableError):
        ask_status(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b"{}", b'{"answer": 1}', b'{"answer": {"name": 1, "x": 2}}', b"\xff", b'{"name": "site-a"}']
)
def test_an_answer_that_is_no_status_is_said_so(folder, answer):
    here = Path.cwd()
    os.chdir(folder)
    try:
        other = socket.socket(socket.AF_UNIX)
        other.bind("envoy.sock")
    finally:
        os.chdir(here)
    other.listen()

    def serve():
        connection, _ = other.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(MalformedMessageError, match=r"no status|no JSON|no answer of ours"):
        ask_status(folder)
    thread.join(60.0)
    other.close()


def test_an_error_of_a_class_that_is_not_ours_is_still_an_error(folder):
    def fail(request, by):
        class OddError(FederationError):
            pass

        raise OddError("odd")

    running = ControlSocket(folder, {"status": fail})
    with pytest.raises(FederationError, match="odd"):
        ask_status(folder)
    running.close()


@pytest.mark.parametrize(
    ("runs_on", "status", "words"), [(False, 0, "The envoy has ended"), (True, 1, "still finishes")]
)
def test_stop_says_whether_the_envoy_has_ended(tmp_path, monkeypatch, runs_on, status, words):
    monkeypatch.setattr("fedveil.envoy.control_socket.ask", lambda *_: {"ended": ["round 1 of lungs-1"]})
    monkeypatch.setattr("fedveil.envoy.control_socket.is_running", lambda _: runs_on)
    clock = SimpleNamespace(monotonic=iter(range(0, 1000, 6)).__next__, sleep=lambda _: None)
    monkeypatch.setattr("fedveil.envoy.veto_commands.time", clock)
    done = CliRunner().invoke(app, ["stop", "--folder", str(tmp_path)])
    assert done.exit_code == status, done.output
    assert "ended: round 1 of lungs-1" in done.output
    assert words in done.output
