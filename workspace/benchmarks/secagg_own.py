"""What our secure sum costs, as ``secagg.py`` asks: run in a process of its own, so that memory is told apart.

    PYTHON -m fedveil.workspace.benchmarks.secagg_own PARAMS ENVOYS REPEATS SUITE

Every site and the aggregator are the real ones of ``utils/secure_sum``, walked through the protocol in this process;
there is no wire and no disk. The vectors are summed, unmasked and decoded block by block, as a director does it.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeAlias, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from ...utils.messages import EnvoyName, RunId, TaskKind, TaskRef
from ...utils.roster import Roster, RosterEntry
from ...utils.secure_sum import cohort, participant, summation
from ...utils.secure_sum.fixed_point import LEVELS
from ...utils.secure_sum.rules import Promises, SumFloors
from ...utils.secure_sum.sealing import key_pair, open_box, seal
from ...utils.secure_sum.shamir import combine, split
from ...utils.secure_sum.spec import SumSpec
from ...utils.secure_sum.terms import Suite, SumTerms
from ...utils.tensors import Digest, Vector

TENSOR = 1_000_000  # numbers in each tensor, but for the last
NUM_EXAMPLES = 700
_BLOCK = 1 << 17  # words that the director sums, unmasks and decodes at once
_CALLS = 101
_DIGEST = Digest("0" * 64)
Words: TypeAlias = NDArray[np.uint32]
_P = ParamSpec("_P")
_T = TypeVar("_T")
_S = TypeVar("_S", summation.Gathering, summation.Sharing, summation.Masking, summation.Consenting, summation.Unmasking)


@dataclass(frozen=True, slots=True)
class OwnCost:
    """CPU seconds are medians; memory is above what was resident with the input."""

    threshold: int
    client_cpu_s: float  # quantise, mask and hash the whole vector
    client_mask_cpu_s: float  # the same without the SHA-256 of what is sent
    client_control_cpu_s: float  # all else of a site, from advert to unmasking: median over the sites
    extra_memory_mb: float  # of the first pass over the vector
    wire_bytes_per_parameter: float  # of the masked vector, tallies and all
    control_bytes: int  # up, of the site that sends most
    control_bytes_down: int
    director_cpu_s: float  # sum, unmask and decode, nobody dropped out
    director_control_cpu_s: float  # all else of the aggregator
    director_cpu_s_per_dropout: float | None  # more than that, a site that was lost; None where none may be
    max_error_steps: float  # of the sum, in units of the last place; at most one a site is promised
    primitives_us: Mapping[str, float]  # CPU microseconds of one call


@dataclass(slots=True)
class _Clock:
    """CPU seconds of one party, but for its passes over vectors."""

    seconds: float = 0.0

    def do(self, step: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Take a step on this party's time."""
        started = time.process_time()
        try:
            return step(*args, **kwargs)
        finally:
            self.seconds += time.process_time() - started


@dataclass(slots=True)
class _Member(_Clock):
    """One site, what it spent and what it said and was told."""

    site: participant.Site = field(kw_only=True)
    up: int = 0
    down: int = 0


def measure(params: int, envoys: int, repeats: int, suite: Suite) -> OwnCost:
    """One sum, from advert to mean, some parts of it several times."""
    spec, members = _members(params, envoys, suite)
    clock = _Clock()
    ready, masking = _keys(spec, members, clock)
    payload = np.random.default_rng(0).standard_normal(params, np.float32) * np.float32(0.01)
    first = next(iter(ready.values()))
    extra, client = _send_often(first, payload, repeats)
    vectors = {name: _sent(one, payload) for name, one in ready.items()}
    there = list(members.values())
    opened = _open(masking, there, ready, vectors, clock)
    control = [member.seconds for member in there]
    mean = np.empty_like(payload)
    director = _timed(lambda: _decode(opened, vectors, mean), repeats)
    step = spec.bounds[0] / LEVELS * spec.max_total / (NUM_EXAMPLES * envoys)
    error = float(np.abs(mean.astype(np.float64) - payload).max()) / step
    up, down = max(member.up for member in there), max(member.down for member in there)
    lost, more = envoys - masking.cohort.threshold, None
    if lost:
        fewer = _open(masking, there[lost:], ready, vectors, _Clock())
        with_lost = _timed(lambda: _decode(fewer, vectors, mean), repeats)
        more = (statistics.median(with_lost) - statistics.median(director)) / lost
    return OwnCost(
        threshold=masking.cohort.threshold,
        client_cpu_s=statistics.median(client),
        client_mask_cpu_s=statistics.median(_timed(lambda: _mask(first, payload), repeats)),
        client_control_cpu_s=statistics.median(control),
        extra_memory_mb=extra,
        wire_bytes_per_parameter=4 * first.words / params,
        control_bytes=up,
        control_bytes_down=down,
        director_cpu_s=statistics.median(director),
        director_control_cpu_s=clock.seconds,
        director_cpu_s_per_dropout=more,
        max_error_steps=error,
        primitives_us=_primitives(suite, envoys, masking.cohort.threshold),
    )


