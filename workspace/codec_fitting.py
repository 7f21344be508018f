"""What a codec is fitted on: updates that no patient of the federation made.

Two sources, both public. *Proxy updates*: the plan is rehearsed on public images by virtual sites, and every update
of every round is a row. *History*: differences of models that were released anyway. A private site's single update is
never one: a basis spanned by it would carry it to everybody who holds the codec.

Nothing of training is written here: a virtual site trains as an envoy does, by the envoy's own code.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..envoy.datasets import load
from ..envoy.inspection import inspect
from ..envoy.plan_loading import plan_of
from ..envoy.plans import Plan
from ..envoy.records import DataOptions, LoadedDataset
from ..envoy.splits import Split, SplitRule
from ..utils.data_spec import DataKind
from ..utils.errors import ConfigError, DatasetError, LayoutMismatchError
from ..utils.plan_bundle import Bundle, mapped
from ..utils.tensors import Layout, Vector, read_model
from .plain_rounds import SiteModel, local_update, weighted_mean

Updates = NDArray[np.float32]
"""(count, layout.size), one update a row."""

_CONCENTRATION = 10.0


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """How a plan is rehearsed on public data.

    Each virtual site draws its own mixture of the classes, from a Dirichlet distribution around that of the public
    data (Hsu et al. 2019, arXiv:1909.06335), and examples with replacement, so that a few public images stand for sites
    of any size: what matters is that a site takes as many optimizer steps as a real one.

    Raises:
        ConfigError: a number below 1.
    """

    sites: int = 3
    rounds: int = 10
    repeats: int = 6  # rehearsals from the same first model, each with other sites and another order
    examples: int | None = None  # of a site; None: as many as all public data has
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("sites", "rounds", "repeats", "examples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}, expected at least 1")

    @property
    def num_updates(self) -> int:
        """Rows that it gives."""
        return self.sites * self.rounds * self.repeats

    def with_one_more(self) -> Rehearsal:
        """With one more repeat, which comes last: for what is held out."""
        return replace(self, repeats=self.repeats + 1)


def public_data(bundle: Bundle, path: Path) -> LoadedDataset:
    """The public examples that a plan can be rehearsed on: the training part, or everything where there are no parts.

    Args:
        bundle: says which images, of which classes.
        path: an npz, zip, folder or table, as `envoy data add` reads it.

    Raises:
        DatasetError: it cannot be read, or is not what the plan asks for.
    """
    spec = bundle.manifest.data
    if spec.kind is DataKind.NONE:
        return load(None, None, spec)
    found = inspect(spec.name, path, DataOptions(classes=spec.classes, rule=SplitRule(1.0, 0.0, 0.0)), now=0.0)
    loaded = load(found.record, found.index, spec)
    features, labels = loaded.part(Split.TRAIN)
    if not len(labels):
        raise DatasetError(f"{path} has no training part; give public images that are not all for tests")
    return LoadedDataset(features, labels, np.zeros(len(labels), np.uint8))


def proxy_updates(bundle: Bundle, public: LoadedDataset, asked: Rehearsal, start: Vector | None = None) -> Updates:
    """Every virtual site's update in every round, by repeat, round and site.

    Args:
        bundle: the plan; it trains with its own settings.
        public: as ``public_data`` gives it.
        asked: how many.
        start: (layout.size,) the model that every repeat begins with; by default the plan's first weights.

    Raises:
        TrainingError: the plan raised.
        ConfigError: the plan keeps control variates (SCAFFOLD), which no codec carries.
    """
    plan = plan_of(bundle)
    if plan.settings.scaffold:
        raise ConfigError(f"plan {bundle.manifest.name} uses SCAFFOLD, whose control variates no codec carries")
    initial, exact = bundle.initial()
    rows = np.empty((asked.num_updates, bundle.layout.size), np.float32)
    for repeat in range(asked.repeats):
        begin = SiteModel(bundle.layout, np.array(initial if start is None else start, np.float32), exact)
        block = rows[repeat * asked.sites * asked.rounds :][: asked.sites * asked.rounds]
        _rehearse(plan, begin, public, replace(asked, seed=_seed(asked.seed, repeat)), block)
    return rows


def history_updates(layout: Layout, models: Sequence[Path]) -> Updates:
    """Differences of consecutive released models.

    Args:
        layout: of the plan.
        models: safetensors files, oldest first, at least two.

    Raises:
        ConfigError: fewer than two, or one that does not differ from the one before.
        PlanError: a file cannot be read.
        LayoutMismatchError: a file is no model of this layout; the message names it.
    """
    if len(models) < 2:
        raise ConfigError(f"{len(models)} released models: a history needs at least two (--models, oldest first)")
    vectors = []
    for path in models:
        try:
            vectors.append(read_model(layout, mapped(path))[0])
        except LayoutMismatchError as error:
            raise LayoutMismatchError(f"{path}: {error}; it is no model of this plan") from error
    rows = np.stack([after - before for before, after in itertools.pairwise(vectors)])
    for path, row in zip(models[1:], rows, strict=True):
        if not row.any():
            raise ConfigError(f"{path} is the model before it; give each released model once")
    return rows


def _rehearse(plan: Plan, begin: SiteModel, public: LoadedDataset, asked: Rehearsal, rows: Updates) -> None:
    """One virtual federation; fills rows, (rounds * sites, layout.size)."""
    rng = np.random.default_rng(asked.seed)
    mixtures = [_mixture(public.labels, rng) for _ in range(asked.sites)]
    for round_ in range(asked.rounds):
        block = rows[round_ * asked.sites :][: asked.sites]
        sizes = []
        for site, (row, weights) in enumerate(zip(block, mixtures, strict=True)):
            data = _drawn(public, weights, asked.examples, rng)
            sizes.append(local_update(plan, begin, data, _seed(asked.seed, round_, site), row))
        begin = replace(begin, vector=begin.vector + weighted_mean(block, sizes))


def _mixture(labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
    """The chance of each example to be drawn at one virtual site; sums to one."""
    if not len(labels):
        return np.zeros(0)
    _, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    shares = rng.dirichlet(_CONCENTRATION * counts / len(labels))
    return np.asarray((shares / counts)[places], np.float64)


def _drawn(
    public: LoadedDataset, weights: NDArray[np.float64], count: int | None, rng: np.random.Generator
) -> LoadedDataset:
    """A virtual site's examples of one round, with replacement; a plan that reads no data gets none."""
    if not len(weights):
        return public
    chosen = rng.choice(len(weights), count or len(weights), p=weights)
    return LoadedDataset(public.features[chosen], public.labels[chosen], np.zeros(len(chosen), np.uint8))


def _seed(*parts: int) -> int:
    """A seed of 63 bits for one repeat, or one site's round."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
