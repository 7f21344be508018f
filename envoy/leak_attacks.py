"""The leak test in its child, second half: the attacks on what was sent, undefended and behind the chain.

Each target is one image alone, the most that can be seen of anybody. Attackers know the model, the label, and, where
one needs it, the defense with its codec and the size of its noise.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ..gradient_leakage.attacks.catalogue import listed
from ..gradient_leakage.defenses.chain import Chain
from ..gradient_leakage.metrics import Scores, Truth, null_scores, score
from ..gradient_leakage.threat_model import (
    Granted,
    ImageDomain,
    Knowledge,
    Observation,
    Reconstruction,
    SentKind,
)
from ..utils.errors import AttackError, ConfigError
from ..utils.tensors import Layout
from .canaries import NUM_TARGETS
from .leak_test import SEEN_FILE, Attempt, Sent, chain_from_json
from .leak_updates import Emit, Keep, canaries_in, num_classes_of, opened, published_model

BREAKERS = ("first-layer", "dlg", "inverting-gradients")
"""What undefended updates are attacked with, the quickest first, until one shows the images."""
ADAPTIVE = ("all-rows", "defended-matching")
"""What knows the steps of an envoy's chain: the code, the clip, the noise."""
_BY_TRAINING = ("inverting-gradients",)  # whatever the optimizer was, the direction is there
_ANALYTIC = frozenset({"first-layer", "all-rows"})  # cost next to nothing
_FEWEST_ITERATIONS = 40
_MOST_ITERATIONS = {"dlg": 200}  # where it works on one image, it has come to its end by then
_TRIED = 10  # iterations from which the cost of more is estimated
_SEED = 7


class _Attack(Protocol):
    def __call__(self, observation: Observation, knowledge: Knowledge, rng: torch.Generator) -> Reconstruction: ...


def attack_targets(order: dict[str, Any], folder: Path, emit: Emit, keep: Keep) -> None:
    """Attack what each target sent, undefended and behind the chain; a row for each attack."""
    torch.set_num_threads(1)
    bundle, plan = opened(order)
    images, classes = canaries_in(folder)
    model = published_model(plan, bundle)
    classes = classes % num_classes_of(model, images)
    chain = chain_from_json(order["steps"], folder)
    scene = _Scene(folder, model, bundle.layout, chain, images, classes, keep)
    clock = _Clock(order["seconds"])
    breaker, undefended = None, dict[str, int]()
    for place, name in enumerate(BREAKERS):
        later = [*BREAKERS[place:], *(("inverting-gradients", *ADAPTIVE) if chain.steps else ())]
        made = _attempt(scene, clock.share(later), name, Sent.GRADIENT, is_defended=False)
        undefended[name] = made.iterations
        emit(_row(made))
        if made.breaks:
            breaker = name
            break
    if breaker is None:
        emit({"whole": True})
        return
    left = list(_after_the_break(breaker, order["kinds"], has_chain=bool(chain.steps)))
    unfit: set[str] = set()
    for place, (sent, name) in enumerate(left):
        if sent is not Sent.GRADIENT:
            emit({"whole": True})  # what comes now is more than what has to be
        if name not in unfit:
            needed = [
                later for kind, later in left[place:] if kind is Sent.GRADIENT
            ]  # training takes what is left over
            fewest = undefended.get(name, 0) // 2  # with far fewer than undefended, it would seem to hold
            made = _attempt(scene, clock.share(needed), name, sent, fewest, is_defended=bool(chain.steps))
            emit(_row(made))
            unfit |= {name} if made.is_unfit else set()
    emit({"whole": True})


def _after_the_break(breaker: str, kinds: list[str], *, has_chain: bool) -> Iterator[tuple[Sent, str]]:
    """What is sent is attacked by what broke it undefended, then by those that know the chain."""
    others = dict.fromkeys((breaker, "inverting-gradients", *ADAPTIVE)) if has_chain else {}
    yield from ((Sent.GRADIENT, name) for name in others)
    if Sent.TRAINING.value in kinds:
        yield from ((Sent.TRAINING, name) for name in (*_BY_TRAINING, *(ADAPTIVE if has_chain else ())))


@dataclass(frozen=True, slots=True, eq=False)
class _Scene:
    """All that does not change between attacks."""

    folder: Path
    model: torch.nn.Module
    layout: Layout
    chain: Chain
    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    keep: Keep

    def observed(self, sent: Sent, *, is_defended: bool) -> list[Observation]:
        """What the director sees of each target."""
        plain: NDArray[np.float32] = np.load(self.folder / f"{sent.value}.npy", allow_pickle=False)
        read = np.load(self.folder / f"{sent.value}-decoded.npy", allow_pickle=False) if is_defended else plain
        left = np.load(self.folder / f"{sent.value}-payload.npy", allow_pickle=False) if is_defended else plain
        coded = is_defended and self.chain.encoder is not None
        channels, height, width = self.images.shape[1:]
        classes = num_classes_of(self.model, self.images)
        return [
            Observation(
                sent=read[at].tobytes(),
                layout=self.layout,
                kind=SentKind.GRADIENT if sent is Sent.GRADIENT else SentKind.UPDATE,
                model=self.model,
                domain=ImageDomain((channels, height, width), classes),
                num_examples=1,
                granted=Granted(labels=self.label(at), defense=self.chain if is_defended else None),
                payload=left[at].tobytes() if coded else None,
            )
            for at in range(NUM_TARGETS)
        ]

    def sought(self, sent: Sent) -> NDArray[np.float32]:
        """Images of the targets: of one gradient as the model saw them, else as they are."""
        if sent is Sent.GRADIENT:
            seen: NDArray[np.float32] = np.load(self.folder / SEEN_FILE, allow_pickle=False)
            return seen
        return self.images[:NUM_TARGETS]

    def truths(self, sent: Sent) -> list[Truth]:
        """What is sought, one target a truth."""
        return [Truth(torch.from_numpy(one[np.newaxis]), self.label(at)) for at, one in enumerate(self.sought(sent))]

    def label(self, at: int) -> torch.Tensor:
        """Of one target, shape (1,)."""
        return torch.tensor([int(self.labels[at])])


