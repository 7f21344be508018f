"""``fedveil attack run`` and ``fedveil attack list``: one attack on somebody's own images and model, or on a record.

Composes: images, model and threat model come together here, the attack sees the observation alone, and what it found
meets the truth in ``attack_report``.
"""

from __future__ import annotations

import math
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

from .. import __version__
from ..gradient_leakage.attacks.catalogue import ATTACKS, Listed, listed
from ..gradient_leakage.cases import patients_by_content
from ..gradient_leakage.metrics import Truth, score
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
from ..utils.errors import AttackError, ConfigError, DatasetError, FederationError
from .attack_outputs import Outputs
from .attack_report import Attacked, Json, as_json, as_words, figures_of
from .attacked_models import attacked_model, num_classes_of
from .leakage_data import OwnImages, read_images
from .recorded_update import recorded

_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_MODEL, _LEARNING_RATE = "tanh-cnn", 0.01  # where nothing else is asked for
_MOMENTS = 200  # at which an attack that is to be animated keeps its pictures; it may be done after a tenth of them
_MOST_INFERRED_CLASSES = 10_000  # more of them are patients' numbers or a mistake, and would fill the memory
_LEAST_PIXELS = 3  # a side; SSIM has no smaller window
_OF_OWN_MODELS = ("model", "batch", "local_steps", "learning_rate", "classes")  # a plan says these of its updates
_HOW_TO_GRANT = {
    "labels": "give --images",
    "batch_norm_statistics": "only a model with batch normalisation has them, and no recorded update",
    "defense": "attack run puts no defense before what is sent",
    "local_steps": "give --local-steps",
    "learning_rate": "give --local-steps, or a plan with plain SGD",
    "public_data": "give --public",
}


@dataclass(frozen=True, slots=True)
class AttackRun:
    """What is asked for; the flags of the command. None: not given."""

    attack: str
    images: Path | None = None
    model: str | None = None
    batch: int | None = None
    local_steps: int | None = None
    learning_rate: float | None = None
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
        unused = [name for name in _OF_OWN_MODELS if getattr(self, name) is not None]
        if self.update is not None and unused:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
            raise ConfigError(f"leave {flags} out: the plan says it of a recorded --update")
        if (self.batch or 1) < 1 or (self.local_steps or 0) < 0:
            raise ConfigError("--batch is at least 1, and --local-steps at least 0")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"--learning-rate {self.learning_rate}: expected a positive number")
        if self.learning_rate is not None and not self.local_steps:
            raise ConfigError("--learning-rate belongs to --local-steps: a gradient has none")
        if self.dtype not in _DTYPES or self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"--dtype is one of {', '.join(_DTYPES)}; --device one of auto, cpu, cuda")


@dataclass(frozen=True, slots=True, eq=False)
class _Target:
    """One update to attack, and its truth where that is known."""

    observe: Callable[[], Observation]  # made when its turn comes
    truth: Truth | None


def attack_lines() -> Iterator[str]:
    """All attacks of the catalogue, four lines each."""
    for one in ATTACKS:
        yield one.name
        yield f"    {one.title}"
        yield f"    {one.paper}"
        yield f"    {one.adversary.value} finds {one.finds}; must know: {_names_of(one.make().needs) or 'nothing more'}"


