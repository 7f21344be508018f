"""What is measured: a ``Cell`` of the benchmark's grid, and the ``Run``s of which it consists.

A run is one attacked batch. Its key is a hash of everything that determines its outcome, so a run that is in a store
need never be made again, and two suites that share a run share its outcome.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import TypeAlias

import torch

from ..utils.errors import ConfigError
from ..utils.tensors import Digest, canonical_json, digest_of
from .cases import STATES
from .threat_model import Knowledge

SCHEMA = 1
"""Raised whenever the same cell would give other outcomes, so that old runs are not taken for new ones."""
ROW_SCHEMA = 1
"""Raised whenever the same runs would give other rows."""

Option: TypeAlias = bool | int | float | str
Options: TypeAlias = tuple[tuple[str, Option], ...]

_OF_ROWS = ("targets", "skip", "gallery")  # an outcome does not depend on these, a row does
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, slots=True)
class Cell:
    """One place of the grid: the same attack under the same conditions on several batches.

    Raises:
        ConfigError: a value that no cell has.
    """

    case: str  # pneumonia28, xrays64, ...
    model: str  # of models.MODELS; resnet18-train and resnet18-eval say how its BatchNorm runs
    attack: str  # of the catalogue
    knowledge: tuple[str, ...] = ()  # names of Knowledge
    options: Options = ()  # of the attack
    state: str = "fresh"
    batch: int = 1  # images an update
    local_steps: int = 0  # of plain SGD on the whole batch; 0: the site sends one gradient
    learning_rate: float = 0.01  # of the local steps
    defense: str = "none"
    adaptive: bool = False  # the attack knows of the defense and was made for it
    dtype: str = "float32"
    targets: int = 2  # batches that are attacked
    skip: int = 0  # targets before them, on which attacks and their options were chosen
    gallery: int = 100  # images among which a reconstruction's original is sought
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be run, and bring names and options into one order."""
        unknown = sorted(set(self.knowledge) - {f.name for f in fields(Knowledge)})
        if unknown:
            raise ConfigError(f"a cell grants {', '.join(unknown)}, of which no threat model knows")
        if self.state not in STATES or self.dtype not in DTYPES:
            raise ConfigError(
                f"state {self.state!r}, dtype {self.dtype!r}: expected one of {[*STATES]} and {[*DTYPES]}"
            )
        if self.batch < 1 or self.targets < 1 or self.local_steps < 0 or self.skip < 0:
            numbers = f"batch {self.batch}, targets {self.targets}, skip {self.skip}, local_steps {self.local_steps}"
            raise ConfigError(f"{numbers}: too few")
        object.__setattr__(self, "knowledge", tuple(sorted(self.knowledge)))
        object.__setattr__(self, "options", tuple(sorted(self.options)))

    @property
    def title(self) -> str:
        """One line for people; the case stands beside it.

        >>> Cell("mnist", "lenet", "dlg", batch=4, local_steps=8).title
        'dlg: lenet, fresh, batch 4, 8 local steps of 0.01'
        """
        parts = [self.model, self.state, f"batch {self.batch}"]
        parts += [f"{self.local_steps} local steps of {self.learning_rate:g}"] if self.local_steps else []
        parts += [] if self.defense == "none" else [f"defense {self.defense}"]
        parts += [] if self.dtype == "float32" else [self.dtype]
        parts += ["BN statistics known"] if "batch_norm_statistics" in self.knowledge else []
        return f"{self.attack}{' (adaptive)' if self.adaptive else ''}: {', '.join(parts)}"

    def granted(self) -> Knowledge:
        """The threat model."""
        return Knowledge(**dict.fromkeys(self.knowledge, True))

    def runs(self) -> Iterator[Run]:
        """One run a target."""
        return (Run(self, index) for index in range(self.skip, self.skip + self.targets))


@dataclass(frozen=True, slots=True)
class Run:
    """One attacked batch: target number ``index`` of its case."""

    cell: Cell
    index: int

    def spec(self) -> dict[str, object]:
        """All that determines the outcome. The number of targets does not: a longer cell goes on where one ended."""
        described = asdict(self.cell) | {"options": [list(pair) for pair in self.cell.options]}
        for name in _OF_ROWS:
            del described[name]
        return described | {"knowledge": list(self.cell.knowledge), "index": self.index, "schema": SCHEMA}

    @property
    def key(self) -> Digest:
        """Of the outcome."""
        return digest_of(canonical_json(self.spec()))

    @property
    def row_key(self) -> Digest:
        """Of the row, which also depends on the cell's other runs, where its null comes from."""
        more = {name: getattr(self.cell, name) for name in _OF_ROWS} | {"row_schema": ROW_SCHEMA}
        return digest_of(canonical_json(self.spec() | more))

    def generator(self, purpose: str) -> torch.Generator:
        """Randomness of one purpose.

        It depends on the target and the seed alone, so that two attacks meet the same order of the same examples.
        """
        named = canonical_json([purpose, self.cell.case, self.cell.seed, self.index, self.cell.batch])
        return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(named).digest()[:8]) >> 1)
