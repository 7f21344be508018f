"""Error feedback: what a round's code lost is added to the next round's update, and stays at the site meanwhile.

Karimireddy et al. 2019 (arXiv:1901.09847), Algorithm 2. It is kept for codecs that draw directions for each round
(``seeded``, or a share of a learned codec's), and where no noise is added. With the same directions in all rounds, what
was lost is orthogonal to all that is ever sent, and would only grow. With noise, a residual would carry what a patient
changed into rounds that do not account for it. It holds traces of the site's images, as SCAFFOLD's variate does, and is
never sent.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..gradient_leakage.vae.codec import Codec
from ..utils.aggregation import is_finite
from ..utils.errors import StorageError
from ..utils.messages import TaskRef
from ..utils.tensors import Vector, bytes_of
from .policy import Measures
from .site_state import RESIDUAL


def is_kept(measures: Measures, codec: Codec | None) -> bool:
    """Does error feedback help here, and is it allowed?"""
    return codec is not None and codec.is_drawn_each_round and not measures.has_noise


def residual_before(state_folder: Path, ref: TaskRef, size: int) -> Vector:
    """What earlier rounds lost; zeros at first, and where the file is not what it was.

    Returns:
        float32, shape (size,).
    """
    path = RESIDUAL.before(state_folder, ref)
    if path is None:
        return np.zeros(size, np.float32)
    try:
        found = np.fromfile(path, np.float32)
    except OSError as error:
        raise StorageError(f"{ref}: its residual cannot be read: {error.strerror}") from error
    return found if found.size == size and is_finite(found) else np.zeros(size, np.float32)


def leave_residual(state_folder: Path, ref: TaskRef, residual: Vector) -> None:
    """Keep what this round lost; in force once the director has its code.

    Raises:
        StorageError: there is no room for it.
    """
    path = RESIDUAL.pending_path(state_folder, ref)
    partial = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(bytes_of(residual))
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StorageError(f"{ref}: its residual cannot be kept: {error.strerror}") from error
