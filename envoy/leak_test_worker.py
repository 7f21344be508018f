"""The child of a leak test: ``python -m fedveil.envoy.leak_test_worker FOLDER LIFELINE_FD``.

It runs the plan's code, first to make the canaries' updates, then under the attacks; it is given canaries alone. The
order lies in the folder, and so do the answers: rows of JSON, each written when it is known, so that the end of the
budget, which kills this process, loses what was at hand and nothing else.
"""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..utils.errors import FederationError
from .worker import die_with_parent

_log = logging.getLogger(__name__)


def main(arguments: list[str]) -> None:
    """Carry out the order that lies in the folder."""
    folder = Path(arguments[0])
    die_with_parent(int(arguments[1]))
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(message)s")
    order = json.loads((folder / "order.json").read_text("utf-8"))
    limit = math.ceil(order["seconds"])
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))  # before the plan's code: it cannot raise it again
    with (folder / f"{order['phase']}.jsonl").open("w", encoding="utf-8") as rows:
        _perform(order, folder, _writer(rows.fileno()))


def _perform(order: dict[str, Any], folder: Path, emit: Callable[[dict[str, Any]], None]) -> None:
    try:
        if order["phase"] == "make":
            from .leak_updates import make_updates

            make_updates(order, folder, emit)
        else:
            from .leak_attacks import attack_targets

            attack_targets(order, folder, emit)
    except FederationError as error:
        _log.exception("the leak test failed")
        emit({"error": str(error)})
    except (ValueError, TypeError, RuntimeError, OSError, LookupError, MemoryError) as error:
        _log.exception("the leak test failed")
        emit({"error": f"the leak test failed with {type(error).__name__}; the site's log has the details"})


def _writer(file: int) -> Callable[[dict[str, Any]], None]:
    return lambda row: (os.write(file, json.dumps(row).encode() + b"\n"), None)[1]


if __name__ == "__main__":
    main(sys.argv[1:])
