"""``envoy start`` that kills itself with SIGKILL at one instant of a secure sum.

    python crashing_envoy.py FOLDER WHEN [--round N]

``WHEN`` is ``before-advert``, ``after-advert``, ``before-shares``, ``after-shares``, ``after-vector`` (its masked
words are at the director, and it has not said so), ``after-header``, ``before-consent``, ``after-consent``,
``before-unmasking`` or ``after-unmasking``; or ``before-total``, of a sum that it opens for others. The envoy is the
real one; only where it dies is decided here.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from fedveil.envoy import __main__, client
from fedveil.utils import messages as m
from fedveil.utils.secure_sum.handover import is_handover

STATEMENTS = ("advert", "shares", "header", "consent", "unmasking")


def die(why: str) -> None:
    print(f"dies {why}", file=sys.stderr, flush=True)  # noqa: T201
    os.kill(os.getpid(), signal.SIGKILL)


class DoomedClient(client.DirectorClient):
    """Its words in one round are counted, and one of them is the last."""

    when = ""
    round = 1
    said: ClassVar[Counter[m.TaskRef]] = Counter()

    def tell_sum(self, statement: m.SumStatement) -> m.SumReply:
        if statement.ref.round != self.round:
            return super().tell_sum(statement)
        if is_handover(statement.content):
            if self.when == "before-total":
                die(self.when)
            return super().tell_sum(statement)
        name = STATEMENTS[self.said[statement.ref]]
        self.said[statement.ref] += 1
        if self.when == f"before-{name}":
            die(self.when)
        reply = super().tell_sum(statement)
        if self.when == f"after-{name}":
            die(self.when)
        return reply

    def upload(self, parts: Iterable[m.Part]) -> m.Receipt:
        receipt = super().upload(parts)
        if self.when == "after-vector" and receipt.ref.round == self.round:
            die(self.when)
        return receipt


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("when")
    parser.add_argument("--round", type=int, default=1)
    given = parser.parse_args()
    DoomedClient.when, DoomedClient.round = given.when, given.round
    client.DirectorClient = DoomedClient
    __main__.start(given.folder)


if __name__ == "__main__":
    main()
