"""The process that reads a dataset for a plan: ``python -m fedveil.envoy.exposing FILE_FD``.

It decodes images, reads tables, and writes what the plan declares into the file that it was given; it runs no plan's
code. The request comes on standard input, how it went leaves on standard output; ``exposures.py`` is the envoy's side.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from ..utils.data_spec import DataSpec
from ..utils.differential_privacy import DifferentialPrivacy
from ..utils.errors import FederationError
from .datasets import read_index
from .exposed_data import expose, expose_subgroups, write_exposed
from .records import DatasetRecord
from .subgroups import Asked


def main(arguments: list[str]) -> None:
    """Read the request on standard input, write the file, say how it went."""
    request = json.load(sys.stdin)
    try:
        answer = _perform(request, int(arguments[0]))
    except FederationError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    except (MemoryError, OSError) as error:
        answer = {"error": "StorageError", "message": f"no memory for the dataset ({type(error).__name__})"}
    sys.stdout.write(json.dumps(answer))


def _perform(request: dict[str, Any], descriptor: int) -> dict[str, Any]:
    record = DatasetRecord.from_json(request["record"].encode()) if request["record"] else None
    path, privacy = request["index_path"], request["privacy"]
    index = read_index(record, Path(path) if path else None) if record else None
    spec, answer = DataSpec.from_document(request["data"]), dict[str, Any]()
    if request["fairness"] is not None and record is not None and index is not None:
        dataset, scheme, left_out = expose_subgroups(record, index, spec, Asked.from_json(request["fairness"]))
        answer = {"scheme": scheme.to_json(), "left_out": left_out}
    else:
        held = None if privacy is None else DifferentialPrivacy.from_document(privacy)
        dataset = expose(record, index, spec, held)
    with os.fdopen(descriptor, "wb") as file:
        write_exposed(dataset, file)
    return answer


if __name__ == "__main__":
    main(sys.argv[1:])