def _members(params: int, envoys: int, suite: Suite) -> tuple[SumSpec, dict[EnvoyName, _Member]]:
    keys = {EnvoyName(f"site-{nth:03}"): Ed25519PrivateKey.generate() for nth in range(envoys)}
    roster = Roster(
        "bench",
        tuple(RosterEntry(name, f"of {name}", key.public_key().public_bytes_raw()) for name, key in keys.items()),
    )
    ref = TaskRef(RunId("bench"), 1, 1, _DIGEST)
    sizes = tuple(min(TENSOR, params - start) for start in range(0, params, TENSOR))
    spec = SumSpec("bench", ref, TaskKind.TRAIN, _DIGEST, _DIGEST, None, sizes, envoys, SumTerms(suite=suite))
    floors = SumFloors(suites=tuple(Suite))
    return spec, {name: _Member(site=participant.Site(name, key.sign, roster, floors)) for name, key in keys.items()}


def _keys(
    spec: SumSpec, members: Mapping[EnvoyName, _Member], clock: _Clock
) -> tuple[dict[EnvoyName, participant.Ready], summation.Masking]:
    """Adverts, shares, delivery: all that comes before the vectors."""
    gathering = summation.begin(spec, next(iter(members.values())).site.roster)
    none = Promises(spec.ref.run)
    advertised, shared, ready = {}, {}, {}
    for name, one in members.items():
        advertised[name], said = one.do(participant.advertise, one.site, spec, (), none, os.urandom)
        gathering = _heard(gathering, one, said, clock)
    sharing, items = clock.do(summation.close_cohort, gathering)
    for name, one in members.items():
        shared[name], said = one.do(participant.share, advertised[name], _told(one, items), none, os.urandom)
        sharing = _heard(sharing, one, said, clock)
    masking, items = clock.do(summation.deliver, sharing)
    for name, one in members.items():
        ready[name] = one.do(participant.receive, shared[name], _told(one, items), shared[name].promises)
    return ready, masking


def _open(
    masking: summation.Masking,
    members: Sequence[_Member],
    ready: Mapping[EnvoyName, participant.Ready],
    vectors: Mapping[EnvoyName, Words],
    clock: _Clock,
) -> summation.Opened:
    """Headers, consents, shares: all that comes behind the vectors, among those who sent one."""
    masked, consented = {}, {}
    for one in members:
        name = one.site.name
        digest = Digest(hashlib.sha256(vectors[name].data).hexdigest())
        masked[name], said = one.do(participant.announce, ready[name], digest)
        masking = _heard(masking, one, said, clock)
    consenting, items = clock.do(summation.call_survivors, masking, list(masked))
    for one in members:
        state = masked[one.site.name]
        consented[one.site.name], said = one.do(participant.consent, state, _told(one, items), state.promises)
        consenting = _heard(consenting, one, said, clock)
    unmasking, items = clock.do(summation.reveal, consenting)
    for one in members:
        agreed = consented[one.site.name]
        _, said = one.do(participant.unmask, agreed, _told(one, items), agreed.promises)
        unmasking = _heard(unmasking, one, said, clock)
    return clock.do(summation.open_sum, unmasking)


def _told(member: _Member, items: Mapping[EnvoyName, bytes]) -> bytes:
    item = items[member.site.name]
    member.down += len(item)
    return item


