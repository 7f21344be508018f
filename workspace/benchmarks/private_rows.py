"""Rows of the private benchmarks on disk, one JSON document a line, and the AUC that each of them holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...utils.errors import StorageError
from ..chest_xrays import Part

RowT = TypeVar("RowT")


def rows_in(path: Path, kind: type[RowT]) -> list[RowT]:
    """The rows of a file; none where there is no file yet.

    Args:
        path: of the file.
        kind: a dataclass, made of a document's keys; its ``scores`` are a tuple.

    Raises:
        StorageError: it is damaged.
    """
    if not path.exists():
        return []
    try:
        documents: list[dict[str, Any]] = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        return [kind(**{**document, "scores": tuple(document["scores"])}) for document in documents]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StorageError(f"{path} is damaged: {error}; delete it, and the rows are measured again") from error


def auc(part: Part, scores: NDArray[np.float32]) -> float:
    """Area under the ROC curve of these scores, one an image of the part."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(part.labels, scores))
