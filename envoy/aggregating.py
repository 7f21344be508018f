"""This envoy as the aggregator of other sites' secure sums: it takes a case, opens the sum, and gives the total back.

The director names it, the sites that take part must have named it (``aggregators`` in their envoy.toml), and so must
this site itself: it sums only where its own list holds its own name. It works on a thread of its own, beside the task
at hand, and holds one vector of the sum's size; sealed vectors pass through one file. Nothing of a single site stays
here: what it opens are masked vectors, and the shares take masks off their sum alone.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ..utils import messages as m
from ..utils.errors import (
    ConfigError,
    FederationError,
    IdentityError,
    LengthMismatchError,
    MalformedMessageError,
    StorageError,
)
from ..utils.secure_sum import handover, relayed
from ..utils.secure_sum.case import MAX_CASE_BYTES, Case, tried
from ..utils.tensors import Digest, digest_of
from .dispatch import Dispatch
from .fetching import Fetcher
from .patience import Patience
from .policy import SecureAggregationPolicy
from .summing import SumIdentity

_LOG = logging.getLogger(__name__)
_MAX_WAITING = 4
_READ_BYTES = 1 << 20
_MAX_TOTAL_BYTES = 4 << 30  # as of a model


class Audit(Protocol):
    """The site's log."""

    def summed(self, ref: m.TaskRef, transcript: bytes, survivors: Iterable[m.EnvoyName], total: str) -> None:
        """Before the total of a sum leaves this site.

        Raises:
            StorageError: it cannot be kept.
        """
        ...


@dataclass(frozen=True, slots=True)
class AggregatorIdentity:
    """Who this envoy is as an aggregator."""

    site: SumIdentity
    opening_key: X25519PrivateKey  # ``relayed.opening_key`` of its identity
    audit: Audit | None = None


