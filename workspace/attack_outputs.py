"""The files that ``fedveil attack run`` leaves: figures, pictures, an animation; each on its own."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..gradient_leakage.metrics import match
from ..gradient_leakage.pictures import draw_emerging
from ..utils.errors import AttackError, FederationError, StorageError
from .attack_report import Attacked, Json

_FRAMES = 48  # of an animation, at most


@dataclass(frozen=True, slots=True)
class Outputs:
    """Files to write."""

    json: Path | None = None
    save: Path | None = None
    gif: Path | None = None

    def require_writable(self) -> None:
        """Look before the work is done, not after.

        Raises:
            StorageError: a file could not be written there, or two are one.
        """
        paths = [path.absolute() for path in (self.json, self.save, self.gif) if path is not None]
        if len(set(paths)) < len(paths):
            raise StorageError("--json, --save and --gif are different files; two of them have one name")
        for path in paths:
            folder = next(parent for parent in path.parents if parent.exists())
            if not folder.is_dir():
                raise StorageError(f"{path} cannot be written: its parent {folder} is not a folder")
            if path.is_dir():
                raise StorageError(f"{path} cannot be written: it is a folder")
            if not os.access(path if path.exists() else folder, os.W_OK):
                raise StorageError(f"{path} cannot be written: permission denied")

    def write(self, report: dict[str, Json], attacked: Sequence[Attacked]) -> None:
        """Write what is asked for, each file on its own.

        Raises:
            StorageError: names every file that could not be made or written; the others are there.
        """
        failed = []
        for path, content in (
            (self.json, partial(_json_of, report)),
            (self.save, partial(_npz_of, attacked)),
            (self.gif, partial(_first_animation_of, attacked)),
        ):
            if path is None:
                continue
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content())
            except OSError as error:
                failed.append(f"{path} cannot be written: {error.strerror}")
            except (FederationError, ValueError, RuntimeError) as error:
                failed.append(f"{path} cannot be made: {error}")
        if failed:
            raise StorageError("; ".join(failed))


def _json_of(report: dict[str, Json]) -> bytes:
    return (json.dumps(report, indent=2, allow_nan=False) + "\n").encode()


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


def _first_animation_of(attacked: Sequence[Attacked]) -> bytes:
    """Of the first update that could be attacked."""
    return _animation_of(next(one for one in attacked if one.error is None))


def _animation_of(one: Attacked) -> bytes:
    """The first image of an update as it emerges, beside the original where that is known.

    Raises:
        AttackError: the attack kept no pictures on its way.
    """
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
