"""``fedveil attack run`` and ``fedveil attack list``: one attack on somebody's own images and model, or on a record.

Composes: images, model and threat model come together here, the attack sees the observation alone, and what it found
meets the truth in ``attack_report``.
"""

from __future__ import annotations

import io
import json
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from .. import __version__
from ..gradient_leakage.attacks.catalogue import ATTACKS, Listed, listed
from ..gradient_leakage.metrics import Truth, match, score
from ..gradient_leakage.pictures import draw_emerging
from ..gradient_leakage.threat_model import (
    Granted,
    ImageDomain,
    Knowledge,
    LocalTraining,
    Observation,
    PublicImages,
    Reconstruction,
)
from ..gradient_leakage.victim import SiteTraining, granting, observe, require_batch
from ..utils.errors import AttackError, ConfigError, DatasetError, StorageError
from .attack_report import Attacked, Json, as_json, as_words, figures_of
from .attacked_models import attacked_model, num_classes_of
from .leakage_data import OwnImages, read_images
from .recorded_update import recorded

_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_FRAMES = 48  # of an animation, at most
_MOMENTS = 200  # at which an attack that is to be animated keeps its pictures; it may be done after a tenth of them
_HOW_TO_GRANT = {
    "labels": "give --images",
    "batch_norm_statistics": "only a model with batch normalisation has them, and no recorded update",
    "decoder": "attack run has no defense with a decoder",
    "local_steps": "give --local-steps",
    "learning_rate": "give --local-steps, or a plan with plain SGD",
    "public_data": "give --public",
}


@dataclass(frozen=True, slots=True)
class AttackRun:
    """What is asked for; the flags of the command."""

    attack: str
    images: Path | None = None
    model: str = "tanh-cnn"
    batch: int = 1
    local_steps: int = 0
    learning_rate: float = 0.01
    classes: int | None = None
    image_size: int | None = None
    know: str | None = None
    options: tuple[str, ...] = ()
    public: Path | None = None
    update: Path | None = None
    plan: Path | None = None
    weights: Path | None = None
    examples: int | None = None
    seed: int = 0
    dtype: str = "float32"
    device: str = "auto"

    def __post_init__(self) -> None:
        """Refuse what does not go together.

        Raises:
            ConfigError: says what.
        """
        if (self.update is None) != (self.plan is None):
            raise ConfigError("--update and --plan go together: the plan says what the update's numbers mean")
        if self.update is None and self.images is None:
            raise ConfigError("nothing to attack: give --images, or --update with --plan")
        if self.update is not None and self.dtype != "float32":
            raise ConfigError("a recorded update is float32; leave --dtype out")
        if self.update is None and (self.weights is not None or self.examples is not None):
            raise ConfigError("--weights and --examples belong to a recorded --update")
        if self.batch < 1 or self.local_steps < 0 or self.learning_rate <= 0:
            raise ConfigError("--batch is at least 1, --local-steps at least 0, and --learning-rate positive")
        if self.dtype not in _DTYPES or self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"--dtype is one of {', '.join(_DTYPES)}; --device one of auto, cpu, cuda")


@dataclass(frozen=True, slots=True)
class Outputs:
    """Files to write."""

    json: Path | None = None
    save: Path | None = None
    gif: Path | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Target:
    """One update to attack, and its truth where that is known."""

    observation: Observation
    truth: Truth | None


def attack_lines() -> Iterator[str]:
    """All attacks of the catalogue, four lines each."""
    for one in ATTACKS:
        yield one.name
        yield f"    {one.title}"
        yield f"    {one.paper}"
        yield f"    {one.adversary.value} finds {one.finds}; must know: {_names_of(one.make().needs) or 'nothing more'}"


def run_attack(asked: AttackRun, outputs: Outputs, console: Console) -> dict[str, Json]:
    """Attack, score, write what is asked for, and show it.

    Returns:
        What ``--json`` writes.

    Raises:
        FederationError: something asked for is not there, does not fit, or cannot be attacked so.
    """
    entry = listed(asked.attack)
    attack = _made(entry, asked.options, wants_trace=outputs.gif is not None)
    knowledge = attack.needs if asked.know is None else _knowledge_of(asked.know)
    device = _device_of(asked.device)
    own = None if asked.images is None else read_images(asked.images, asked.image_size)
    public = None if asked.public is None else _truth_of(read_images(asked.public, asked.image_size))
    remarks: tuple[str, ...] = ()
    targets: Sequence[Callable[[], _Target]]
    if own is not None and asked.update is None:
        laboratory = _Laboratory(asked, attack, own, public, device)
        targets = [partial(laboratory.target, place) for place in range(laboratory.num_batches)]
    else:
        target, remarks = _recorded_target(asked, own, public, device)
        targets = [lambda: target]
    attacked: list[Attacked] = []
    with Progress(console=console, transient=True) as progress:
        for place, target_at in enumerate(progress.track(targets, description=entry.name)):
            attacked.append(_attack_one(attack, target_at(), knowledge, _generator(asked.seed, place, 2)))
    errors = [one.error for one in attacked if one.error is not None]
    if len(errors) == len(attacked):
        raise errors[0]
    figures = figures_of(attacked, public, np.random.default_rng(asked.seed))
    report = _described(asked, attack, knowledge, attacked, remarks) | as_json(attacked, figures, asked.seed)
    _write(outputs, report, attacked)
    for remark in remarks:
        console.print(f"note: {remark}", markup=False)
    console.print(as_words(f"{entry.name} ({entry.paper})", attacked, figures, asked.seed))
    return report


