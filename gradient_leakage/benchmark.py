"""Runs attacks over the cells of a grid and scores what they found; resumable, and the same wherever it runs.

Data and trained models come in through a ``Laboratory``, which the workspace composes; outcomes go to a ``RunStore``.
An attack gets the observation alone: the truth goes round it, from the laboratory to the outcome.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import __version__
from ..utils.errors import AttackError, UnsendableUpdateError
from .attacks.catalogue import listed
from .cells import DTYPES, Cell, Run
from .defenses.chain import Chain
from .defenses.registry import Lesson, PublicSide, Registered, SiteSide, registered
from .metrics import Embedding, Truth, match, score
from .rows import Outcome, Row, RunStore
from .runners import MapRuns
from .tabulation import rows_of
from .threat_model import ImageDomain, LocalTraining, PublicImages, Reconstruction
from .victim import SiteTraining, granting, layout_of, observe, sent_through

VERSIONS: Mapping[str, str] = {"fedveil": __version__} | {
    package: version(package) for package in ("torch", "numpy", "scipy", "scikit-image")
}
_MOMENTS = 48  # of an iterative attack at which its loss is kept


class Laboratory(Protocol):
    """Data and trained models of the benchmark. It crosses to worker processes, so it holds paths, not images."""

    def domain(self, case: str) -> ImageDomain:
        """Shape and classes."""
        ...

    def batch(self, run: Run) -> Truth:
        """The images that one run attacks. Two targets of a cell share no image and no patient."""
        ...

    def public(self, case: str) -> PublicImages:
        """What the attacker may have: images of patients that are never attacked."""
        ...

    def gallery(self, case: str) -> Truth:
        """Images of other patients, one of each, among which a reconstruction's original is to be recognised."""
        ...

    def model(self, cell: Cell) -> nn.Module:
        """The published model, with what the defense puts into it, in the mode and dtype in which the site trains it.

        It is trained as far as the cell says.
        """
        ...

    def public_side(self, cell: Cell, model: nn.Module) -> PublicSide:
        """What the cell's defense learns from public updates of that model, trained as its site trains."""
        ...

    def embedding(self, case: str) -> Embedding | None:
        """The verification network of a case; None where it has none."""
        ...


def run_cells(
    cells: Sequence[Cell],
    laboratory: Laboratory,
    store: RunStore,
    map_runs: MapRuns,
    told: Callable[[Outcome], None] = lambda _: None,
) -> tuple[Row, ...]:
    """Make the runs that are not in the store yet, keep each as it ends, and score every cell that is complete.

    Interrupted at any moment, and started again, it goes on with what is missing.

    Args:
        cells: in the order in which they are run and listed.
        laboratory: where images and models come from.
        store: keeps runs and rows.
        map_runs: where the runs are made.
        told: is given each run that ended.

    Returns:
        The rows of these cells, in their order.
    """
    ended, written = store.keys(), store.row_keys()
    missing = {run.key: run for cell in cells for run in cell.runs() if run.key not in ended}
    waiting = [cell for cell in cells if any(run.row_key not in written for run in cell.runs())]

    def score_what_is_complete() -> None:
        for cell in [cell for cell in waiting if all(run.key in ended for run in cell.runs())]:
            outcomes = [store.outcome(run.key) for run in cell.runs()]
            store.put_rows(rows_of(cell, [found for found in outcomes if found is not None], laboratory))
            waiting.remove(cell)

    score_what_is_complete()  # what an interrupted benchmark left unscored
    with closing(map_runs(partial(attack_one, laboratory), [*missing.values()])) as outcomes:
        for outcome in outcomes:
            store.add(outcome)
            ended.add(outcome.key)
            told(outcome)
            score_what_is_complete()
    rows = {row.key: row for row in store.rows()}
    return tuple(rows[run.row_key] for cell in cells for run in cell.runs())


def attack_one(laboratory: Laboratory, run: Run) -> Outcome:
    """Let a site train, look at what it sent, attack, and lay the result beside the truth.

    What an attack cannot be run on is an outcome too: its ``error``.

    Raises:
        FederationError: the cell itself is wrong: an unknown attack or option, knowledge that the attack lacks.
    """
    truth = laboratory.batch(run)
    arrays: dict[str, NDArray[np.generic]] = {
        "truth": truth.images.numpy(),
        "labels": truth.labels.numpy(),
        "patients": np.array(truth.patients, str),
    }
    found, error, clock = Reconstruction(), "", _Stopwatch()
    _forget_peak()
    try:
        found = _attacked(laboratory, run, truth, clock)
        arrays |= _found_arrays(found, truth, run)
    except (AttackError, UnsendableUpdateError) as raised:
        error = f"{type(raised).__name__}: {raised}"
    return Outcome(
        key=run.key,
        spec=run.spec(),
        arrays=arrays,
        loss=found.loss,
        cpu_seconds=clock.cpu_seconds,
        wall_seconds=clock.wall_seconds,
        peak_mb=_peak_mb(),
        trace=tuple((point.iteration, point.loss) for point in found.trace),
        error=error,
        versions=VERSIONS,
    )


