"""What a plan's updates give away of single images behind a chain: measured on canaries, before anything is trained.

The plan's code runs in a child with a limit of CPU seconds (``leak_test_worker``), in the site's box: once to make the
canaries' updates, once for the attacks. It reads what this process left for it, and hands back rows and arrays through
two files that this process opened. Between the two this process takes the updates through the *same* chain as real
ones, with noise of its own. What was sent undefended is attacked first: only where that shows an image do later
failures mean anything.

| what is sent | why |
|---|---|
| the gradient of one image | the most that a training can say of it; as strong as a clip lets through |
| the plan's own local training on that image | what the site would in fact send; where the budget allows |

The child runs approved code and is believed: a plan that wants to look harmless can tell a canary from a patient. The
attacks get the labels, the model, the codec and the size of the noise. Learned inversion needs more than the budget and
is left to the benchmark.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..gradient_leakage.defenses.chain import Chain
from ..gradient_leakage.defenses.clip import Clip
from ..gradient_leakage.defenses.coded import Coded
from ..gradient_leakage.defenses.gaussian import GaussianMechanism
from ..gradient_leakage.vae.codec import Codec, codec_bytes, read_codec
from ..utils.errors import ConfigError, PlanError, StorageError, TrainingError
from ..utils.plan_bundle import Bundle, PlanKind
from ..utils.privacy.noise import NoiseSource
from ..utils.tensors import Role, Vector, canonical_json, digest_of
from ..utils.visible import visible
from .canaries import Canaries
from .recipes.catalogue import engine_of
from .sandbox.box import Program
from .sandbox.boxed import Boxed
from .sandbox.sandbox import Sandbox
from .sandbox.scratch import PREFIX
from .sandbox.view import View
from .worker_log import WorkerLog

BREAKS_AT = 0.1  # SSIM gain over the null at which an undefended update counts as broken
SEEN_FILE = "gradient-seen.npy"  # the targets' images as the model saw them
SHARE_OF_TRAINING = 0.5  # of the budget, at most: making the updates, torch's import among it
_SPARE_SECONDS = 60.0  # of wall time beside the budget: a loaded machine
_WORST_SLOWDOWN = 10.0  # wall time to CPU time
_LOOK_SECONDS = 0.02
_MAX_ROWS_BYTES = 4 << 20
_ARRAY = re.compile(r"[a-z][a-z0-9-]{0,80}\.npy")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Sent(Enum):
    """What a canary's site sent."""

    GRADIENT = "gradient"
    TRAINING = "training"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attack on the updates of all targets."""

    sent: Sent
    attack: str
    is_defended: bool
    gain: float | None = None  # mean SSIM over the null's; None: it was not run to its end
    ssim: float | None = None
    identified: int = 0  # targets that were found again among the canaries
    targets: int = 0
    reason: str = ""  # why there is no figure
    is_unfit: bool = False  # the attack cannot be run on this model at all, whatever the budget
    iterations: int = 0  # of an attack that descends
    pictures: str = ""  # file in the folder of the test

    @property
    def breaks(self) -> bool:
        """Does it show the images?"""
        return self.gain is not None and self.gain >= BREAKS_AT and 2 * self.identified >= self.targets > 0


@dataclass(frozen=True, slots=True)
class LeakTest:
    """All of a measurement."""

    attempts: tuple[Attempt, ...]
    cpu_seconds: float
    has_chain: bool  # whether anything is done to what is sent
    is_whole: bool = True  # the child came to the end of what has to be measured

    @property
    def score(self) -> float | None:
        """Mean SSIM gain over the null of the worst attack on what leaves; None: not measurable."""
        return None if self.obstacle else max(0.0, *(a.gain for a in self._on_what_leaves if a.gain is not None))

    @property
    def obstacle(self) -> str:
        """Why there is no score; empty where there is one. It names nothing but the plan's and the attacks' own."""
        undefended = [attempt for attempt in self.attempts if not attempt.is_defended]
        if not any(attempt.breaks for attempt in undefended):
            return "not measurable: no attack shows the public canaries even without protection"
        seen = self._on_what_leaves
        if not any(attempt.gain is not None for attempt in seen):
            return "not measurable: no attack on the protected update came to its end"
        if not self.is_whole:
            return "not measurable: the budget ended in the midst of an attack"
        late = [a.attack for a in seen if a.gain is None and not a.is_unfit and a.sent is Sent.GRADIENT]
        return f"not measurable: the budget ended before {', '.join(late)}" if late else ""

    @property
    def _on_what_leaves(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts if attempt.is_defended is self.has_chain]


def measure(
    plan: Bundle,
    chain: Chain,
    canaries: Canaries,
    *,
    cpu_seconds: float,
    rng: NoiseSource,
    log: Path,
    sandbox: Sandbox,
    keep: Path | None = None,
    started: Callable[[Boxed], None] = lambda _: None,
) -> LeakTest:
    """Measure one plan behind one chain.

    Args:
        plan: its initial weights are those that are measured: fresh ones give most away.
        chain: as real updates pass it; of a codec that is drawn each round, any round's.
        canaries: of the plan's shape.
        cpu_seconds: of both children together, at most.
        rng: of the chain's noise.
        log: takes what the plan prints; it stays at the site.
        sandbox: the site's box.
        keep: a folder for the pictures' pixels; none: they are deleted.
        started: is told each child, so that it can be ended from outside.

    Returns:
        Also where nothing could be measured; then it has an ``obstacle``.

    Raises:
        ConfigError: no attack reads such a plan.
        PlanError: the plan raised, or died before any update was made.
        SandboxError: no box that the site asks for works here.
        StorageError: there is no room for the measurement.
    """
    if engine_of(plan.manifest) is not PlanKind.TORCH:
        raise ConfigError("not measurable: the attacks read a torch model, and the plan has none")
    if plan.layout.slice_of(Role.CONTROL) != slice(0, 0):
        raise ConfigError("not measurable: no attack reads SCAFFOLD's control variates yet")
    with _folder(log.parent) as folder:
        try:
            np.savez(folder / "canaries.npz", images=canaries.images, classes=canaries.classes)
            order: dict[str, Any] = {"bundle": str(plan.folder.absolute()), "plan": plan.digest}
            run = _Runs(folder, plan.folder, log, sandbox, started)
            made = run.phase("make", order, cpu_seconds * SHARE_OF_TRAINING)
            if not made or "error" in made[-1]:
                raise TrainingError(made[-1]["error"] if made else "the plan made no update within the budget")
            of_round = _of_a_round(chain)
            kinds = [kind for kind in Sent if (folder / f"{kind.value}.npy").exists()]
            if of_round.steps:
                for kind in kinds:
                    _protect(folder, kind, of_round, rng)
            order |= {"kinds": [kind.value for kind in kinds], "steps": _steps_to_json(of_round, folder)}
            rows = run.phase("attack", order, cpu_seconds - run.used)
        except OSError as error:
            raise StorageError(f"no room for a leak test: {error.strerror}") from error
        if rows and "error" in rows[-1]:
            raise TrainingError(rows[-1]["error"])
        attempts = tuple(_attempt(row) for row in rows if "attack" in row)
        if keep is not None:
            shutil.copytree(folder, keep, dirs_exist_ok=True)
        return LeakTest(attempts, run.used, bool(of_round.steps), any("whole" in row for row in rows))


@contextlib.contextmanager
def _folder(beside: Path) -> Iterator[Path]:
    """For a while, and for its owner alone: it may hold a site's own images."""
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-", dir=beside) as name:
        yield Path(name)


