"""What the director hands to an aggregator that is an envoy: all that was said in one sum, and where the vectors are.

The aggregator takes every statement once more, through the same ``summation`` that a director which aggregates walks,
with the roster that its own site accepted. So what the director left out, put in or changed does not fit: signatures
are the sites', each over one spec and one transcript, and the shares and vectors open to the aggregator alone.

At rest it is canonical JSON, content-addressed like every artifact.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ..errors import (
    ConfigError,
    FederationError,
    IdentityError,
    MalformedMessageError,
    SumRefusedError,
)
from ..identity import check_name
from ..messages import EnvoyName, RunId, TaskKind, TaskRef
from ..roster import Roster
from ..tensors import Digest, canonical_json
from . import summation
from .opened import Opened
from .relayed import open_unmasking
from .spec import SumSpec
from .terms import MAX_COHORT, NoiseTerms, Suite, SumTerms

MAX_CASE_BYTES = 64 << 20
_FORMAT = "fedveil-sum-case/1"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_S = TypeVar("_S", summation.Gathering, summation.Sharing, summation.Masking, summation.Consenting)
_BY_ENVOY = ("adverts", "shares", "headers", "consents", "unmaskings")


@dataclass(frozen=True, slots=True)
class Case:
    """One sum as far as the director took it; every statement as it came."""

    spec: SumSpec
    rules: summation.SumRules
    adverts: Mapping[EnvoyName, bytes] = field(repr=False)
    cohort: tuple[EnvoyName, ...]
    shares: Mapping[EnvoyName, bytes] = field(repr=False)
    headers: Mapping[EnvoyName, bytes] = field(repr=False)
    survivors: tuple[EnvoyName, ...]
    audit_head: bytes = field(repr=False)
    consents: Mapping[EnvoyName, bytes] = field(repr=False)
    unmaskings: Mapping[EnvoyName, bytes] = field(repr=False)  # sealed to the aggregator
    vectors: Mapping[EnvoyName, Digest] = field(repr=False)  # SHA-256 of the sealed stream of each survivor

    def to_bytes(self) -> bytes:
        """As it is kept and fetched."""
        spec, terms, rules = self.spec, self.spec.terms, self.rules
        document: dict[str, object] = {
            "format": _FORMAT,
            "spec": {
                "federation": spec.federation,
                "run": spec.ref.run,
                "round": spec.ref.round,
                "attempt": spec.ref.attempt,
                "plan": spec.ref.plan,
                "kind": spec.kind.value,
                "model": spec.model,
                "layout": spec.layout,
                "codec": spec.codec,
                "sizes": list(spec.sizes),
                "contributors": spec.contributors,
                "orders": spec.orders,
            },
            "terms": {
                "suite": terms.suite.value,
                "bounds": list(terms.bounds),
                "max_weight": terms.max_weight,
                "equal_weights": terms.equal_weights,
                "aggregator": terms.aggregator,
                "histogram": terms.histogram,
                "noise": None if terms.noise is None else terms.noise.to_json(),
            },
            "rules": [rules.colluding, rules.honest, rules.min_organizations],
            "cohort": list(self.cohort),
            "survivors": list(self.survivors),
            "audit_head": self.audit_head.hex(),
            "vectors": dict(self.vectors),
        }
        for name in _BY_ENVOY:
            said: Mapping[EnvoyName, bytes] = getattr(self, name)
            document[name] = {envoy: base64.b64encode(content).decode() for envoy, content in said.items()}
        return canonical_json(document)

    @classmethod
    def from_bytes(cls, raw: bytes) -> Case:
        """Read what ``to_bytes`` wrote. Nothing that was said is looked at.

        Raises:
            MalformedMessageError: it is no case, or of another version.
        """
        if len(raw) > MAX_CASE_BYTES:
            raise MalformedMessageError(f"a case of {len(raw)} bytes, expected at most {MAX_CASE_BYTES}")
        try:
            document = json.loads(raw)
            if document["format"] != _FORMAT:
                raise MalformedMessageError(f"a case of another version; this software reads {_FORMAT}")
            said = {name: {_envoy(by): _bytes(text) for by, text in _few(document[name])} for name in _BY_ENVOY}
            return cls(
                spec=_spec(document["spec"], document["terms"]),
                rules=summation.SumRules(*map(_whole, document["rules"])),
                cohort=_envoys(document["cohort"]),
                survivors=_envoys(document["survivors"]),
                audit_head=bytes.fromhex(document["audit_head"]),
                vectors={_envoy(envoy): _digest(digest) for envoy, digest in _few(document["vectors"])},
                **said,
            )
        except (ConfigError, IdentityError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise MalformedMessageError("not a case of a secure sum") from error


@dataclass(frozen=True, slots=True)
class Tried:
    """A case that holds."""

    opened: Opened
    announced: Mapping[EnvoyName, Digest]  # of the masked vectors, in clear, as their sites signed them
    spoilt: Mapping[EnvoyName, str]  # who revealed what it should not have, and why; the sum opens without


def tried(case: Case, me: EnvoyName, roster: Roster, key: X25519PrivateKey) -> Tried:
    """Take everything that was said once more, and rebuild what unmasks the sum.

    Args:
        case: from the director.
        me: the aggregator.
        roster: that its own site accepted.
        key: ``relayed.opening_key`` of its identity.

    Raises:
        SumRefusedError: it is not for this aggregator, not of its federation, or a statement is not its site's.
        SumAbortedError: too few revealed what they should; a ``BadShareError`` names who dealt something else.
        MalformedMessageError, ProtocolError: what is in it does not follow, one from the other.
    """
    spec = case.spec
    if spec.terms.aggregator != me:
        raise SumRefusedError(f"{spec.ref} is summed by {spec.terms.aggregator or 'the director'}, not by {me}")
    if spec.federation != roster.federation:
        raise SumRefusedError(f"{spec.ref} is of {spec.federation}, and {me} of {roster.federation}")
    rules = case.rules
    gathering = summation.begin(spec, roster, rules.colluding, rules.honest, rules.min_organizations)
    sharing, _ = summation.close_cohort(_all(gathering, case.adverts), case.cohort)
    masking, _ = summation.deliver(_all(sharing, case.shares))
    masking = _all(masking, case.headers)
    if set(case.vectors) != set(case.survivors) or not set(case.survivors) <= masking.heard.keys():
        raise SumRefusedError(f"{spec.ref}: the vectors are not those of the {len(case.survivors)} survivors")
    consenting, _ = summation.call_survivors(masking, case.survivors, case.audit_head)
    revealing, _ = summation.reveal(_all(consenting, case.consents))
    spoilt: dict[EnvoyName, str] = {}
    for by, box in sorted(case.unmaskings.items()):
        try:
            revealing = summation.take(revealing, by, open_unmasking(revealing.cohort, by, box, key))
        except FederationError as error:
            spoilt[by] = str(error)
    return Tried(summation.open_sum(revealing), masking.announced, spoilt)


def _all(stage: _S, said: Mapping[EnvoyName, bytes]) -> _S:
    for by, content in sorted(said.items()):
        stage = summation.take(stage, by, content)
    return stage


def _spec(spec: dict[str, Any], terms: dict[str, Any]) -> SumSpec:
    return SumSpec(
        federation=check_name("federation", spec["federation"]),
        ref=TaskRef(
            RunId(check_name("run", spec["run"])), _whole(spec["round"]), _whole(spec["attempt"]), _digest(spec["plan"])
        ),
        kind=TaskKind(spec["kind"]),
        model=_digest(spec["model"]),
        layout=_digest(spec["layout"]),
        codec=None if spec["codec"] is None else _digest(spec["codec"]),
        sizes=tuple(map(_whole, spec["sizes"])),
        contributors=_whole(spec["contributors"]),
        terms=SumTerms(
            suite=Suite(terms["suite"]),
            bounds=tuple(float(bound) for bound in terms["bounds"]),
            max_weight=_whole(terms["max_weight"]),
            equal_weights=terms["equal_weights"] is True,
            aggregator=check_name("aggregator", terms["aggregator"]),
            histogram=terms["histogram"] is True,
            noise=NoiseTerms.from_json(terms.get("noise")),
        ),
        orders=_digest(spec["orders"]) if spec["orders"] else "",
    )


def _few(said: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    if len(said) > MAX_COHORT:
        raise MalformedMessageError(f"{len(said)} envoys in one sum, expected {MAX_COHORT} at most")
    return said.items()


def _envoys(names: list[str]) -> tuple[EnvoyName, ...]:
    if len(names) > MAX_COHORT:
        raise MalformedMessageError(f"{len(names)} envoys in one sum, expected {MAX_COHORT} at most")
    return tuple(map(_envoy, names))


def _envoy(name: str) -> EnvoyName:
    return EnvoyName(check_name("envoy", name))


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _whole(number: object) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ValueError("no whole number")
    return number


def _digest(text: str) -> Digest:
    if not _DIGEST.fullmatch(text):
        raise ValueError("no SHA-256")
    return Digest(text)