def run_attack(asked: AttackRun, outputs: Outputs, console: Console) -> dict[str, Json]:
    """Attack, score, show it, and write what is asked for.

    Returns:
        What ``--json`` writes.

    Raises:
        FederationError: something asked for is not there, does not fit, or cannot be attacked so; or an output failed,
            after all else was shown and written.
        KeyboardInterrupt: says after how many updates; what had ended was shown and written.
    """
    entry = listed(asked.attack)
    attack = _made(entry, asked.options, wants_trace=outputs.gif is not None)
    knowledge = attack.needs if asked.know is None else _knowledge_of(asked.know)
    device = _device_of(asked.device)
    outputs.require_writable()
    own = None if asked.images is None else read_images(asked.images, asked.image_size)
    public = None if asked.public is None else _truth_of(read_images(asked.public, asked.image_size))
    if own is not None:
        _require_measurable(own, public)
    remarks: tuple[str, ...] = ()
    if own is not None and asked.update is None:
        laboratory = _Laboratory(asked, attack, own, public if knowledge.public_data else None, device)
        if public is not None:
            _require_alike(public, laboratory.domain, "--public")
        targets = laboratory.targets()
    else:
        target, remarks = _recorded_target(asked, own, public, device)
        targets = [target]
    attacked: list[Attacked] = []
    interrupted = ""
    with Progress(console=console, transient=True) as progress:
        try:
            for place, target in enumerate(progress.track(targets, description=entry.name)):
                attacked.append(_attack_one(attack, target, knowledge, _generator(asked.seed, place, 2)))
        except KeyboardInterrupt:
            interrupted = f"interrupted after {len(attacked)} of {len(targets)} updates"
            remarks = (*remarks, interrupted)
    errors = [one.error for one in attacked if one.error is not None]
    if len(errors) == len(attacked):
        raise KeyboardInterrupt(interrupted) if interrupted else errors[0]
    figures = figures_of(attacked, public, np.random.default_rng(asked.seed))
    report = _described(asked, attack, knowledge, attacked, remarks) | as_json(attacked, figures, asked.seed)
    for remark in remarks:
        console.print(f"note: {remark}", markup=False)
    console.print(as_words(f"{entry.name} ({entry.paper})", attacked, figures, asked.seed))
    outputs.write(report, attacked)
    if interrupted:
        raise KeyboardInterrupt(interrupted)
    return report


class _Laboratory:
    """Somebody's own images, batch after batch through a site's training."""

    def __init__(
        self, asked: AttackRun, attack: Any, own: OwnImages, public: Truth | None, device: torch.device
    ) -> None:
        self._asked, self._attack = asked, attack
        self._public = None if public is None else PublicImages(public.images, public.labels)
        self._batch = asked.batch or 1
        if self._batch > len(own.images):
            raise ConfigError(f"--batch {self._batch}: there are {len(own.images)} images")
        dtype = _DTYPES[asked.dtype]
        truth = _truth_of(own)
        self._truth = replace(truth, images=truth.images.to(dtype))
        channels, height, width = own.images.shape[1:]
        domain = ImageDomain((channels, height, width), asked.classes or _classes_in(own))
        self._name = asked.model or _MODEL
        self._model = attacked_model(self._name, domain, asked.seed).to(device, dtype)
        found = num_classes_of(self._model, self._name, self._truth.images[: self._batch])
        self.domain = replace(domain, num_classes=found)
        require_batch(self._truth.images, self._truth.labels, found)

    def targets(self) -> list[_Target]:
        """Every image is attacked; the last update may be of fewer."""
        places = range(0, len(self._truth.images), self._batch)
        truths = [self._truth_at(slice(place, place + self._batch)) for place in places]
        return [_Target(partial(self._observe, place, truth), truth) for place, truth in enumerate(truths)]

    def _truth_at(self, chosen: slice) -> Truth:
        whole = self._truth
        return Truth(whole.images[chosen], whole.labels[chosen], whole.patients[chosen])

    def _observe(self, place: int, truth: Truth) -> Observation:
        """Let the site train on one batch, and look at what it sends.

        Raises:
            AttackError: the model raised while it was trained.
            FederationError: as the attack's ``prepare`` and ``observe`` do.
        """
        asked, model = self._asked, self._model
        if hasattr(self._attack, "prepare"):
            model = self._attack.prepare(model, self.domain, _generator(asked.seed, place, 0), self._public)
        rng, images = _generator(asked.seed, place, 1), truth.images.clone()  # a model may change what it is given
        local = LocalTraining(asked.local_steps, len(images)) if asked.local_steps else None
        site = SiteTraining(local, asked.learning_rate or _LEARNING_RATE)
        try:
            seen = observe(model, images, truth.labels, site, rng, self.domain.num_classes)
        except (ValueError, RuntimeError) as error:
            raise AttackError(
                f"model {self._name} cannot be trained on a batch of {len(images)}: {type(error).__name__}: {error}"
            ) from error
        return granting(seen, public_data=self._public)


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
    if own is not None:
        observation = granting(observation, labels=own.labels)
    return _Target(lambda: observation, None if own is None else _truth_of(own)), found.remarks


