"""What processes used, also where nobody is told of it once they ended."""

import shutil
import subprocess
import sys

import pytest
from fedveil.workspace.processes import cpu_seconds, cpu_seconds_in_bubblewrap

BURN = "import time\nwhile time.process_time() < 0.5: pass\nprint('done', flush=True)\ninput()"
BOX = ["bwrap", "--unshare-pid", "--die-with-parent", "--dev-bind", "/", "/", "--proc", "/proc"]
PARENT = "import subprocess, sys; subprocess.run(sys.argv[1:])"


def burnt(*box):
    """A process that starts another, which burns half a second and stays; what is counted of both."""
    if box and (not shutil.which("bwrap") or subprocess.run([*box, "true"], check=False).returncode):
        pytest.skip("bubblewrap does not work here")
    command = [sys.executable, "-c", PARENT, *box, sys.executable, "-c", BURN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"done\n"
        found = cpu_seconds(parent.pid), cpu_seconds_in_bubblewrap(parent.pid)
        parent.communicate(b"\n")
    return found


def test_what_runs_in_bubblewrap_is_counted_once_and_by_itself():
    everything, in_boxes = burnt(*BOX)
    assert 0.45 < in_boxes <= everything


def test_what_its_parent_waits_for_is_not_counted_as_bubblewraps():
    everything, in_boxes = burnt()
    assert everything > 0.45
    assert in_boxes == 0