def _of_a_round(chain: Chain) -> Chain:
    """With directions drawn, where the codec draws them each round: a fixed seed, for any round is like another."""
    seed = bytes.fromhex(digest_of(canonical_json(["fedveil/leak-test"])))
    steps = (Coded(step.codec.for_round(seed)) if isinstance(step, Coded) else step for step in chain.steps)
    return Chain(tuple(steps))


def _protect(folder: Path, kind: Sent, chain: Chain, rng: NoiseSource) -> None:
    """Take each target's update through the chain: what leaves, and what the director reads of it."""
    updates: NDArray[np.float32] = np.load(folder / f"{kind.value}.npy", allow_pickle=False)
    payloads: list[Vector] = [chain(update, rng) for update in updates]
    np.save(folder / f"{kind.value}-payload.npy", np.stack(payloads))
    np.save(folder / f"{kind.value}-decoded.npy", np.stack([chain.decoded(payload) for payload in payloads]))


def _steps_to_json(chain: Chain, folder: Path) -> list[list[Any]]:
    """The chain for the child, which tells it to the attacks that know the defense; it holds no secret."""
    steps: list[list[Any]] = []
    for step in chain.steps:
        if isinstance(step, Coded):
            (folder / "codec.safetensors").write_bytes(codec_bytes(step.codec))
            steps.append(["encode"])
        elif isinstance(step, GaussianMechanism):
            steps.append(["noise", step.max_norm, step.noise_multiplier])
        elif isinstance(step, Clip):
            steps.append(["clip", step.max_norm])
        else:
            raise ConfigError(f"not measurable: {step.label} is no step of an envoy's chain")
    return steps


