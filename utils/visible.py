"""Texts that others wrote, as a terminal and a log may show them. Pure."""

from __future__ import annotations


def visible(line: str) -> str:
    r"""A line with all that a terminal would act upon, or not show, spelled out.

    >>> visible("x = 1 \x1b[8m# hidden")
    'x = 1 \\x1b[8m# hidden'
    """
    if line.isprintable():
        return line
    return "".join(char if char.isprintable() or char == "\t" else ascii(char)[1:-1] for char in line)