class _Laboratory:
    """Somebody's own images, batch after batch through a site's training."""

    def __init__(
        self, asked: AttackRun, attack: Any, own: OwnImages, public: Truth | None, device: torch.device
    ) -> None:
        self._asked, self._attack, self._public = asked, attack, public
        dtype = _DTYPES[asked.dtype]
        self._images, self._labels = own.images.to(dtype), own.labels
        channels, height, width = own.images.shape[1:]
        wanted = max(2, int(own.labels.max()) + 1) if asked.classes is None else asked.classes
        domain = ImageDomain((channels, height, width), wanted)
        self._model = attacked_model(asked.model, domain, asked.seed).to(device, dtype)
        found = num_classes_of(self._model, asked.model, self._images[: asked.batch])
        self._domain = replace(domain, num_classes=found)
        require_batch(self._images, self._labels, found)
        if public is not None:
            _require_alike(public, self._domain, "--public")

    @property
    def num_batches(self) -> int:
        """The last may be smaller: every image is attacked."""
        return -(-len(self._images) // self._asked.batch)

    def target(self, place: int) -> _Target:
        """Let the site train on one batch, and look at what it sends."""
        asked, chosen = self._asked, slice(place * self._asked.batch, (place + 1) * self._asked.batch)
        images, labels = self._images[chosen], self._labels[chosen]
        model: nn.Module = self._model
        public = None if self._public is None else PublicImages(self._public.images, self._public.labels)
        if hasattr(self._attack, "prepare"):
            model = self._attack.prepare(model, self._domain, _generator(asked.seed, place, 0), public)
        local = LocalTraining(asked.local_steps, len(images)) if asked.local_steps else None
        site = SiteTraining(local, asked.learning_rate)
        seen = observe(model, images, labels, site, _generator(asked.seed, place, 1), self._domain.num_classes)
        return _Target(granting(seen, public_data=public), Truth(images, labels))


def _recorded_target(
    asked: AttackRun, own: OwnImages | None, public: Truth | None, device: torch.device
) -> tuple[_Target, tuple[str, ...]]:
    assert asked.update is not None
    assert asked.plan is not None
    count = asked.examples if asked.examples is not None else (0 if own is None else len(own.images))
    if count < 1:
        raise ConfigError("how many images made the update? Give --examples (it travels beside it), or --images")
    if own is not None and len(own.images) != count:
        raise ConfigError(f"--examples says {count} images made the update, --images holds {len(own.images)}")
    found = recorded(asked.update, asked.plan, asked.weights, count, device)
    observation = found.observation
    for name, images in (("--images", None if own is None else _truth_of(own)), ("--public", public)):
        if images is not None:
            _require_alike(images, observation.domain, name)
    if public is not None:
        observation = granting(observation, public_data=PublicImages(public.images, public.labels))
    if own is None:
        return _Target(observation, None), found.remarks
    return _Target(granting(observation, labels=own.labels), _truth_of(own)), found.remarks


def _attack_one(attack: Any, target: _Target, knowledge: Knowledge, rng: torch.Generator) -> Attacked:
    """One attack in seconds of this process's CPU; that it cannot be run on this update is a result too."""
    seen = target.observation.limited_to(knowledge)
    for entry in fields(Granted):
        if getattr(knowledge, entry.name) and getattr(seen.granted, entry.name) is None:
            raise ConfigError(f"the attacker is to know {entry.name}, which is not there: {_HOW_TO_GRANT[entry.name]}")
    found, error, started = Reconstruction(), None, time.process_time()
    try:
        found = attack(seen, knowledge, rng)
    except AttackError as raised:
        error = raised
    seconds = time.process_time() - started
    scores = None if target.truth is None else score(found, target.truth)
    return Attacked(found, seconds, target.truth, scores, error)


def _made(entry: Listed, options: Sequence[str], *, wants_trace: bool) -> Any:
    """The attack with its options.

    Raises:
        ConfigError: an option that it does not have, or it does not look at the update of one site.
    """
    attack = entry.make(**dict(map(_option, options)))
    reads = get_type_hints(type(attack).__call__).get("observation")
    if reads is not Observation:
        name = getattr(reads, "__name__", "something else")
        raise ConfigError(f"{entry.name} reads a {name}, not one update of one site: attack run cannot give it that")
    if wants_trace:
        if not hasattr(attack, "trace_every"):
            raise ConfigError(
                f"{entry.name} finds its images in one step: there is nothing to animate, leave --gif out"
            )
        if attack.trace_every == 0:
            attack = replace(attack, trace_every=max(1, attack.iterations // _MOMENTS))
    return attack


def _option(text: str) -> tuple[str, Any]:
    """``name=value``; the value reads as in TOML, and as text where it is none."""
    name, sign, value = text.partition("=")
    if not sign:
        raise ConfigError(f"--option {text!r}: expected name=value")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value


def _knowledge_of(text: str) -> Knowledge:
    names = [name.strip() for name in text.split(",") if name.strip() not in ("", "nothing")]
    known = [entry.name for entry in fields(Knowledge)]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"--know {', '.join(unknown)}: expected some of {', '.join(known)}, or nothing")
    return Knowledge(**dict.fromkeys(names, True))


def _names_of(knowledge: Knowledge) -> str:
    return ", ".join(entry.name for entry in fields(knowledge) if getattr(knowledge, entry.name))


def _device_of(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device here; use auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _generator(seed: int, place: int, purpose: int) -> torch.Generator:
    """A generator of its own for each batch and purpose."""
    words = np.random.SeedSequence([seed, place, purpose]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]) >> 1)


def _truth_of(own: OwnImages) -> Truth:
    return Truth(own.images, own.labels)


def _require_alike(images: Truth, domain: ImageDomain, flag: str) -> None:
    if tuple(images.images.shape[1:]) != domain.shape:
        raise DatasetError(f"{flag} holds images of shape {tuple(images.images.shape[1:])}, expected {domain.shape}")
    require_batch(images.images, images.labels, domain.num_classes)


def _described(
    asked: AttackRun, attack: Any, knowledge: Knowledge, attacked: Sequence[Attacked], remarks: Sequence[str]
) -> dict[str, Json]:
    """What was run, with all of the attack's options."""
    config: dict[str, Json] = {
        key: str(value) if isinstance(value, Path) else value for key, value in asdict(asked).items()
    }
    named = asdict(attack) if is_dataclass(attack) and not isinstance(attack, type) else {}
    config["options"] = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in named.items()}
    config["know"] = [name for name in _names_of(knowledge).split(", ") if name]
    if asked.update is not None:
        config["model"] = "of the plan"
    images = sum(0 if one.truth is None else len(one.truth.images) for one in attacked)
    packages = {"fedveil": __version__} | {p: version(p) for p in ("torch", "numpy", "scipy", "scikit-image")}
    return {
        "schema": "fedveil.attack-run/1",
        "attack": asked.attack,
        "config": config,
        "images": images,
        "updates": len(attacked),
        "remarks": list(remarks),
        "versions": dict(packages),
    }