class _Clock:
    """What is left of the budget, in CPU seconds of this process."""

    def __init__(self, seconds: float) -> None:
        self._end = 0.95 * seconds

    def share(self, attacks: list[str]) -> float:
        """Of the first of the attacks that are still to come."""
        left = max(0.0, self._end - time.process_time())
        return left / max(1, sum(name not in _ANALYTIC for name in attacks))


def _attempt(scene: _Scene, share: float, name: str, sent: Sent, fewest: int = 0, *, is_defended: bool) -> Attempt:
    without = Attempt(sent, name, is_defended, targets=NUM_TARGETS)
    try:
        attack, observed = listed(name).make(), scene.observed(sent, is_defended=is_defended)
        if hasattr(attack, "iterations"):
            most, fewest = _MOST_ITERATIONS.get(name, attack.iterations), max(fewest, _FEWEST_ITERATIONS)
            iterations = min(most, _affordable(attack, observed[0], share))
            if iterations < fewest:
                return replace(without, reason=f"{name}: time for {iterations} iterations, {fewest} are needed")
            attack, without = _shortened(attack, iterations), replace(without, iterations=iterations)
        found = [_run(attack, seen, at) for at, seen in enumerate(observed)]
    except (AttackError, ConfigError) as error:
        return replace(without, reason=str(error), is_unfit=True)
    return _scored(scene, without, found)


def _affordable(attack: Any, seen: Observation, share: float) -> int:
    """As many iterations as this share of the budget pays for, for every target."""
    started = spent = time.process_time()
    for _ in range(2):  # the first one also loads what torch loads late
        spent = time.process_time()
        _run(_shortened(attack, _TRIED), seen, 0)
    now = time.process_time()
    left = share - (now - started)
    return min(int(attack.iterations), int(left / NUM_TARGETS / max(now - spent, 1e-6) * _TRIED))


def _shortened(attack: Any, iterations: int) -> Any:
    """One restart of so many iterations, and as many at most to polish."""
    wanted = {"iterations": iterations, "restarts": 1, "polish": iterations}
    there = {field.name for field in fields(attack)}
    return replace(attack, **{name: value for name, value in wanted.items() if name in there})


def _run(attack: _Attack, seen: Observation, at: int) -> Reconstruction:
    knowledge = Knowledge(labels=True, defense=seen.granted.defense is not None)
    return attack(seen.limited_to(knowledge), knowledge, torch.Generator().manual_seed(_SEED + at))


def _scored(scene: _Scene, without: Attempt, found: list[Reconstruction]) -> Attempt:
    truths = scene.truths(without.sent)
    scores = [score(one, truth) for one, truth in zip(found, truths, strict=True)]
    if all(one.images is None for one in scores):
        return replace(without, reason=f"{without.attack} shows no image", is_unfit=True)
    nulls = null_scores(scores, truths, np.random.default_rng(_SEED))
    gains = [_gain(one, null) for one, null in zip(scores, nulls, strict=True)]
    pictures = torch.cat([torch.full((1, *scene.images.shape[1:]), 0.5) if s.images is None else s.images.float()
                          for s in scores]).numpy()  # fmt: skip
    name = f"{without.sent.value}-{without.attack}-{'defended' if without.is_defended else 'undefended'}.npy"
    scene.keep(name, pictures)
    gallery = np.concatenate([scene.sought(without.sent), scene.images[NUM_TARGETS:]])
    return replace(
        without,
        gain=math.fsum(gains) / len(gains),
        ssim=float(np.mean([0.0 if one.images is None else one.ssim.mean() for one in scores])),
        identified=sum(_is_found_again(picture, gallery, at) for at, picture in enumerate(pictures)),
        pictures=name,
    )


def _gain(scores: Scores, null: Scores) -> float:
    """SSIM over what the same attack's picture of another canary of the class has; 0 where either is missing."""
    difference = float((scores.ssim - null.ssim).mean())
    return difference if math.isfinite(difference) else 0.0


def _is_found_again(picture: NDArray[np.float32], images: NDArray[np.float32], at: int) -> bool:
    """Is the target's own image the likest of all canaries, beside what all have in common?"""
    common = images.mean(0)
    ours, all_ = (picture - common).reshape(-1), (images - common).reshape(len(images), -1)
    likeness = all_ @ ours / np.maximum(np.linalg.norm(all_, axis=1), 1e-9)
    return bool(np.ptp(ours) > 0 and likeness.argmax() == at)


def _row(attempt: Attempt) -> dict[str, Any]:
    row = {field.name: getattr(attempt, field.name) for field in fields(attempt)}
    row["sent"] = attempt.sent.value
    return row
