"""Calls into a plan's code: whatever it raises becomes one error that gives no value of the site away.

Nothing that the plan words itself goes into the error, as it is told to the director.
"""

from __future__ import annotations

import builtins
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from ..utils.errors import TrainingError
from ..utils.metrics import MAX_METRICS, MetricSum, total

_MAX_YIELDED = MAX_METRICS // 2  # a final evaluation sends those of two splits in one message
_TEST = "test_"
_MAX_NAME = 32 - len(_TEST)
_log = logging.getLogger(__name__)


@contextmanager
def calling(step: str) -> Iterator[None]:
    """Run a piece of the plan; ``step`` says which, with no value in it.

    The exception's text may quote data, so it goes to the site's own log alone.

    Raises:
        TrainingError: the plan raised, or tried to leave the process.
    """
    try:
        yield
    except (Exception, SystemExit) as error:  # the plan is somebody else's code: it may raise anything
        _log.warning("the plan raised in %s", step, exc_info=True)
        raise TrainingError(
            f"the plan raised {_shown(error)} in {step}; the site's worker log has the details"
        ) from error


def _shown(error: BaseException) -> str:
    """The nearest class of Python's own: the name of any other is the plan's to choose, and may hold what it saw."""
    names: Iterator[str] = (kind.__name__ for kind in type(error).__mro__ if vars(builtins).get(kind.__name__) is kind)
    return next(names)


def collect_metrics(metrics: Iterable[MetricSum], step: str) -> tuple[MetricSum, ...]:
    """Run a plan's evaluation to its end and add up metrics of one name.

    Raises:
        TrainingError: it raised, or yielded something that is no metric, too many of them, or too long a name.
    """
    with calling(step):
        found = list(metrics)
    if not all(isinstance(metric, MetricSum) for metric in found):
        raise TrainingError(f"{step} yielded something else than a MetricSum; use mean_of and auc_of")
    try:
        sums = total(found)
    except ValueError as error:
        raise TrainingError(f"{step}: {error}") from error
    if len(sums) > _MAX_YIELDED or any(len(metric.name) > _MAX_NAME for metric in sums):
        raise TrainingError(
            f"{step} yields {_MAX_YIELDED} metrics at most, with names of {_MAX_NAME} characters at most"
        )
    return sums


def of_test_split(metrics: tuple[MetricSum, ...]) -> tuple[MetricSum, ...]:
    """The same metrics, named as those of the test split: ``test_NAME``."""
    return tuple(MetricSum(_TEST + m.name, m.kind, m.values, m.weight) for m in metrics)