def _attack_one(attack: Any, target: _Target, knowledge: Knowledge, rng: torch.Generator) -> Attacked:
    """One attack in seconds of this process's CPU; that it cannot be run on this update is a result too."""
    found, error, started = Reconstruction(), None, time.process_time()
    try:
        seen = target.observe().limited_to(knowledge)
        _require_granted(seen, knowledge)
        started = time.process_time()
        found = attack(seen, knowledge, rng)
    except FederationError as raised:
        error = raised
    seconds = time.process_time() - started
    scores = None if target.truth is None else score(found, target.truth)
    if scores is not None and knowledge.labels:
        scores = replace(scores, label_recovery=None)  # they were given, not found
    return Attacked(found, seconds, target.truth, scores, error)


def _require_granted(seen: Observation, knowledge: Knowledge) -> None:
    for entry in fields(Granted):
        if getattr(knowledge, entry.name) and getattr(seen.granted, entry.name) is None:
            raise ConfigError(f"the attacker is to know {entry.name}, which is not there: {_HOW_TO_GRANT[entry.name]}")


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
    """Of patients nothing is known, but copies of an image are of one: none is the other's null."""
    return Truth(own.images, own.labels, patients_by_content(own.images.float().numpy()))


def _classes_in(own: OwnImages) -> int:
    last = int(own.labels.max())
    if last >= _MOST_INFERRED_CLASSES:
        raise DatasetError(f"labels run to {last}; expected 0 to classes - 1 (or give --classes)")
    return max(2, last + 1)


def _require_measurable(own: OwnImages, public: Truth | None) -> None:
    """Refuse images that no figure could be had of.

    Raises:
        DatasetError: they are too small, or the attacker has them already.
    """
    height, width = own.images.shape[2:]
    if min(height, width) < _LEAST_PIXELS:
        raise DatasetError(
            f"--images holds images of {height} x {width} pixels; at least {_LEAST_PIXELS} x {_LEAST_PIXELS} are needed"
        )
    attacked = set(_truth_of(own).patients)
    known = 0 if public is None else sum(patient in attacked for patient in public.patients)
    if known:
        raise DatasetError(
            f"{known} of the public images are among the attacked ones; an attacker that has them needs no update"
        )


def _require_alike(images: Truth, domain: ImageDomain, flag: str) -> None:
    if tuple(images.images.shape[1:]) != domain.shape:
        raise DatasetError(f"{flag} holds images of shape {tuple(images.images.shape[1:])}, expected {domain.shape}")
    require_batch(images.images, images.labels, domain.num_classes)


def _described(
    asked: AttackRun, attack: Any, knowledge: Knowledge, attacked: Sequence[Attacked], remarks: Sequence[str]
) -> dict[str, Json]:
    """What was run, with all of the attack's options."""
    given = {key: value for key, value in asdict(asked).items() if value is not None}
    config: dict[str, Json] = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
    named = asdict(attack) if is_dataclass(attack) and not isinstance(attack, type) else {}
    config["options"] = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in named.items()}
    config["know"] = [name for name in _names_of(knowledge).split(", ") if name]
    if asked.update is None:
        defaults: dict[str, Json] = {"model": _MODEL, "batch": 1, "local_steps": 0}
        config = defaults | config
        if asked.local_steps:
            config.setdefault("learning_rate", _LEARNING_RATE)
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
