"""The cells of ``attack bench --defenses``: every defense under naive attackers and under those made for it.

| suite | what | targets |
|---|---|---|
| smoke | X-rays of 28x28, a fresh smooth network, one image an update: the easiest place for an attacker | 4 |
| full | the same with more targets; then a trained network, LeNet, batches of four, and local steps | 30; 8 |
| claim | the first conditions again, on targets that no other suite uses | 500 |

The naive attackers do not know that there is a defense: they attack what the director reads. The adaptive ones are
those of the registry, so a defense cannot be registered and left out here. The smoke suite leaves learned inversion out
where there is another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

from ..utils.errors import ConfigError
from .attacks.catalogue import listed
from .cells import Cell
from .defenses.registry import DEFENSES, Adaptive, registered

BASE = Cell("pneumonia28", "tanh-cnn", "dlg", ("labels",))
"""The conditions under which defenses are compared; every suite has them."""

UNDEFENDED = "none"
NAIVE = ("dlg", "inverting-gradients")
_TOO_LONG = frozenset({"learned-inversion"})  # it trains a network for every defense
_MORE = (
    replace(BASE, state="converged", targets=8),
    replace(BASE, model="lenet", targets=8),
    replace(BASE, batch=4, targets=8),
    replace(BASE, local_steps=4, learning_rate=0.1, targets=8),
)
_SUITES = {
    "smoke": (replace(BASE, targets=4),),
    "full": (replace(BASE, targets=30), *_MORE),
    "claim": (replace(BASE, targets=500, skip=200, gallery=500),),
}


def chosen(names: str) -> tuple[str, ...]:
    """The defenses that ``all`` or a list with commas names, in the registry's order.

    Raises:
        ConfigError: a name that is not registered, or none.
    """
    asked = {name.strip() for name in names.split(",") if name.strip()}
    if asked == {"all"}:
        return tuple(DEFENSES)
    if not asked:
        raise ConfigError(f"--defenses names none: expected all, or some of {', '.join(DEFENSES)}")
    for name in sorted(asked):
        registered(name)
    return tuple(name for name in DEFENSES if name in asked)


def defense_cells(names: Sequence[str], suite: str) -> tuple[Cell, ...]:
    """The cells of some defenses, defense by defense; under the first conditions of the suite they are compared.

    Raises:
        ConfigError: no such suite, or no such defense.
    """
    if suite not in _SUITES:
        raise ConfigError(f"suite {suite!r} of defenses: expected one of {', '.join(_SUITES)}")
    skipped = _TOO_LONG if suite == "smoke" else frozenset()
    return tuple(cell for like in _SUITES[suite] for name in names for cell in _cells_of(name, like, skipped))


def _cells_of(name: str, like: Cell, skipped: frozenset[str]) -> Iterator[Cell]:
    """Naive attackers, then the adaptive ones, who know the defense with its parameters."""
    for attack in NAIVE:
        yield replace(like, attack=attack, defense=name)
    for adaptive in _worth_running(registered(name).adaptive, skipped):
        yield replace(
            like,
            attack=adaptive.attack,
            knowledge=tuple({*like.knowledge, *adaptive.knowledge, *_needs_of(adaptive)}),
            options=adaptive.options,
            defense=name,
            adaptive=True,
        )


def _worth_running(adaptive: Sequence[Adaptive], skipped: frozenset[str]) -> Sequence[Adaptive]:
    """Without those that are skipped or are a naive attack once more, where any is left."""
    left = [one for one in adaptive if one.attack not in skipped and (one.attack not in NAIVE or one.options)]
    return left or adaptive[:1]


def _needs_of(adaptive: Adaptive) -> set[str]:
    needs = asdict(listed(adaptive.attack).make(**dict(adaptive.options)).needs)
    return {"defense"} | {grant for grant, is_needed in needs.items() if is_needed}