def _attacked(laboratory: Laboratory, run: Run, truth: Truth, clock: _Stopwatch) -> Reconstruction:
    """The whole way of one update: model, defense, local training, what the threat model grants, attack."""
    cell, rng = run.cell, run.generator("attack")
    domain, public = laboratory.domain(cell.case), laboratory.public(cell.case)
    attack, defense = _with_trace(listed(cell.attack).make(**dict(cell.options))), registered(cell.defense)
    model = laboratory.model(cell)
    if hasattr(attack, "prepare"):
        with clock:
            model = attack.prepare(model, domain, rng, public if cell.granted().public_data else None)
    site = site_training(cell)
    observation = observe(model, truth.images, truth.labels, site, run.generator("site"), domain.num_classes)
    chain, noise = _chain_of(defense, laboratory, run, model, truth), _numpy(run.generator("sending"))
    observation = sent_through(granting(observation, public_data=public), chain, noise)
    with clock:
        found: Reconstruction = attack(observation.limited_to(cell.granted()), cell.granted(), rng)
    return found


def site_training(cell: Cell) -> SiteTraining:
    """How the sites of a cell train."""
    local = LocalTraining(cell.local_steps, cell.batch) if cell.local_steps else None
    return SiteTraining(local, cell.learning_rate)


def _chain_of(defense: Registered, laboratory: Laboratory, run: Run, model: nn.Module, truth: Truth) -> Chain:
    """What the site does to its update; an empty chain where the defense is elsewhere, or nowhere."""
    if defense.chain is None:
        return Chain()
    learned = laboratory.public_side(run.cell, model) if defense.learns is not Lesson.NOTHING else PublicSide()
    return defense.chain(
        SiteSide(
            layout_of(model),
            model,
            truth.images,
            truth.labels,
            learned.codec,
            learned.max_norm,
            learned.nonlinear,
            round_seed=_numpy(run.generator("round")).bytes(32),
        )
    )


def _numpy(rng: torch.Generator) -> np.random.Generator:
    return np.random.default_rng(int(torch.randint(1 << 62, (), generator=rng)))


def _with_trace(attack: Any) -> Any:
    """The attack that also keeps its losses, where it has any and its options do not say how often."""
    if getattr(attack, "trace_every", None) == 0:
        return replace(attack, trace_every=max(1, attack.iterations // _MOMENTS))
    return attack


def _found_arrays(found: Reconstruction, truth: Truth, run: Run) -> dict[str, NDArray[np.generic]]:
    """What was found, each picture beside the image that it is matched to."""
    arrays: dict[str, NDArray[np.generic]] = {}
    if found.labels is not None:
        arrays["found_labels"] = found.labels.cpu().numpy()
    scores = score(found, truth)
    if found.images is None or scores.images is None:
        return arrays
    arrays["found"] = scores.images.to(DTYPES[run.cell.dtype]).numpy()
    arrays["is_found"] = scores.found
    in_found, in_truth = match(found.images, truth.images)
    frames = [point for point in found.trace if point.images is not None and len(point.images) == len(found.images)]
    if run.index == 0 and 0 in in_truth and frames:
        place = int(in_found[in_truth.tolist().index(0)])
        pictures = [_levels(point.images[place]) for point in frames if point.images is not None]
        arrays["frames"] = np.stack(pictures)
        arrays["frame_iterations"] = np.array([point.iteration for point in frames])
    return arrays


def _levels(image: Tensor) -> NDArray[np.uint8]:
    return (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()


class _Stopwatch:
    """Processor and wall seconds of what happened inside it, over several times."""

    def __init__(self) -> None:
        self.cpu_seconds = self.wall_seconds = 0.0

    def __enter__(self) -> None:
        self.cpu_seconds -= time.process_time()
        self.wall_seconds -= time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.cpu_seconds += time.process_time()
        self.wall_seconds += time.perf_counter()


def _forget_peak() -> None:
    """Let the kernel count this process's peak memory anew; where it cannot, the peak is that of all runs so far."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")


def _peak_mb() -> float:
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
