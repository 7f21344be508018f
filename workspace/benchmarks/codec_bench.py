"""``fedveil bench codec``: rows, the table made of them, and where the table goes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from ...utils.errors import ConfigError
from .codec_table import as_markdown, compare
from .codec_utility import ARMS, BASELINE, held, measure, prepare
from .marked_text import put_between_markers

TABLE = "codec"
"""The name of the table's place in a page."""


def bench_codecs(
    out: Path,
    arms: str | None,
    seeds: str,
    rounds: str,
    json_file: Path | None,
    page: Path | None,
    *,
    runs: bool = True,
) -> Iterator[str]:
    """Measure what is missing; a line for each row as it comes, then the table.

    Args:
        out: keeps rows and codecs.
        arms: names by semicolons; None: all. The uncompressed arm is always among them.
        seeds: whole numbers, by commas.
        rounds: whole numbers, by commas.
        json_file: takes the rows.
        page: takes the table.
        runs: False makes the table of the rows that ``out`` holds.

    Raises:
        ConfigError: no such arm, or no number.
        DatasetError: no images.
        StorageError: the page has no place for the table.
    """
    import torch

    torch.set_num_threads(1)
    asked = list(ARMS) if arms is None else [arm.strip() for arm in arms.split(";")]
    named = asked if BASELINE in asked else [BASELINE, *asked]
    of_seeds, after = _numbers("seeds", seeds), _numbers("rounds", rounds)
    find = measure if runs else held
    rows = []
    for row in find(out, named, seeds=of_seeds, rounds=after):
        rows.append(row)
        yield f"{row.arm}, seed {row.seed}, {row.rounds} rounds: {row.auc:.4f}, {row.bytes_up:,} bytes"
    lines = list(as_markdown(compare(rows, prepare(out).images.test.labels)))
    yield from lines
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", "utf-8")
    if page is not None:
        put_between_markers(page, TABLE, lines)


def _numbers(name: str, text: str) -> list[int]:
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--{name} {text!r}: expected whole numbers by commas") from error
    if min(numbers) < 1 or len(set(numbers)) != len(numbers):
        raise ConfigError(f"--{name} {text!r}: expected different numbers of at least 1")
    return numbers
