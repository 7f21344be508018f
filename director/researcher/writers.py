"""A run's metrics for TensorBoard and MLflow; each is an extra, imported only where it is used.

with TensorBoard("runs/lungs") as board:
follow(run, board)
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from ...utils.errors import ConfigError
from .run import Event, Run


class Writer(Protocol):
    """Takes metrics as they come."""

    def write(self, name: str, value: float, step: int) -> None:
        """One value of one metric, after a round."""


def follow(run: Run, *writers: Writer) -> None:
    """Write a run's pooled metrics as its rounds close, until it is over; those of before come first.

    Raises:
        FederationError: as ``Run.stream``.
    """
    write(run.stream(), *writers)


def write(events: Iterable[Event], *writers: Writer) -> None:
    """The metrics among some events."""
    for event in events:
        if event.kind == "metrics":
            for name, value in event.data["metrics"].items():
                for writer in writers:
                    writer.write(name, value, event.data["round"])


class TensorBoard:
    """Event files that ``tensorboard --logdir FOLDER`` shows. Needs the extra ``tensorboard``.

    Raises:
        ConfigError: the extra is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from tensorboard.summary import Writer as Files
        except ImportError as error:
            raise ConfigError("TensorBoard needs an extra: pip install 'fedveil[tensorboard]'") from error
        self._files = Files(str(folder))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, name: str, value: float, step: int) -> None:
        """One point of a curve; it is on disk at once."""
        self._files.add_scalar(name, value, step)
        self._files.flush()

    def close(self) -> None:
        """Write what is left."""
        self._files.close()


class MLflow:
    """A run of MLflow. Needs the extra ``mlflow``.

    Args:
        experiment: MLflow's name for it; made where there is none.
        run: of the federation; its plan, proposal and agreement become MLflow's tags.
        tracking_uri: of MLflow's server, or a folder as ``file:...`` or ``sqlite:///...``.

    Raises:
        ConfigError: the extra is not installed.
    """

    def __init__(self, experiment: str, run: Run, tracking_uri: str) -> None:
        try:
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise ConfigError("MLflow needs an extra: pip install 'fedveil[mlflow]'") from error
        self._client = MlflowClient(tracking_uri)
        found = self._client.get_experiment_by_name(experiment)
        of = found.experiment_id if found is not None else self._client.create_experiment(experiment)
        self.run_id: str = self._client.create_run(of, run_name=run.id, tags=_tags(run.show())).info.run_id

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.set_terminated(self.run_id, "FINISHED" if kind is None else "FAILED")

    def write(self, name: str, value: float, step: int) -> None:
        """One point of a curve; what MLflow takes in no name becomes a hyphen."""
        self._client.log_metric(self.run_id, re.sub(r"[^\w\-. /]", "-", name), value, step=step)


def _tags(task: dict[str, Any]) -> dict[str, str]:
    return {
        "fedveil.task": task["task_id"],
        "fedveil.plan": task["plan_digest"],
        "fedveil.proposal": str(task["proposal_digest"]),
        "fedveil.processing": f"{task['processing']['kind']} {task['processing']['number']}",
    }
