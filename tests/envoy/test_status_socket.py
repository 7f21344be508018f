"""``envoy status`` asks the running envoy, through its folder."""

import os
import socket
import threading
from pathlib import Path

import pytest
from fedveil.envoy.session import EnvoyStatus
from fedveil.envoy.status_socket import StatusSocket, ask_status
from fedveil.utils.errors import MalformedMessageError, StorageError, UnreachableError

STATUS = EnvoyStatus("site-a", True, "round 3 of lungs-1", 2, 1.5, "")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / ("a-name-that-is-longer-than-a-socket-may-be" * 4)
    made.mkdir()
    return made


def serving() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "envoy-status"]


def test_the_status_is_told_as_often_as_it_is_asked(folder):
    running = StatusSocket(folder, lambda: STATUS)
    assert [ask_status(folder) for _ in range(3)] == [STATUS] * 3
    running.close()


def test_only_the_owner_may_ask(folder):
    running = StatusSocket(folder, lambda: STATUS)
    assert (folder / "envoy.sock").stat().st_mode & 0o777 == 0o600
    running.close()


def test_after_the_end_nobody_answers_and_nothing_is_left(folder):
    StatusSocket(folder, lambda: STATUS).close()
    for thread in serving():
        thread.join(10.0)
    assert not serving()
    assert list(folder.iterdir()) == []
    with pytest.raises(UnreachableError, match=r"no envoy runs in .*; start it with `envoy start`"):
        ask_status(folder)


def test_a_second_envoy_in_one_folder_is_refused_and_the_first_goes_on(folder):
    running = StatusSocket(folder, lambda: STATUS)
    with pytest.raises(StorageError, match="another envoy runs in"):
        StatusSocket(folder, lambda: STATUS)
    assert ask_status(folder) == STATUS
    running.close()


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
    running = StatusSocket(folder, lambda: STATUS)
    assert ask_status(folder) == STATUS
    running.close()


def test_a_folder_that_is_not_there_is_no_running_envoy(tmp_path):
    with pytest.raises(UnreachableError):
        ask_status(tmp_path / "nowhere")


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b'{"name": 1, "x": 2}', b"\xff"])
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
            connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(MalformedMessageError, match="no status"):
        ask_status(folder)
    thread.join(10.0)
    other.close()
