"""The child of a leak test: ``fedveil.envoy.leak_test_worker`` with FOLDER ROWS_FD ARRAYS_FD LIFELINE_FD, in a box.

It runs the plan's code, first to make the canaries' updates, then under the attacks; it is given canaries alone. The
order lies in the folder, which it can only read. Answers go into two open files: rows of JSON, each written when it is
known, so that the end of the budget, which kills this process, loses what was at hand and nothing else; and arrays, one
after the other, each with a row that says where.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..utils.errors import FederationError
from .worker import die_with_parent

Keep = Callable[[str, NDArray[Any]], None]
_log = logging.getLogger(__name__)


def main(arguments: list[str]) -> None:
    """Carry out the order that lies in the folder."""
    folder, (rows, arrays, lifeline) = Path(arguments[0]), map(int, arguments[1:])
    die_with_parent(lifeline)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(message)s")
    order = json.loads((folder / "order.json").read_text("utf-8"))
    limit = math.ceil(order["seconds"])
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))  # before the plan's code: it cannot raise it again
    emit = _writer(rows)
    _perform(order, folder, emit, _keeper(arrays, emit))


def _perform(order: dict[str, Any], folder: Path, emit: Callable[[dict[str, Any]], None], keep: Keep) -> None:
    try:
        if order["phase"] == "make":
            from .leak_updates import make_updates

            make_updates(order, folder, emit, keep)
        else:
            from .leak_attacks import attack_targets

            attack_targets(order, folder, emit, keep)
    except FederationError as error:
        _log.exception("the leak test failed")
        emit({"error": str(error)})
    except (ValueError, TypeError, RuntimeError, OSError, LookupError, MemoryError) as error:
        _log.exception("the leak test failed")
        emit({"error": f"the leak test failed with {type(error).__name__}; the site's log has the details"})


def _writer(file: int) -> Callable[[dict[str, Any]], None]:
    return lambda row: (os.write(file, json.dumps(row).encode() + b"\n"), None)[1]


def _keeper(file: int, emit: Callable[[dict[str, Any]], None]) -> Keep:
    """Append an array to the file, and say under which name and where."""
    end = 0

    def keep(name: str, array: NDArray[Any]) -> None:
        nonlocal end
        held = io.BytesIO()
        np.save(held, array, allow_pickle=False)
        raw = held.getbuffer()
        at = 0
        while at < len(raw):
            at += os.pwrite(file, raw[at:], end + at)
        emit({"array": name, "offset": end, "length": len(raw)})
        end += len(raw)

    return keep
