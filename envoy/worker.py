"""The child that runs a plan's code: ``python -m fedveil.envoy.worker ORDERS_FD LIFELINE_FD [torch]``.

Orders come and outcomes go as JSON lines over a socket that only parent and child hold; the dataset comes with an order
as an open file (``exposed_data.py``), before any of the plan's code runs. stdout and stderr belong to the plan and end
in a log file at the site. The child dies with its parent, also while the plan loops. Its sandbox comes later; until
then a plan is approved code that runs with the envoy's rights.
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import socket
import sys
from typing import Any

from ..utils import errors
from ..utils.errors import FederationError, TrainingError
from .exposed_data import read_exposed
from .order_line import DATA, OrderLine
from .orders import order_from_json, result_to_json
from .records import LoadedDataset
from .refusals import WORDS_OF_THE_PLAN
from .workbench import Workbench, preload_torch

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
    error: FederationError = kind(str(document.get("message", "")))
    error.add_note(WORDS_OF_THE_PLAN)
    return error


class _Desk:
    """Carries orders out; keeps what was handed over of the dataset."""

    def __init__(self) -> None:
        self._workbench = Workbench()
        self._exposed: LoadedDataset | None = None

    def answer(self, order: dict[str, Any], files: dict[str, int]) -> dict[str, Any]:
        try:
            self._take(files)
            exposed = LoadedDataset.empty() if self._exposed is None else self._exposed
            return result_to_json(self._workbench.perform(order_from_json(order), exposed))
        except FederationError as error:
            _log.exception("the order failed")
            return {"error": type(error).__name__, "message": str(error)}
        except (ValueError, TypeError, RuntimeError, OSError, LookupError, MemoryError) as error:
            # Ours or torch's own, outside of the plan's calls: out of memory, a broken device.
            _log.exception("the order failed")
            shown = f"training failed with {type(error).__name__}; see the worker log"
            return {"error": "TrainingError", "message": shown}

    def _take(self, files: dict[str, int]) -> None:
        """The dataset, where one comes with the order: with the first, and when it is another than before."""
        if DATA in files:
            self._exposed = None
            self._exposed = read_exposed(files[DATA])


def die_with_parent(lifeline: int) -> None:
    """Let the kernel end this process when the parent is gone, even in a loop that never lets Python run.

    The parent alone holds the other end of this pipe. When it closes, the kernel sends SIGIO, whose default is to
    end the process. (``PR_SET_PDEATHSIG`` fires already when the thread that started the child ends.)
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline], [], [], 0)[0]:
        os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
