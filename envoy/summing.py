"""This site's part in a secure sum: from an answer that is ready to the word that opens the sum.

    advertise -> [cohort] -> share -> [shares] -> masked words -> [survivors] consent -> [consents] unmask

What is in brackets comes from the director, which is not trusted: each item passes ``utils.secure_sum.participant``,
which holds it against this site's roster, floors and promises, and refuses what does not fit. A refusal is this site's
last word in that attempt. What binds is in the journal, on the disk, before the message that says it leaves. Keys live
in this process alone: an envoy that was restarted in the middle of a sum has none, and sits that attempt out.

The masked words are made while they are sent: no second vector of the model's size is held here.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..utils import messages as m
from ..utils.errors import (
    ConfigError,
    DigestMismatchError,
    IdentityError,
    ProtocolError,
    SumAbortedError,
    SumRefusedError,
    WrongRoundError,
)
from ..utils.metrics import MetricSum
from ..utils.roster import Roster
from ..utils.secure_sum import participant, relayed
from ..utils.secure_sum.participant import Ready, Site
from ..utils.secure_sum.rules import Promise, Promises, check_noise, colluders_of, organizations_of
from ..utils.secure_sum.sealed_stream import Sealer
from ..utils.secure_sum.spec import spec_of
from ..utils.secure_sum.tallies import MetricShape
from ..utils.secure_sum.terms import NoiseTerms
from ..utils.tensors import Digest, Vector, canonical_json, digest_of
from .dispatch import Dispatch, masked_header
from .journal import FinishedWork, Journal
from .mailbox import Mailbox
from .orders import result_to_json
from .patience import Patience
from .payload import Payloads
from .policy import SecureAggregationPolicy
from .promises import Row

_LOG = logging.getLogger(__name__)
_LEAST_SECONDS = 60.0  # for one item to come; what a round has left may be more
_WORD_BYTES = 4


class Audit(Protocol):
    """The site's log of what it consented to; each method has it on the disk before it returns."""

    def consented(
        self, ref: m.TaskRef, transcript: bytes, survivors: Iterable[m.EnvoyName], director_head: bytes
    ) -> None:
        """Before a consent leaves.

        Raises:
            SumRefusedError: the director's log is not the one that this site saw before.
            StorageError: it cannot be kept.
        """
        ...

    def unmasked(self, ref: m.TaskRef, transcript: bytes) -> None:
        """After this site's shares were revealed."""
        ...


@dataclass(frozen=True, slots=True)
class SumIdentity:
    """Who this envoy is in a secure sum, and whom it takes part with."""

    federation: str
    sign: Callable[[bytes], bytes] = field(repr=False)  # Ed25519, with the identity key
    roster: Callable[[], Roster]  # that this site accepted, as it is now; IdentityError where there is none
    audit: Audit | None = None  # this site's own log


@dataclass(frozen=True, slots=True)
class Occasion:
    """One task's sum, and how it is talked about."""

    task: m.Task
    sizes: tuple[int, ...]  # elements of each tensor of the payload
    mailbox: Mailbox
    withdrawn: threading.Event
    patience: Patience


