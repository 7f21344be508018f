"""Tables in a README that a command writes: what stands between two markers is its, the rest is people's."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ...utils.errors import StorageError


def put_between_markers(path: Path, name: str, lines: Iterable[str]) -> None:
    """Replace what stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``.

    Raises:
        StorageError: the file cannot be read or written, or has not both markers once, in this order.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        text = path.read_text("utf-8")
        head, found_begin, rest = text.partition(begin)
        _, found_end, tail = rest.partition(end)
        if not found_begin or not found_end or begin in rest:
            raise StorageError(f"{path} has no place for the table: write the lines {begin} and {end} where it goes")
        fresh.write_text("\n".join((head + begin, "", *lines, "", end + tail)), "utf-8")
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise StorageError(f"the table cannot be written to {path}: {error.strerror}") from error
