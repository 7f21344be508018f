"""A line of the log is one event: what it quotes of others ends no line, and moves no cursor."""

from __future__ import annotations

import logging

from fedveil.utils.logs import LineFormatter


def test_what_an_event_quotes_stays_within_its_line():
    record = logging.LogRecord("fedveil", logging.INFO, "", 1, "declined error=%s", ("a\nb\x1b[2J\u202e",), None)
    assert LineFormatter().format(record).endswith("INFO fedveil declined error=a\\nb\\x1b[2J\\u202e")


def test_the_lines_of_an_exception_are_indented():
    error = ValueError("a\n2026-01-01 00:00:00,000 INFO fedveil received\x1b[2J")
    record = logging.LogRecord("fedveil", logging.ERROR, "", 1, "failed", (), (ValueError, error, None))
    first, *rest = LineFormatter().format(record).split("\n")
    assert first.endswith("ERROR fedveil failed")
    assert len(rest) > 1
    assert all(line.startswith("  ") and line.isprintable() for line in rest)
