"""What ``fedveil codec`` does: fit, save, look into and check a codec. Values and lines in, lines out."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..gradient_leakage.vae.blocks import Dense
from ..gradient_leakage.vae.codec import Basis, Codec, codec_bytes, read_codec
from ..gradient_leakage.vae.fitting import fit, seeded
from ..gradient_leakage.vae.layered import fit_layered, is_for_layers
from ..utils.errors import ConfigError, LayoutMismatchError, StorageError
from ..utils.plan_bundle import Bundle, mapped, open_bundle
from ..utils.tensors import FLOAT_BYTES, Layout, Vector, read_model
from .codec_fitting import Rehearsal, Updates, history_updates, proxy_updates, public_data

_MIN_HISTORY = 5
"""Differences from which on the last one can be held out and the others still be enough for a codec."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a codec is to be.

    Raises:
        ConfigError: the sources do not go with the basis, or a number is out of range.
    """

    plan: Path
    ratio: float
    basis: Basis
    images: Path | None  # public
    models: tuple[Path, ...]  # released, oldest first
    start: Path | None
    rehearsal: Rehearsal
    one_block: bool = False
    two_sided: bool = False
    seeded_share: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.ratio < math.inf:
            raise ConfigError(f"ratio is {self.ratio:g}, expected at least 1")
        if not 0 <= self.seeded_share < 1:
            raise ConfigError(f"seeded_share is {self.seeded_share:g}, expected 0 to 1; for 1 use the basis seeded")
        needed = {Basis.LEARNED: "--images", Basis.HISTORY: "--models", Basis.SEEDED: ""}[self.basis]
        given = {"--images": self.images is not None, "--models": bool(self.models)}
        for option, is_given in given.items():
            if is_given != (option == needed):
                verb = "needs" if option == needed else "does not use"
                raise ConfigError(f"the basis {self.basis.value} {verb} {option}")
        if self.start is not None and self.basis is not Basis.LEARNED:
            raise ConfigError("--start is where rehearsals begin; only the basis learned rehearses")
        if self.one_block and self.two_sided:
            raise ConfigError("--one-block is one dense code; leave --two-sided out")


def make_codec(wanted: Wanted, out: Path) -> Iterator[str]:
    """Fit and write a codec; gives lines for people, and the table for experiment.toml.

    Raises:
        FederationError: plan, images, models or numbers do not fit; the message says which.
        StorageError: the file cannot be written.
    """
    bundle, times = open_bundle(wanted.plan), [time.process_time()]
    if wanted.basis is Basis.SEEDED:
        times.append(times[0])
        codec, kept, source = seeded(bundle.layout, wanted.ratio), None, "drawn for each round, nothing is learned"
    else:
        rows, num_held, source = _rows(wanted, bundle)
        times.append(time.process_time())
        codec = _fitted(bundle.layout, rows[: len(rows) - num_held], wanted)
        kept = energy_kept(codec, rows[len(rows) - num_held :]) if num_held else None
    times.append(time.process_time())
    _write(out, codec_bytes(codec))
    yield from codec_lines(codec)
    yield f"source        {source}"
    if codec.compression > 1.1 * wanted.ratio:
        yield "remark        the updates span no more directions; for a longer code rehearse more, or with more sites"
    yield f"energy kept   {'not measured' if kept is None else f'{kept:.1%} of updates that were held out'}"
    rehearsing, fitting = (after - before for before, after in itertools.pairwise(times))
    yield (
        f"CPU seconds   {rehearsing:.1f} for the updates, {fitting:.1f} to fit,"
        f" {coding_seconds(codec):.3g} to encode one update and decode one"
    )
    yield f"written to    {out}. For experiment.toml, with the file beside it:"
    yield ""
    yield "[codec]"
    yield f'digest = "{codec.digest}"'
    yield f'file = "{out.name}"'


def energy_kept(codec: Codec, updates: Updates) -> float:
    """Share of the updates' energy that survives encoding and decoding, all of them together."""
    this_round = codec.for_round(bytes(32))
    kept = sum(
        float(np.square(this_round.decode(this_round.encode(update))).sum(dtype=np.float64)) for update in updates
    )
    return kept / float(np.square(updates, dtype=np.float64).sum())


def coding_seconds(codec: Codec) -> float:
    """CPU seconds to encode one update and to decode one payload, of whatever values: the second time, warm."""
    this_round, seconds = codec.for_round(bytes(32)), 0.0
    update = np.random.default_rng(0).standard_normal(codec.layout.size, np.float32)
    for _ in range(2):
        began = time.process_time()
        this_round.decode(this_round.encode(update), update)
        seconds = time.process_time() - began
    return seconds