def _write(outputs: Outputs, report: dict[str, Json], attacked: Sequence[Attacked]) -> None:
    if outputs.save is not None:
        _keep(outputs.save, _npz_of(attacked))
    if outputs.gif is not None:
        _keep(outputs.gif, _animation_of(attacked[0]))
    if outputs.json is not None:
        _keep(outputs.json, (json.dumps(report, indent=2, allow_nan=False) + "\n").encode())


def _keep(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}") from error


def _npz_of(attacked: Sequence[Attacked]) -> bytes:
    """``truth`` and ``reconstruction`` in the same order, as far as there are any."""
    arrays: dict[str, Any] = {}
    truths = [one.truth for one in attacked if one.truth is not None]
    pictures = [one.found.images if one.scores is None else one.scores.images for one in attacked]
    if truths:
        arrays["truth"] = torch.cat([truth.images.float() for truth in truths]).numpy()
        arrays["labels"] = torch.cat([truth.labels for truth in truths]).numpy()
    if any(images is not None for images in pictures):
        found = [
            # Where an update could not be attacked: nothing was found.
            torch.full_like(one.truth.images, 0.5) if images is None and one.truth is not None else images
            for one, images in zip(attacked, pictures, strict=True)
        ]
        kept = [images.detach().float().nan_to_num(0.5).clamp(0, 1) for images in found if images is not None]
        arrays["reconstruction"] = torch.cat(kept).numpy()
    labels = [one.found.labels for one in attacked if one.found.labels is not None]
    if labels:
        arrays["found_labels"] = torch.cat(labels).numpy()
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def _animation_of(one: Attacked) -> bytes:
    """The first image of the update as it emerges, beside the original where that is known."""
    points = [(p.iteration, p.loss, p.images) for p in one.found.trace if p.images is not None]
    if not points or one.found.images is None:
        raise AttackError("the attack kept no picture on its way: there is nothing to animate")
    place = 0
    if one.truth is not None:
        in_found, in_truth = match(one.found.images, one.truth.images)
        place = int(in_found[in_truth.tolist().index(0)]) if 0 in in_truth else 0
    original: Tensor = one.found.images[place] if one.truth is None else one.truth.images[0]
    points = [points[n] for n in np.linspace(0, len(points) - 1, min(_FRAMES, len(points))).round().astype(int)]
    words = [f"iteration {iteration}, loss {loss:.3g}" for iteration, loss, _ in points]
    frames = [images[place].detach().cpu().float().numpy() for _, _, images in points]
    return draw_emerging(original.cpu().float().numpy(), frames, words)
