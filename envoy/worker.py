"""The child that runs a plan's code: ``fedveil.envoy.worker`` with ORDERS_FD LIFELINE_FD [torch], inside a box.

Orders come and outcomes go as JSON lines over a socket that only parent and child hold; with each order come its
files, open, and the dataset as an open file (``exposed_data.py``), before any of the plan's code runs. stdout and
stderr belong to the plan and end in a log file at the site. The child dies with its parent, also while the plan loops.

It runs in the site's box (``sandbox``): ``sandbox.entry`` gave up what the site said before this module was loaded. A
child that was started before its plan was known can read every plan of the site; it gives up all but the order's own
before it opens that, and where it cannot, says so and runs nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import socket
import sys
from typing import Any

from ..utils import errors
from ..utils.errors import FederationError, SandboxError, TrainingError
from ..utils.visible import visible
from .exposed_data import read_exposed
from .order_files import OrderFiles
from .order_line import DATA, OrderLine
from .orders import order_from_json, result_to_json
from .records import LoadedDataset
from .refusals import WORDS_OF_THE_PLAN
from .sandbox.entry import Rights
from .workbench import Workbench, preload_torch

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""The environment of a child that is to give up rights later: every thread would have to."""
CANNOT_NARROW = "cannot_narrow"
_MAX_MESSAGE = 2000  # the plan's code runs in the process that says it
_log = logging.getLogger(__name__)


def main(arguments: list[str]) -> None:
    """Serve orders until the parent hangs up."""
    orders, lifeline = int(arguments[0]), int(arguments[1])
    die_with_parent(lifeline)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(message)s")
    # Before torch is loaded: cuBLAS is deterministic only with a fixed workspace.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if "torch" in arguments[2:]:
        preload_torch()
    desk = _Desk()
    with socket.socket(fileno=orders) as connection:
        line = OrderLine(connection)
        while (came := line.next()) is not None:
            line.answer(desk.answer(*came))


def error_from_json(document: dict[str, Any]) -> FederationError:
    """The error that a worker met, as the class it was; noted as the plan's, whose words stay at the site."""
    name = document["error"]
    kind = getattr(errors, name) if name in errors.__all__ else TrainingError
    error: FederationError = kind(visible(str(document.get("message", ""))[:_MAX_MESSAGE]))
    error.add_note(WORDS_OF_THE_PLAN)
    return error


class _Desk:
    """Carries orders out; keeps what was handed over of the dataset."""

    def __init__(self) -> None:
        self._workbench = Workbench()
        self._exposed: LoadedDataset | None = None
        self._is_fresh = True

    def answer(self, document: dict[str, Any], files: dict[str, int]) -> dict[str, Any]:
        try:
            self._confine(document["rights"])
            return self._perform(document["order"], files)
        except SandboxError as error:
            return {CANNOT_NARROW: str(error)}
        except FederationError as error:
            _log.exception("the order failed")
            return {"error": type(error).__name__, "message": str(error)}
        except (ValueError, TypeError, RuntimeError, OSError, LookupError, MemoryError) as error:
            # Ours or torch's own, outside of the plan's calls: out of memory, a broken device.
            _log.exception("the order failed")
            shown = f"training failed with {type(error).__name__}; see the worker log"
            return {"error": "TrainingError", "message": shown}
        finally:
            for file in files.values():
                with contextlib.suppress(OSError):  # the plan may have closed it
                    os.close(file)

    def _confine(self, rights: dict[str, list[str]] | None) -> None:
        if rights is not None:
            try:
                Rights.from_json(rights).take()
            except OSError as error:
                raise SandboxError(str(error)) from error
        if self._is_fresh:
            _let_numpy_use_all_cores()
        self._is_fresh = False

    def _perform(self, order: dict[str, Any], files: dict[str, int]) -> dict[str, Any]:
        if DATA in files:  # with the first order, and when it is another dataset than before
            self._exposed = None
            self._exposed = read_exposed(files.pop(DATA))
        exposed = LoadedDataset.empty() if self._exposed is None else self._exposed
        return result_to_json(self._workbench.perform(order_from_json(order), OrderFiles(**files), exposed))


def _let_numpy_use_all_cores() -> None:
    """As it would have done by itself, but for ``ONE_THREAD``."""
    if all(os.environ.get(name) == value for name, value in ONE_THREAD.items()):
        import threadpoolctl

        threadpoolctl.threadpool_limits(os.cpu_count(), user_api="blas")


def die_with_parent(lifeline: int) -> None:
    """Let the kernel end this process when the parent is gone, even in a loop that never lets Python run.

    The parent alone holds the other end of this pipe. When it closes, the kernel sends SIGIO, whose default is to
    end the process. (``PR_SET_PDEATHSIG`` fires already when the thread that started the child ends.)
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline], [], [], 0)[0]:
        os._exit(1)