def chain_from_json(steps: Sequence[Sequence[Any]], folder: Path) -> Chain:
    """Read what the parent wrote, in the child."""
    made: list[Clip | Coded | GaussianMechanism] = []
    for name, *numbers in steps:
        if name == "encode":
            codec: Codec = read_codec((folder / "codec.safetensors").read_bytes())
            made.append(Coded(codec))
        else:
            made.append(GaussianMechanism(*numbers) if name == "noise" else Clip(*numbers))
    return _of_a_round(Chain(tuple(made)))


class _Runs:
    """Children one after the other, each with its own limit of CPU seconds."""

    def __init__(
        self, folder: Path, bundle: Path, log: Path, sandbox: Sandbox, started: Callable[[Boxed], None]
    ) -> None:
        self._folder, self._log, self._sandbox, self._started = folder, log, sandbox, started
        self._view = View.of([folder, bundle])
        self.used = 0.0

    def phase(self, name: str, order: dict[str, Any], seconds: float) -> list[dict[str, Any]]:
        """Run one phase; its rows, also where the limit ended it. Arrays that it made lie in the folder then."""
        (self._folder / "order.json").write_text(json.dumps(order | {"phase": name, "seconds": seconds}))
        lifeline, ours = os.pipe()
        with (
            tempfile.TemporaryFile(dir=self._folder.parent) as rows,
            tempfile.TemporaryFile(dir=self._folder.parent) as arrays,
        ):
            log = WorkerLog(self._log)
            try:
                given = (rows.fileno(), arrays.fileno(), lifeline)
                boxed = self._sandbox.start(
                    Program(
                        module="fedveil.envoy.leak_test_worker",
                        arguments=(str(self._folder.absolute()), *map(str, given)),
                        view=self._view,
                        descriptors=given,
                        output=log.writable,
                        environment=ONE_THREAD,
                    )
                )
                log.handed_over()
                self._started(boxed)
                try:
                    self.used += self._wait(boxed, log, seconds)
                finally:
                    boxed.end()
            finally:
                log.close()
                os.close(lifeline)
                os.close(ours)
            return list(self._harvest(_rows(rows), arrays))

    def _wait(self, boxed: Boxed, log: WorkerLog, seconds: float) -> float:
        """Until it has ended; the CPU seconds that it took."""
        deadline = time.monotonic() + seconds * _WORST_SLOWDOWN + _SPARE_SECONDS
        used = 0.0
        while boxed.is_alive:
            used = max(used, boxed.cpu_seconds())
            if time.monotonic() > deadline:
                boxed.kill()
                return seconds
            log.copy()
            time.sleep(_LOOK_SECONDS)
        return used

    def _harvest(self, rows: Iterable[dict[str, Any]], arrays: BinaryIO) -> Iterator[dict[str, Any]]:
        """Put the arrays of the rows where the next phase reads them; the plan's code may have written the rows."""
        for row in rows:
            if "array" not in row:
                yield row
                continue
            name, offset, length = row["array"], row.get("offset"), row.get("length")
            if not (isinstance(name, str) and _ARRAY.fullmatch(name) and type(offset) is type(length) is int):
                raise PlanError("the leak test's answer cannot be read (an array)")
            if not 0 <= offset <= offset + length <= arrays.seek(0, os.SEEK_END):
                raise PlanError("the leak test's answer cannot be read (an array is cut short)")
            arrays.seek(offset)
            (self._folder / name).write_bytes(arrays.read(length))


def _rows(file: BinaryIO) -> list[dict[str, Any]]:
    """What a child wrote, line by line; a line that its end cut short is left out."""
    rows = []
    file.seek(0)
    for line in file.read(_MAX_ROWS_BYTES).decode("utf-8", "replace").splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict):
                rows.append(row)
    return rows


def _attempt(row: dict[str, Any]) -> Attempt:
    """Strictly: the plan's code ran in the process that wrote it.

    Raises:
        PlanError: no such row.
    """
    try:
        gain, ssim = (None if row[key] is None else float(row[key]) for key in ("gain", "ssim"))
        return Attempt(
            sent=Sent(row["sent"]),
            attack=visible(str(row["attack"])[:100]),
            is_defended=bool(row["is_defended"]),
            gain=gain,
            ssim=ssim,
            identified=int(row["identified"]),
            targets=int(row["targets"]),
            reason=visible(str(row["reason"])[:300]),
            is_unfit=bool(row["is_unfit"]),
            iterations=int(row["iterations"]),
            pictures=str(row["pictures"]),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise PlanError(f"the leak test's answer cannot be read ({type(error).__name__})") from error