class Aggregating:
    """Opens the sums that the director hands over.

    Args:
        name: this envoy's.
        identity: without one, nothing is opened here.
        policy: the site's; it must name this envoy among its ``aggregators``.
        fetcher: brings the case and the sealed vectors.
        dispatch: takes the total away.
        folder: where what is fetched lies for a while.
    """

    def __init__(
        self,
        name: m.EnvoyName,
        identity: AggregatorIdentity | None,
        policy: SecureAggregationPolicy,
        fetcher: Fetcher,
        dispatch: Dispatch,
        folder: Path,
    ) -> None:
        self._name, self._identity, self._policy = name, identity, policy
        self._fetcher, self._dispatch, self._folder = fetcher, dispatch, folder
        self._ended, self._lock = threading.Event(), threading.Lock()
        self._orders: queue.SimpleQueue[m.SumItem | None] = queue.SimpleQueue()
        self._known: set[m.SumItem] = set()  # waiting, or at work
        self._again: set[m.SumItem] = set()  # of those, what came once more
        self._thread: threading.Thread | None = None

    def is_news(self, item: m.SumItem) -> bool:
        """Would this order be taken?"""
        with self._lock:
            return item not in self._known and len(self._known) < _MAX_WAITING

    def take(self, item: m.SumItem) -> None:
        """One order. The very same that comes while it is at work is remembered: the director may have lost its way."""
        with self._lock:
            if item in self._known:
                self._again.add(item)
                return
            if len(self._known) >= _MAX_WAITING or self._ended.is_set():
                return
            self._known.add(item)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="aggregating", daemon=True)
                self._thread.start()
        self._orders.put(item)

    def end(self) -> None:
        """Give up what is at work."""
        self._ended.set()
        self._orders.put(None)

    def _work(self) -> None:
        while (item := self._orders.get()) is not None and not self._ended.is_set():
            is_given = self._perform(item, Patience(self._ended))
            with self._lock:
                is_asked_again = item in self._again and not is_given
                self._again.discard(item)
                if not is_asked_again:
                    self._known.discard(item)
            if is_asked_again:
                self._orders.put(item)

    def _perform(self, item: m.SumItem, patience: Patience) -> bool:
        """One order to its end; False where the director did not take what this site told it."""
        try:
            told = self.sum(item, patience)
        except FederationError as error:
            _LOG.warning("no total task=%s error=%s: %s", item.ref, type(error).__name__, error)
            told = [handover.Declined(f"{type(error).__name__}: {error}")]
        except Exception:  # noqa: BLE001 - one sum must not end the envoy; all of it stays in the site's log
            _LOG.exception("no total task=%s", item.ref)
            told = [handover.Declined("an error in the aggregator itself; see its log")]
        try:
            for message in told:
                self._dispatch.tell_sum(m.SumStatement(item.ref, handover.to_bytes(message)), patience)
        except FederationError as error:
            _LOG.warning("the director does not take the total task=%s: %s", item.ref, error)
            return False
        return True

    def sum(self, item: m.SumItem, patience: Patience) -> Iterable[handover.Handover]:
        """One order, from the case to the signed total; gives what is to be told.

        Raises:
            ConfigError: this site is no aggregator.
            IdentityError: it accepted no roster.
            FederationError: as ``case.tried``, ``relayed.open_total`` and the director have it.
        """
        order = handover.from_bytes(item.content)
        if not isinstance(order, handover.Order):
            raise MalformedMessageError(f"{item.ref}: a {type(order).__name__} came where an order was to come")
        if self._identity is None or self._name not in self._policy.aggregators:
            raise ConfigError(
                f"{self._name} is no aggregator: its data manager has not put its name among the aggregators of"
                " [secure_aggregation] in envoy.toml"
            )
        site, key = self._identity.site, self._identity.opening_key
        try:
            roster = site.roster()
        except IdentityError as error:
            _LOG.warning("no sums for others: %s", error)
            raise ConfigError(f"{self._name} has accepted no roster; see `envoy roster`") from error
        case = Case.from_bytes(self._fetched(item.ref, order.case, MAX_CASE_BYTES, "case", patience).read_bytes())
        if case.spec.ref != item.ref:
            raise MalformedMessageError(f"the order is for {item.ref}, its case for {case.spec.ref}")
        held = tried(case, self._name, roster, key)
        if held.opened.words * relayed.WORD_BYTES > _MAX_TOTAL_BYTES:
            raise LengthMismatchError(f"{item.ref} sums {held.opened.words} words, more than this envoy takes")
        for by, reason in held.spoilt.items():
            _LOG.warning("left out task=%s envoy=%s reason=%s", item.ref, by, reason)

        def sealed(name: m.EnvoyName) -> Iterator[bytes]:
            most = relayed.vector_binding(held.opened.cohort, name).sealed_length
            path = self._fetched(item.ref, case.vectors[name], most, "vector", patience)
            return _pieces(path)

        total = relayed.open_total(held.opened, held.announced, sealed, key).astype("<u4", copy=False)
        raw = total.data.cast("B")
        digest = digest_of(raw)
        if self._identity.audit is not None:
            self._identity.audit.summed(item.ref, held.opened.transcript, held.opened.survivors, digest)
        for name in ("case", "vector"):
            self._path(name).unlink(missing_ok=True)
        _LOG.info("total opened task=%s sites=%d", item.ref, len(held.opened.survivors))
        return _told(raw, handover.Finished(digest, relayed.sign_total(held.opened, digest, site.sign)))

    def _fetched(self, ref: m.TaskRef, digest: Digest, most: int, name: str, patience: Patience) -> Path:
        return self._fetcher.artifact(ref, digest, self._path(name), most, patience)

    def _path(self, name: str) -> Path:
        return self._folder / f"aggregating-{name}"


def _told(raw: memoryview, finished: handover.Finished) -> Iterator[handover.Handover]:
    for offset in range(0, len(raw), handover.PART_BYTES):
        yield handover.Part(offset, bytes(raw[offset : offset + handover.PART_BYTES]))
    yield finished


def _pieces(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb", buffering=0) as file:
            while piece := file.read(_READ_BYTES):
                yield piece
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
