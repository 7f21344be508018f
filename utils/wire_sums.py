"""What envoys and the director say of a secure sum and of the roster, as bytes.

The content of an item or a statement is opaque here: ``secure_sum/encoding.py`` reads it, by its own limits.
"""

from __future__ import annotations

from typing import Final

from ..protos import federation_pb2 as pb
from . import messages as m
from . import wire_fields as field
from .errors import ConfigError, MalformedMessageError
from .secure_sum.terms import NoiseTerms, Suite, SumTerms

_MAX_CONTENT: Final = m.MAX_PART_BYTES
_MAX_MEMBERS = 10_000
_KEY_BYTES = 32


def terms_to_pb(terms: SumTerms) -> pb.SumTerms:
    """The terms of a secure sum, for a task."""
    return pb.SumTerms(
        suite=terms.suite.value,
        bounds=terms.bounds,
        max_weight=terms.max_weight,
        equal_weights=terms.equal_weights,
        aggregator=terms.aggregator,
        histogram=terms.histogram,
        group=terms.group,
        noise=None if terms.noise is None else pb.SumNoise(**terms.noise.to_json()),
    )


def terms_from_pb(terms: pb.SumTerms) -> SumTerms:
    """The terms of a secure sum, of a task."""
    try:
        return SumTerms(
            suite=Suite(terms.suite),
            bounds=tuple(terms.bounds),
            max_weight=terms.max_weight,
            equal_weights=terms.equal_weights,
            aggregator=terms.aggregator,
            histogram=terms.histogram,
            group=terms.group,
            noise=_noise_from_pb(terms.noise) if terms.HasField("noise") else None,
        )
    except ConfigError as error:
        raise MalformedMessageError(f"the terms of a secure sum: {error}") from error
    except ValueError as error:
        raise MalformedMessageError(
            f"an unknown suite of a secure sum ({terms.suite[:80]!r}); the other side may be newer"
        ) from error


def sum_item_to_pb(item: m.SumItem) -> pb.SumItem:
    """What goes down, for a work item."""
    return pb.SumItem(ref=field.ref_to_wire(item.ref), content=item.content)


def sum_item_from_pb(item: pb.SumItem) -> m.SumItem:
    """What goes down, of a work item."""
    return m.SumItem(field.ref_from_wire(item.ref), _content(item.content))


def statement_to_wire(statement: m.SumStatement) -> bytes:
    """What goes up."""
    return pb.SumStatement(ref=field.ref_to_wire(statement.ref), content=statement.content).SerializeToString()


def statement_from_wire(raw: bytes) -> m.SumStatement:
    """What goes up."""
    statement = field.parse(pb.SumStatement, raw)
    return m.SumStatement(field.ref_from_wire(statement.ref), _content(statement.content))


def sum_reply_to_wire(reply: m.SumReply) -> bytes:
    """The answer to what goes up."""
    return pb.SumReply(content=reply.content).SerializeToString()


def sum_reply_from_wire(raw: bytes) -> m.SumReply:
    """The answer to what goes up."""
    return m.SumReply(_content(field.parse(pb.SumReply, raw).content, least=0))


def roster_request_to_wire(_: m.RosterRequest) -> bytes:
    """Asks who is in the federation."""
    return b""


def roster_request_from_wire(raw: bytes) -> m.RosterRequest:
    """Asks who is in the federation."""
    field.parse(pb.RosterRequest, raw)
    return m.RosterRequest()


def roster_reply_to_wire(reply: m.RosterReply) -> bytes:
    """Who is in the federation."""
    members = [
        pb.RosterMember(name=one.name, organization=one.organization, identity_key=one.identity_key)
        for one in reply.members
    ]
    return pb.RosterReply(federation=reply.federation, members=members).SerializeToString()


def roster_reply_from_wire(raw: bytes) -> m.RosterReply:
    """Who is in the federation; each name once."""
    reply = field.parse(pb.RosterReply, raw)
    if len(reply.members) > _MAX_MEMBERS or len({one.name for one in reply.members}) != len(reply.members):
        raise MalformedMessageError(f"a roster of {len(reply.members)} members, too many or one of them twice")
    return m.RosterReply(field.name(reply.federation, "a federation"), tuple(map(_member, reply.members)))


def sum_view_to_pb(view: m.SumView) -> pb.SumView:
    """What a secure sum left, for a round."""
    return pb.SumView(
        survivors=view.survivors,
        cohort=view.cohort,
        threshold=view.threshold,
        total_weight=view.total_weight,
        transcript=field.digest_bytes(view.transcript),
    )


def sum_view_from_pb(view: pb.SumView) -> m.SumView:
    """What a secure sum left, of a round."""
    return m.SumView(
        survivors=tuple(m.EnvoyName(field.name(one, "a survivor")) for one in view.survivors),
        cohort=view.cohort,
        threshold=view.threshold,
        total_weight=view.total_weight,
        transcript=field.digest(view.transcript, "a transcript"),
    )


def _noise_from_pb(noise: pb.SumNoise) -> NoiseTerms:
    return NoiseTerms(noise.max_norm, noise.noise_multiplier, noise.parts)


def _member(member: pb.RosterMember) -> m.RosterMember:
    if len(member.identity_key) != _KEY_BYTES:
        raise MalformedMessageError(f"an identity key of {len(member.identity_key)} bytes, expected {_KEY_BYTES}")
    name = m.EnvoyName(field.name(member.name, "an envoy of the roster"))
    return m.RosterMember(name, field.line(member.organization, "an organization"), member.identity_key)


def _content(content: bytes, least: int = 1) -> bytes:
    if not least <= len(content) <= _MAX_CONTENT:
        raise MalformedMessageError(
            f"{len(content)} bytes of a secure sum in one message, expected {least} to {_MAX_CONTENT}"
        )
    return content
