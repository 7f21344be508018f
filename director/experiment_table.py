"""How the director's commands print experiments."""

from __future__ import annotations

from rich.table import Table

from ..utils.command_line import in_bytes
from ..utils.messages import ExperimentView


def experiment_table(views: tuple[ExperimentView, ...]) -> Table:
    """One line an experiment."""
    table = Table("experiment", "state", "rounds", "up", "down", "reason")
    for view in views:
        closed = sum(one.state == "closed" and one.kind.value == "train" for one in view.rounds)
        done = f"{closed} of {view.max_rounds}" if view.rounds else f"of {view.max_rounds}"
        table.add_row(view.run, view.state, done, in_bytes(view.bytes_up), in_bytes(view.bytes_down), view.reason)
    return table
