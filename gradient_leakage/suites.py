"""The suites: fixed lists of cells, so that two measurements are of the same thing.

| suite | what | how long on two cores, by design |
|---|---|---|
| smoke | every family of attacks once, two targets each | under 5 minutes |
| full | models, states, batches, local steps and sizes of images | under 60 minutes |
| claim | 500 targets for a chain and its attacks, none of them a target of the other suites | as long as it takes |
"""

from __future__ import annotations

from collections.abc import Mapping

from ..utils.errors import ConfigError
from .cells import Cell

_LABELS = ("labels",)
_FEDAVG = ("labels", "local_steps", "learning_rate")
_BATCH_NORM = ("labels", "batch_norm_statistics")
_CHOSE_MODEL = ("malicious", "public_data")
_XRAYS = "pneumonia28"

SMOKE: tuple[Cell, ...] = (
    # In closed form.
    Cell(_XRAYS, "mlp", "first-layer"),
    Cell(_XRAYS, "mlp", "spear", batch=8, dtype="float64"),
    Cell(_XRAYS, "tanh-cnn", "r-gap"),
    # By matching gradients.
    Cell(_XRAYS, "tanh-cnn", "dlg", _LABELS),
    Cell(_XRAYS, "lenet", "dlg"),
    Cell("mnist", "lenet", "dlg", _LABELS),
    Cell(_XRAYS, "relu-cnn", "inverting-gradients", _LABELS),
    Cell(_XRAYS, "tanh-cnn", "inverting-gradients", _LABELS),
    Cell(_XRAYS, "tanh-cnn", "inverting-gradients", _LABELS, state="converged"),
    Cell(_XRAYS, "tanh-cnn", "inverting-gradients", _LABELS, batch=8),
    Cell("cifar10", "tanh-cnn", "inverting-gradients", _LABELS),
    Cell("xrays64", "tanh-cnn", "inverting-gradients", _LABELS),
    # Several local steps, as one gradient and walked.
    Cell(_XRAYS, "tanh-cnn", "inverting-gradients", _LABELS, local_steps=8, learning_rate=0.1),
    Cell(_XRAYS, "tanh-cnn", "fedavg", _FEDAVG, local_steps=8, learning_rate=0.1),
    # Batch normalisation; so few iterations that it runs, and no more.
    Cell(_XRAYS, "resnet18-train", "see-through", _BATCH_NORM, (("iterations", 20),), batch=2),
    Cell(_XRAYS, "resnet18-eval", "inverting-gradients", _LABELS, (("iterations", 60),)),
    # Labels alone.
    Cell(_XRAYS, "lenet", "idlg-label"),
    Cell("cifar10", "lenet", "llg", batch=8),
    Cell("cifar10", "lenet", "bias-labels", batch=8),
    # A director that chose the model.
    Cell("mnist", "mlp", "imprint", _CHOSE_MODEL, batch=16),
    Cell("mnist", "lenet", "fishing", (*_CHOSE_MODEL, *_LABELS), batch=8),
    # The bottleneck: attacked as if it were not there, and broken.
    Cell(_XRAYS, "tanh-cnn", "dlg", _LABELS, defense="precode"),
    Cell(_XRAYS, "tanh-cnn", "precode-break", _LABELS, defense="precode", adaptive=True),
)

