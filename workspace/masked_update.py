"""A masked vector of a secure sum, read as if it were an update: all that a director can do with one.

Two files hold one: ``sums/RUN/ROUND-ATTEMPT/NAME.masked`` of a director that keeps its sums (raw words), and
``uploads/NAME.spool`` (a header, then the same words). They are uniform words whatever was masked, as far as the masks
are right; whoever reads one is told what it is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..director.spool import HEADER_BYTES
from ..utils.aggregation import is_finite
from ..utils.errors import AttackError, ConfigError, LengthMismatchError, StorageError
from ..utils.secure_sum.fixed_point import FixedPoint
from ..utils.secure_sum.masks import WORD_BYTES
from ..utils.secure_sum.tallies import TallyLayout, padded
from ..utils.secure_sum.terms import SumTerms
from ..utils.tensors import Layout, Vector

MASKED_SUFFIX = ".masked"
SUM_FILE = "sum.json"


@dataclass(frozen=True, slots=True, eq=False)
class MaskedUpdate:
    """The words, and how numbers became words before they were masked: public, but for the weight."""

    words: NDArray[np.uint32]  # of the body, (layout.size,)
    fixed_point: FixedPoint
    name: str
    remark: str  # what it is, for people

    def as_update(self, num_examples: int) -> Vector:
        """The words decoded as if no mask were on them, of a site with so many examples."""
        out = np.empty(self.words.size, np.float32)
        self.fixed_point.decode(self.words, min(num_examples, self.fixed_point.max_total), out)
        return out


def masked_update(path: Path, layout: Layout) -> MaskedUpdate | None:
    """The masked vector in a file; None where the file is something else.

    Raises:
        StorageError: the file cannot be read, or ``sum.json`` beside it is none.
        AttackError: what was masked are codes, which are no update.
        LengthMismatchError: it is called a masked vector and is too short to be one of this layout.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StorageError(f"the update {path} cannot be read: {error.strerror}") from error
    is_kept = path.suffix == MASKED_SUFFIX
    body = content if is_kept else _spooled(content)
    fits = len(body) >= least_bytes(layout) and len(body) % (2 * WORD_BYTES) == 0
    if is_kept and not fits:
        raise LengthMismatchError(
            f"{path} has {len(content)} bytes; a masked vector of this plan has at least {least_bytes(layout)}: "
            f"{layout.size} words of {WORD_BYTES} bytes, and the tallies behind them"
        )
    if not fits:
        return None
    words = np.frombuffer(body, "<u4")
    if not is_kept and is_finite(words.view("<f4")):
        return None  # uniform words have bits of NaN in one of 128; a director takes no update that holds one
    fixed_point, where = _how(path.parent / SUM_FILE, layout)
    remark = (
        f"{path.name} is no update: it is a masked vector of a secure sum{where}, {words.size:,} words modulo 2^32, of "
        f"which {layout.size:,} hold the update under its masks and the rest tallies. It is read as if there were no "
        "mask, as a director would have to; expect what is found to be worth the null and no more"
    )
    return MaskedUpdate(words[: layout.size], fixed_point, path.stem, remark)


def least_bytes(layout: Layout) -> int:
    """Of a masked vector: body, padding, and tallies without a metric."""
    return WORD_BYTES * (padded(layout.size) + TallyLayout((), len(layout.entries)).words)


def _spooled(content: bytes) -> bytes:
    """What a director's spool holds, whatever an earlier upload left behind it."""
    return content[HEADER_BYTES:][: int.from_bytes(content[32:40], "little")]


def _how(path: Path, layout: Layout) -> tuple[FixedPoint, str]:
    """From ``sum.json`` where there is one; else the defaults: their scale is all that would be wrong."""
    sizes = tuple(entry.size for entry in layout.entries)
    if not path.exists():
        terms = SumTerms()
        return FixedPoint(sizes, terms.bounds, 4 * terms.max_weight), ""
    try:
        told = json.loads(path.read_text("utf-8"))
        terms = SumTerms(bounds=tuple(told["terms"]["bounds"]), max_weight=told["terms"]["max_weight"])
        if told.get("codec"):
            raise AttackError(f"{path} says that codes were summed; attack run reads masked updates, not codes")
        where = f" (run {told['run']}, round {told['round']}, attempt {told['attempt']})"
        return FixedPoint(sizes, terms.bounds, int(told["contributors"]) * terms.max_weight), where
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise StorageError(f"{path} does not say how the sum was made: {type(error).__name__}: {error}") from error
