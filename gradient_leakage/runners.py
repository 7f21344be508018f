"""How runs are spread: in this process, or over processes of this machine.

A runner is a function from (function, items) to results as they end, in any order, so that one over several machines
can take its place.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from ..utils.errors import AttackError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class MapRuns(Protocol):
    """Applies a function to every item, wherever that happens."""

    def __call__(self, function: Callable[[ItemT], ResultT], items: Sequence[ItemT]) -> Generator[ResultT]:
        """Each result as soon as it is there. Function, items and results may have to cross a process's border."""
        ...


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch calculate on one thread, as the workers do: sums depend on how they are divided."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_this_process(function: Callable[[ItemT], ResultT], items: Sequence[ItemT]) -> Generator[ResultT]:
    """One after the other."""
    with one_thread():
        yield from map(function, items)


@dataclass(frozen=True, slots=True)
class InProcesses:
    """Fresh processes of one thread each. They end with the one that started them, however that ends.

    Raises:
        AttackError: the system ended a worker, most often for want of memory.
    """

    workers: int

    def __call__(self, function: Callable[[ItemT], ResultT], items: Sequence[ItemT]) -> Generator[ResultT]:
        """Each result as soon as it is there; whoever stops listening stops the workers."""
        others = set(multiprocessing.active_children())
        size = max(1, min(self.workers, len(items)))
        pool = ProcessPoolExecutor(size, multiprocessing.get_context("spawn"), begin_worker)
        all_ended = False
        try:
            for ended in as_completed([pool.submit(function, item) for item in items]):
                yield ended.result()
            all_ended = True
        except BrokenProcessPool as error:
            raise AttackError(
                "a worker process of the benchmark was ended from outside, most often for want of memory: "
                "start again with fewer workers; what had ended is kept"
            ) from error
        finally:
            for child in set() if all_ended else set(multiprocessing.active_children()) - others:
                child.terminate()  # what it was at is made again; nobody waits a minute for it
            pool.shutdown()  # its own thread joins the children: joined here too, they would be reaped under its hands


def begin_worker() -> None:
    """Make this process a worker: one thread, deaf to Ctrl-C (its parent decides), and gone with its parent."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