FULL: tuple[Cell, ...] = (
    # In closed form.
    *(Cell(case, "mlp", "first-layer", targets=8) for case in (_XRAYS, "cifar10", "mnist", "xrays64")),
    *(
        Cell(case, "mlp", "spear", batch=batch, dtype="float64", targets=4)
        for case in (_XRAYS, "cifar10")
        for batch in (2, 4, 8, 16)
    ),
    Cell(_XRAYS, "mlp", "spear", batch=8, targets=4),
    *(Cell(case, "tanh-cnn", "r-gap", targets=4) for case in (_XRAYS, "cifar10", "mnist")),
    # By matching gradients: how far the model is trained.
    *(
        Cell(case, model, "dlg", _LABELS, state=state, targets=4)
        for case in (_XRAYS, "cifar10", "mnist")
        for model in ("lenet", "tanh-cnn")
        for state in ("fresh", "one-epoch", "converged")
    ),
    *(Cell(_XRAYS, model, "dlg", targets=4) for model in ("lenet", "tanh-cnn")),
    *(
        Cell(case, model, "inverting-gradients", _LABELS, state=state, targets=8)
        for case in (_XRAYS, "cifar10", "mnist")
        for model in ("lenet", "tanh-cnn", "relu-cnn")
        for state in ("fresh", "one-epoch", "converged")
    ),
    # How many images an update holds.
    *(
        Cell(case, model, "inverting-gradients", _LABELS, batch=batch, targets=4)
        for case in (_XRAYS, "cifar10")
        for model in ("tanh-cnn", "relu-cnn")
        for batch in (2, 4, 8, 16)
    ),
    # How many steps the site takes: as one gradient, and walked.
    *(
        Cell(_XRAYS, model, attack, knowledge, local_steps=steps, learning_rate=0.1, targets=4)
        for model in ("tanh-cnn", "relu-cnn")
        for attack, knowledge in (("inverting-gradients", _LABELS), ("fedavg", _FEDAVG))
        for steps in (1, 4, 8)
    ),
    # Batch normalisation.
    *(
        Cell(case, "resnet18-train", "see-through", knowledge, (("iterations", 200),), batch=2)
        for case in (_XRAYS, "cifar10")
        for knowledge in (_LABELS, _BATCH_NORM)
    ),
    Cell(_XRAYS, "resnet18-eval", "inverting-gradients", _LABELS, (("iterations", 100),)),
    # Larger images.
    *(
        Cell("xrays64", model, "inverting-gradients", _LABELS, state=state, targets=8)
        for model in ("tanh-cnn", "relu-cnn")
        for state in ("fresh", "converged")
    ),
    Cell("xrays64", "tanh-cnn", "dlg", _LABELS, targets=4),
    *(Cell("xrays224", model, "inverting-gradients", _LABELS) for model in ("tanh-cnn", "relu-cnn")),
    Cell("xrays224", "tanh-cnn", "dlg", _LABELS, (("iterations", 200), ("restarts", 1))),
    # Labels alone.
    *(
        Cell(case, "lenet", attack, state=state, batch=batch, targets=8)
        for case in (_XRAYS, "cifar10")
        for state in ("fresh", "converged")
        for attack, batch in (("idlg-label", 1), ("llg", 8), ("llg", 16), ("bias-labels", 8), ("bias-labels", 16))
    ),
    # A director that chose the model.
    *(Cell(case, "mlp", "imprint", _CHOSE_MODEL, batch=16, targets=4) for case in (_XRAYS, "cifar10", "mnist")),
    *(Cell(case, "lenet", "fishing", (*_CHOSE_MODEL, *_LABELS), batch=8) for case in ("cifar10", "mnist")),
    Cell("mnist", "mlp", "seer", _CHOSE_MODEL, (("batch", 16),), batch=16),
    # The bottleneck.
    *(
        Cell(_XRAYS, model, attack, _LABELS, defense="precode", adaptive=attack == "precode-break", targets=8)
        for model in ("lenet", "tanh-cnn")
        for attack in ("inverting-gradients", "dlg", "precode-break")
    ),
    # Learned on public images.
    Cell(_XRAYS, "mlp", "learned-inversion", ("public_data",)),
    Cell(_XRAYS, "mlp", "learned-inversion", ("public_data",), defense="precode", adaptive=True),
)

CLAIM: tuple[Cell, ...] = (
    Cell(_XRAYS, "tanh-cnn", "dlg", _LABELS, targets=500, skip=200, gallery=500),
    Cell(_XRAYS, "tanh-cnn", "dlg", _LABELS, defense="precode", targets=500, skip=200, gallery=500),
    Cell(
        *(_XRAYS, "tanh-cnn", "precode-break", _LABELS),
        defense="precode",
        adaptive=True,
        targets=500,
        skip=200,
        gallery=500,
    ),
)

SUITES: Mapping[str, tuple[Cell, ...]] = {"smoke": SMOKE, "full": FULL, "claim": CLAIM}


def suite_named(name: str) -> tuple[Cell, ...]:
    """The suite of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in SUITES:
        raise ConfigError(f"suite {name!r}: expected one of {', '.join(SUITES)}")
    return SUITES[name]
