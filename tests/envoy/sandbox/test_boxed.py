"""What still runs of a group of processes that was killed: who has ended is not waited for, asked for or not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fedveil.envoy.sandbox.boxed import _runs

WAITS = "print('here', flush=True); input()"
FIRST_THREAD_ENDS = """
import ctypes, platform, threading, time
threading.Thread(target=time.sleep, args=(600,)).start()
print('here', flush=True)
ctypes.CDLL(None).syscall({'x86_64': 60, 'aarch64': 93}[platform.machine()], 0)  # exit, of this thread alone
"""


@pytest.fixture
def leader():
    """Starts a process in a group of its own, and waits until it says so."""
    made = []

    def start(text):
        process = subprocess.Popen(
            [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        made.append(process)
        assert process.stdout.readline() == b"here\n"
        return process.pid

    yield start
    for process in made:
        process.kill()
        process.communicate()


def is_zombie(pid):
    return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] == "Z"


def test_a_process_that_ended_and_that_nobody_asked_for_does_not_run(leader):
    group = leader(WAITS)
    assert _runs(group)
    os.killpg(group, signal.SIGKILL)
    os.waitid(os.P_PID, group, os.WEXITED | os.WNOWAIT)
    assert is_zombie(group)
    os.killpg(group, 0)  # the group is still there
    assert not _runs(group)


def test_a_process_whose_first_thread_ended_runs_as_long_as_another_does(leader):
    group = leader(FIRST_THREAD_ENDS)
    while not is_zombie(group):
        pass
    assert _runs(group)


def test_nothing_runs_of_a_group_that_there_is_not(leader):
    assert not _runs(1 << 30)
