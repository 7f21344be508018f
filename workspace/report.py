"""The demo's picture: how the federated model got better, and how it compares with each site alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from ..utils.messages import RoundView

_FEDERATED, _ALONE = "#1b6ca8", "#b8b8b8"


def draw_curves(
    path: Path, rounds: Sequence[RoundView], federated_auc: float, alone: Mapping[str, tuple[float, int]], source: str
) -> None:
    """Write ``curves.png``.

    Args:
        path: of the picture.
        rounds: with the federated metrics ``auc`` and ``loss`` of the model that entered each.
        federated_auc: of the final model, on the test set.
        alone: AUC on the same test set and number of training examples of each site by itself.
        source: what the images are.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), width_ratios=(3, 2), layout="constrained")
    points = [(one.round - 1, one.metrics["auc"]) for one in rounds if "auc" in one.metrics]
    left.plot(*zip(*points, strict=True), marker="o", color=_FEDERATED)
    left.set(xlabel="rounds that the model has seen", ylabel="AUC on the sites' validation images, pooled")
    left.set_title("Federated model", loc="left")
    left.set_ylim(top=1.005)
    left.grid(alpha=0.3)
    names = ["federated", *(f"{name}\nalone\n{count:,}\nimages" for name, (_, count) in alone.items())]
    values = [federated_auc, *(auc for auc, _ in alone.values())]
    bars = right.bar(names, values, color=[_FEDERATED] + [_ALONE] * len(alone))
    right.bar_label(bars, [f"{value:.3f}" for value in values], padding=2)
    right.set_ylim(max(0.0, min(values) - 0.08), 1.0)
    right.set_ylabel("AUC on the test images (axis cut)")
    right.set_title("Against each site alone", loc="left")
    right.tick_params(axis="x", labelsize=8)
    right.spines[["top", "right"]].set_visible(False)
    figure.suptitle(source, fontsize=9, color="#555555")
    figure.savefig(path, dpi=110)
    plt.close(figure)