class Summing:
    """Takes part in secure sums.

    Args:
        name: this envoy's.
        identity: of its secure sums; without one it takes part in none.
        policy: the site's floors.
        journal: keeps what binds.
        payloads: hold what goes under the masks.
        dispatch: the way out.
        random: secret bytes.
    """

    def __init__(
        self,
        name: m.EnvoyName,
        identity: SumIdentity | None,
        policy: SecureAggregationPolicy,
        journal: Journal,
        payloads: Payloads,
        dispatch: Dispatch,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._name, self._identity, self._policy = name, identity, policy
        self._journal, self._payloads, self._dispatch, self._random = journal, payloads, dispatch, random

    def admit(self, task: m.Task) -> None:
        """May this site take part in a task's sum, as far as that can be said before the work on it?

        Raises:
            ConfigError: it has no identity or no roster, or the sum is not for it; the text is public.
            SumRefusedError: too few of the envoys asked are ones that it knows, the round has another model, or a run
                of secure sums asks for an answer in the clear.
            SumAbortedError: it took part in this attempt before it was restarted.
        """
        if task.sum is None:
            if self._journal.promised(task.ref.run):  # also where the site allows plain rounds: not of what was summed
                raise SumRefusedError(f"{task.ref} asks for an answer in the clear, in a run of secure sums")
            return
        _, roster = self._known(task)
        if task.sum.aggregator and task.sum.aggregator not in roster:
            raise ConfigError(f"{task.ref} is summed by {task.sum.aggregator}, which is not in this site's roster")
        known = [name for name in task.cohort if name in roster]
        organizations = len(roster.organizations(known))
        if organizations < self._policy.floors.organizations:
            raise SumRefusedError(
                f"{task.ref} asks envoys of {organizations} organizations of this site's roster; this site asks for"
                f" {self._policy.floors.organizations}"
            )
        if task.sum.noise is not None:  # before anything is trained and spent; the threshold is not known yet
            self._check_noise(task.ref, task.sum.noise, roster, known)
        for row in self._journal.promised(task.ref.run):
            if (row.round, row.attempt) == (task.ref.round, task.ref.attempt):
                raise _restarted(task.ref)
            if row.round == task.ref.round and row.model != task.model:
                raise SumRefusedError(f"{task.ref} begins with another model than attempt {row.attempt} of that round")

    def _check_noise(self, ref: m.TaskRef, noise: NoiseTerms, roster: Roster, known: Collection[m.EnvoyName]) -> None:
        colluders = colluders_of(organizations_of(roster, known).values(), self._policy.floors.colluding)
        try:
            check_noise(noise, len(known), colluders)
        except SumRefusedError as error:
            raise SumRefusedError(f"{ref}: {error}") from None

    def left_behind(self, ref: m.TaskRef) -> SumAbortedError | None:
        """Why an item of a sum that nobody works on here will not be answered; None where it needs no answer.

        The director has this site's masked words, say, and waits for more; the envoy that sent them was killed.
        """
        for row in self._journal.promised(ref.run):
            if (row.round, row.attempt) == (ref.round, ref.attempt) and not Promise.from_json(row.promise).unmasked:
                return _restarted(ref)
        return None

    def last_left(self) -> m.TaskRef | None:
        """The sum that the process before this one was killed in, if that is how it ended."""
        last = self._journal.last_sum()
        return None if last is None or Promise.from_json(last[1]).unmasked else last[0]

    def take_part(self, occasion: Occasion, done: FinishedWork) -> None:
        """Walk one attempt of a sum to its end.

        Raises:
            SumRefusedError: this site says no; nothing more leaves in this attempt.
            SumAbortedError: it was withdrawn, or the director says nothing any more.
            ProtocolError, UnsendableUpdateError: as the director, or what is to be sent, has it.
        """
        task = occasion.task
        identity, roster = self._known(task)
        spec = spec_of(identity.federation, task, occasion.sizes)
        site = Site(self._name, identity.sign, roster, self._policy.floors)
        book = _Book(self._journal, task, done)
        self._say_what_counts(task, done, spec.weight_of(done.result.num_examples))

        advertised, said = participant.advertise(site, spec, _shapes(done.result.metrics), book.promises, self._random)
        book.write(advertised.promises)
        self._tell(occasion, said)
        cohort = self._take(occasion, "the cohort")
        shared, said = participant.share(advertised, cohort, book.promises, self._random)
        book.write(shared.promises)
        self._tell(occasion, said)
        ready = participant.receive(shared, self._take(occasion, "the others' shares"), book.promises)
        book.check_payload(ready.promises)
        book.depart(ready)
        masked, said = participant.announce(ready, self._send(occasion, done, ready))
        self._tell(occasion, said)
        survivors = self._take(occasion, "the survivors")
        consented, said = participant.consent(masked, survivors, book.promises)
        transcript, consent = consented.cohort.transcript, consented.consent
        book.check_survivors(consent.survivors)
        if identity.audit is not None:
            identity.audit.consented(task.ref, transcript, consent.survivors, consent.audit_head)
        book.write(consented.promises)
        self._tell(occasion, said)
        consents = self._take(occasion, "the others' consents")
        unmasked, said = participant.unmask(consented, consents, book.promises)
        if spec.terms.aggregator:
            said = relayed.seal_unmasking(consented.cohort, self._name, said, roster)
        book.write(unmasked.promises)
        try:
            self._tell(occasion, said)
        except WrongRoundError as error:  # enough others were quicker; this site is among those who were summed
            _LOG.info("not needed any more task=%s: %s", task.ref, error)
        if identity.audit is not None:
            identity.audit.unmasked(task.ref, transcript)
        self._dispatch.keep_receipt(done)

    def _known(self, task: m.Task) -> tuple[SumIdentity, Roster]:
        if self._identity is None:
            raise ConfigError(f"{task.ref} is a secure sum; this envoy has no identity key to take part with")
        try:
            roster = self._identity.roster()
        except IdentityError as error:
            _LOG.warning("no secure sums: %s", error)
            raise ConfigError(
                f"{task.ref} is a secure sum, and this site has no roster that it accepted and is in; its data manager"
                " says `envoy roster fetch`, compares the keys with the other sites, and says `envoy roster accept`"
            ) from error
        return self._identity, roster

    def _say_what_counts(self, task: m.Task, done: FinishedWork, weight: int) -> None:
        if task.sum is not None and not task.sum.equal_weights and done.result.num_examples > weight:
            _LOG.info("more than max_examples count as so many task=%s counted=%d", task.ref, weight)

    def _take(self, occasion: Occasion, what: str) -> bytes:
        return occasion.mailbox.take(what, max(occasion.task.seconds_left, _LEAST_SECONDS))

    def _tell(self, occasion: Occasion, content: bytes) -> None:
        if occasion.withdrawn.is_set():
            raise SumAbortedError(f"{occasion.task.ref} was withdrawn")
        answer = self._dispatch.tell_sum(m.SumStatement(occasion.task.ref, content), occasion.patience)
        occasion.mailbox.put(answer)

    def _send(self, occasion: Occasion, done: FinishedWork, ready: Ready) -> Digest:
        """Masked words, piece by piece as they are made; gives the digest of all of them."""
        task, sealer = occasion.task, self._sealer(ready)  # one, so that a line that breaks goes on with the same bytes
        num_bytes = ready.words * _WORD_BYTES if sealer is None else sealer.binding.sealed_length
        digests: dict[Digest, Digest] = {}  # of what left, and of the masked words in it

        def parts(turn: m.Turn) -> Iterator[m.Part]:
            if turn.offset > num_bytes or turn.offset % _WORD_BYTES:
                raise ProtocolError(f"the director wants {task.ref} from {turn.offset} on, it has {num_bytes} bytes")
            yield m.Opening(num_bytes, turn.offset, turn.grant)
            sha, at = hashlib.sha256(), 0
            masked = sha if sealer is None else hashlib.sha256()
            words: Iterator[bytes | memoryview] = self._pieces(task, done, ready, turn.part_bytes)
            for piece in words if sealer is None else sealer.stream_of(_hashed(words, masked)):
                sha.update(piece)
                at += len(piece)
                if occasion.withdrawn.is_set():
                    return
                if at > turn.offset:
                    yield m.Data(piece[max(0, turn.offset - (at - len(piece))) :])
            digests[Digest(sha.hexdigest())] = Digest(masked.hexdigest())
            yield m.Closing(Digest(sha.hexdigest()))

        header = masked_header(done, task.layout, num_bytes)
        receipt = self._dispatch.upload_masked(header, parts, done.trained_ref, occasion.withdrawn, occasion.patience)
        if receipt.digest not in digests:
            raise DigestMismatchError(f"the director holds other masked words of {self._name} for {task.ref}")
        self._journal.left_masked(task.ref, receipt.digest, num_bytes)
        return digests[receipt.digest]

    def _sealer(self, ready: Ready) -> Sealer | None:
        """Seals the masked words to the aggregator, where that is not the director."""
        if not (aggregator := ready.cohort.spec.terms.aggregator):
            return None
        binding = relayed.vector_binding(ready.cohort, self._name)
        return Sealer(binding, relayed.seal_key(ready.site.roster, m.EnvoyName(aggregator)), self._random)

    def _pieces(self, task: m.Task, done: FinishedWork, ready: Ready, part_bytes: int) -> Iterator[memoryview]:
        """From the first word on, whatever the director has already: the digest is over all of them."""
        result = done.result
        words = participant.stream(
            ready,
            self._payload(done),
            result.num_examples,
            result.metrics,
            task.seed,
            part_words=max(1, part_bytes // _WORD_BYTES),
            noise_secret=done.noise_secret,
        )
        for part in words:
            yield part.astype("<u4", copy=False).view(np.uint8).data

    def _payload(self, done: FinishedWork) -> Vector:
        if done.digest is None:
            return np.empty(0, np.float32)
        return np.frombuffer(self._payloads.view(done.file, done.digest, done.length), np.float32)


class _Book:
    """What binds this site in one run, in memory and in the journal: written there whenever it changes."""

    def __init__(self, journal: Journal, task: m.Task, done: FinishedWork) -> None:
        self._journal, self._task, self._done = journal, task, done
        self._payload = done.digest or digest_of(canonical_json(result_to_json(done.result)))
        if done.noise_secret is not None:  # the same vector with other noise is another answer
            self._payload = digest_of(self._payload.encode() + done.noise_secret)
        self._rows = {(row.round, row.attempt): row for row in journal.promised(task.ref.run)}
        records = tuple(Promise.from_json(row.promise) for row in self._rows.values())
        self.promises = Promises(task.ref.run, records)

    def check_payload(self, promises: Promises) -> None:
        """Before masked words leave: would they, with what left before, tell this site apart?

        Raises:
            SumRefusedError: another update of this round may still be opened; or the very same one was summed among
                others in another round, of this run or of one that was submitted with the same seed.
        """
        mine = promises.of(self._task.ref)
        for where, before in self._repeats():
            if mine is not None and before.masked and (before.cohort, before.weights) != (mine.cohort, mine.weights):
                raise SumRefusedError(
                    f"the very same answer was masked among {len(before.cohort)} envoys in {where}; among others it"
                    " would be told from that sum, and weighed otherwise too. Submit the run with another seed"
                )
        for before in promises.earlier(self._task.ref):
            if before.masked and not before.dead and self._rows[before.round, before.attempt].payload != self._payload:
                raise SumRefusedError(
                    f"what this site masked in attempt {before.attempt} of round {before.round} is no longer here, and"
                    " may still be opened; another update of the same round would be told from it"
                )

    def check_survivors(self, survivors: tuple[m.EnvoyName, ...]) -> None:
        """Before a consent: the very same answer is in no sum over others.

        Raises:
            SumRefusedError: it is, in another round.
        """
        for where, before in self._repeats():
            if before.consented not in (None, survivors):
                raise SumRefusedError(
                    f"the very same answer is in a sum over {len(before.consented or ())} other envoys in {where}; the"
                    " difference would tell them apart"
                )

    def _repeats(self) -> Iterator[tuple[str, Promise]]:
        for row in self._journal.repeated(self._task.ref, self._payload):
            promise = Promise.from_json(row.promise)
            if not promise.dead:
                yield f"round {row.round} of {row.run}", promise

    def write(self, promises: Promises) -> None:
        """Make what changed durable."""
        for row in self._changed(promises):
            self._journal.promise(row)
            self._rows[row.round, row.attempt] = row
        self.promises = promises

    def depart(self, ready: Ready) -> None:
        """Masked words are about to leave: the promise, and the outbox's row."""
        mine = ready.promises.of(self._task.ref)
        if mine is None or not mine.masked:
            raise SumRefusedError(f"{self._task.ref}: no promise stands for what is about to leave")
        here = (self._task.ref.round, self._task.ref.attempt)
        for row in self._changed(ready.promises):
            if (row.round, row.attempt) != here:
                self._journal.promise(row)
                self._rows[row.round, row.attempt] = row
        words = f"secure sum of {len(mine.cohort)}, threshold {mine.threshold}"
        if (noise := ready.cohort.spec.terms.noise) is not None and self._done.noise_secret is not None:
            words += f", noise {noise.surplus(len(mine.cohort)):.3g} times the counted variance if nobody drops out"
        row = self._row(mine)
        self._journal.depart(self._done, ready.words * _WORD_BYTES, words, row)
        self._rows[here] = row
        self.promises = ready.promises

    def _changed(self, promises: Promises) -> Iterator[Row]:
        for promise in promises.records:
            row = self._row(promise)
            if self._rows.get((row.round, row.attempt)) != row:
                yield row

    def _row(self, promise: Promise) -> Row:
        """An attempt's own model and payload, and this one's for a new attempt."""
        held = self._rows.get((promise.round, promise.attempt))
        model, payload = (held.model, held.payload) if held else (self._task.model, self._payload)
        return Row(self._task.ref.run, promise.round, promise.attempt, model, payload, promise.to_json())


def _restarted(ref: m.TaskRef) -> SumAbortedError:
    return SumAbortedError(
        f"this envoy was restarted in the middle of {ref} and has no keys of it any more; it takes part in the next"
        " attempt"
    )


def _hashed(pieces: Iterable[bytes | memoryview], sha: hashlib._Hash) -> Iterator[bytes | memoryview]:
    for piece in pieces:
        sha.update(piece)
        yield piece


def _shapes(metrics: tuple[MetricSum, ...]) -> tuple[MetricShape, ...]:
    return tuple(MetricShape(metric.name, metric.kind) for metric in sorted(metrics, key=lambda one: one.name))