def codec_lines(codec: Codec) -> Iterator[str]:
    """A codec for people."""
    origin = {
        Basis.LEARNED: "learned, from updates of public or proxy data",
        Basis.HISTORY: "history, from models that were released",
        Basis.SEEDED: "seeded: a random projection of each round, no VAE",
    }
    yield f"basis         {origin[codec.basis]}"
    yield f"digest        {codec.digest}"
    yield f"layout        {codec.layout.digest}"
    yield f"update        {codec.layout.size:,} numbers"
    yield (
        f"payload       {codec.size:,} numbers, {codec.size * FLOAT_BYTES:,} bytes:"
        f" {codec.compression:.1f} times smaller"
    )
    share = codec.num_parameters / codec.layout.size
    yield f"parameters    {codec.num_parameters:,} numbers, {share:.2f} times the model's"
    yield f"noise         sigma^2 {codec.noise_variance:.3g} of the decoder; it protects nothing by itself"
    for block in codec.blocks:
        names = ", ".join(block.names) if len(block.names) < 4 else f"{block.names[0]} ... {block.names[-1]}"
        if isinstance(block, Dense):
            drawn = f" and {block.fresh} drawn each round" if block.fresh else ""
            how = f"{len(block.directions)} directions{drawn}"
        else:
            how = f"{block.left.shape[1]} x {block.right.shape[1]} on both sides"
        yield f"block         {block.length:,} numbers as {block.size}: {how}; {names}"
    if codec.passed:
        numbers = sum(entry.size for entry in codec.passed)
        yield f"as they are   {len(codec.passed)} tensors, {numbers:,} numbers"


def opened(file: Path) -> Codec:
    """The codec of a file.

    Raises:
        StorageError: it cannot be read.
        MalformedMessageError: it is no sound codec.
    """
    try:
        return read_codec(file.read_bytes())
    except OSError as error:
        raise StorageError(f"the codec {file} cannot be read: {error.strerror}") from error


def check_fits(codec: Codec, plan: Path) -> str:
    """One line that says that the codec codes this plan's updates.

    Raises:
        LayoutMismatchError: it is for other tensors; says which differ first.
        PlanError: there is no such plan.
    """
    bundle = open_bundle(plan)
    if codec.layout.digest != bundle.layout.digest:
        raise LayoutMismatchError(
            f"codec {codec.digest[:12]} is for another model than plan {bundle.manifest.name}: "
            f"{_first_difference(codec.layout, bundle.layout)}; fit one with: fedveil codec fit --plan {plan}"
        )
    return (
        f"codec {codec.digest[:12]} fits plan {bundle.manifest.name}: {bundle.layout.size:,} numbers as {codec.size:,},"
        f" {codec.compression:.1f} times smaller"
    )


def _rows(wanted: Wanted, bundle: Bundle) -> tuple[Updates, int, str]:
    """Updates to fit on, how many of the last are held out, and where they come from."""
    if wanted.images is None:
        rows = history_updates(bundle.layout, wanted.models)
        held = 1 if len(rows) >= _MIN_HISTORY else 0
        return rows, held, f"{len(rows)} differences of released models"
    asked = wanted.rehearsal
    public = public_data(bundle, wanted.images)
    rows = proxy_updates(bundle, public, asked.with_one_more(), _start(wanted.start, bundle.layout))
    held = asked.sites * asked.rounds
    source = (
        f"{len(rows) - held} updates of {asked.sites} virtual sites in {asked.rounds} rounds, {asked.repeats} times, on"
        f" {len(public):,} public examples; {held} more were held out"
    )
    return rows, held, source


def _fitted(layout: Layout, rows: Updates, wanted: Wanted) -> Codec:
    if is_for_layers(layout) and not wanted.one_block:
        return fit_layered(
            layout,
            rows,
            wanted.ratio,
            basis=wanted.basis,
            seeded_share=wanted.seeded_share,
            two_sided=wanted.two_sided,
        )
    return fit(layout, rows, wanted.ratio, basis=wanted.basis, seeded_share=wanted.seeded_share)


def _start(path: Path | None, layout: Layout) -> Vector | None:
    if path is None:
        return None
    try:
        return read_model(layout, mapped(path))[0]
    except LayoutMismatchError as error:
        raise LayoutMismatchError(f"--start {path}: {error}; it is no model of this plan") from error


def _first_difference(ours: Layout, theirs: Layout) -> str:
    for one, other in zip(ours.entries, theirs.entries, strict=False):
        if one != other:
            return f"it has {one.name} {one.shape} where the plan has {other.name} {other.shape}"
    return (
        f"it has {len(ours.entries)} tensors of {ours.size:,} numbers, the plan {len(theirs.entries)} of"
        f" {theirs.size:,}"
    )


def _write(path: Path, raw: bytes) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_bytes(raw)
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise StorageError(f"the codec cannot be written to {path}: {error.strerror}") from error