def _heard(state: _S, member: _Member, said: bytes, clock: _Clock) -> _S:
    member.up += len(said)
    started = time.process_time()
    after = summation.take(state, member.site.name, said)
    clock.seconds += time.process_time() - started
    return after


def _send_often(ready: participant.Ready, payload: Vector, repeats: int) -> tuple[float, list[float]]:
    """Extra megabytes of the first pass, CPU seconds of each."""
    resident = _forget_peak()
    seconds = [_timed(lambda: _send(ready, payload), 1)[0]]
    extra = _peak() - resident
    return extra, [*seconds, *_timed(lambda: _send(ready, payload), repeats - 1)]


def _send(ready: participant.Ready, payload: Vector) -> str:
    """The client's pass over the vector: what an envoy does but for the wire."""
    digest = hashlib.sha256()
    for part in participant.stream(ready, payload, NUM_EXAMPLES, (), bytes(32)):
        digest.update(part.data)
    return digest.hexdigest()


def _mask(ready: participant.Ready, payload: Vector) -> None:
    """The same without the digest."""
    for _ in participant.stream(ready, payload, NUM_EXAMPLES, (), bytes(32)):
        pass


def _sent(ready: participant.Ready, payload: Vector) -> Words:
    whole, at = np.empty(ready.words, np.uint32), 0
    for part in participant.stream(ready, payload, NUM_EXAMPLES, (), bytes(32)):
        whole[at : at + part.size] = part
        at += part.size
    return whole


def _primitives(suite: Suite, envoys: int, threshold: int) -> dict[str, float]:
    """What a site's control work is made of; combining is of another secret of the same senders."""
    secret, info = os.urandom(32), b"of one site to another in one sum"
    private, public = key_pair(suite, secret)
    box = seal(suite, public, secret, info)
    shares = dict(enumerate(split(secret, threshold, envoys, os.urandom), 1))
    calls: dict[str, Callable[[], object]] = {
        "key_pair": lambda: key_pair(suite, secret),
        "seal": lambda: seal(suite, public, secret, info),
        "open_box": lambda: open_box(suite, private, box, info),
        "split": lambda: split(secret, threshold, envoys, os.urandom),
        "combine": lambda: combine(shares, threshold),
    }
    return {name: 1e6 * statistics.median(_timed(call, _CALLS)) for name, call in calls.items()}


def _decode(opened: summation.Opened, vectors: Mapping[EnvoyName, Words], mean: Vector) -> None:
    """The director's pass over the vectors: first the tallies, then block by block."""
    start, numbers = opened.cohort.tally_start, cohort.fixed_point(opened.cohort.spec)
    summed = [vectors[name] for name in opened.survivors]
    tail = summed[0][start:].view(np.uint64).copy()
    for vector in summed[1:]:
        tail += vector[start:].view(np.uint64)
    summation.masker(opened, start).apply(tail)
    total_weight = summation.tallies(opened, tail.view(np.uint32)).num_examples
    masker = summation.masker(opened)
    for begin in range(0, mean.size, _BLOCK):
        end = min(begin + _BLOCK, mean.size)
        block = _sum(summed, begin, end)
        masker.apply(block)
        numbers.decode_part(block, begin, total_weight, mean[begin:end])


def _sum(vectors: Sequence[Words], begin: int, end: int) -> Words:
    total = vectors[0][begin:end].copy()
    for vector in vectors[1:]:
        np.add(total, vector[begin:end], out=total)
    return total


def _timed(work: Callable[[], object], repeats: int) -> list[float]:
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return seconds


def _forget_peak() -> float:
    """Resident megabytes now, from which on the peak counts."""
    Path("/proc/self/clear_refs").write_text("5", "ascii")
    return _status("VmRSS")


def _peak() -> float:
    return _status("VmHWM")


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    return float("nan")


def main() -> None:
    """Measure, and print one JSON object."""
    params, envoys, repeats, suite = sys.argv[1:5]
    print(json.dumps(asdict(measure(int(params), int(envoys), int(repeats), Suite(suite)))))  # noqa: T201


if __name__ == "__main__":
    main()
