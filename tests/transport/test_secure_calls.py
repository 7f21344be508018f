"""Who may speak in a secure sum over the wire, and what comes of words that belong to none."""

from __future__ import annotations

import grpc
import pytest
from fedveil.utils import messages as m
from fedveil.utils import transport, wire_sums
from fedveil.utils.errors import MalformedMessageError, NotAuthorizedError, ProtocolError, WrongRoundError
from fedveil.utils.identity import Role

REF = m.TaskRef(m.RunId("toy-1"), 1, 1, "ab" * 32)
WORD = m.SumStatement(REF, b"a word")


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.JOIN])
def test_only_envoys_speak_in_a_secure_sum(federation, role: Role):
    caller = federation.puppet("someone", federation.certificate(role, "someone"))
    with pytest.raises(NotAuthorizedError, match="may not do this"):
        caller.client.tell_sum(WORD)


def test_a_word_in_a_sum_that_is_not_open_is_refused_and_the_line_stands(federation):
    (site,) = federation.attending("site-a")
    with pytest.raises(WrongRoundError, match="no round is open"):
        site.client.tell_sum(WORD)
    federation.submit()
    task = site.task()
    with pytest.raises(ProtocolError, match="has no secure sum"):  # this run is in the clear
        site.client.tell_sum(m.SumStatement(task.ref, b"a word"))
    with pytest.raises(WrongRoundError):
        site.client.tell_sum(WORD)
    site.send(task, 1.0)


def test_bytes_that_are_no_statement_are_malformed(federation):
    tls = federation.certificate(name="site-a")
    channel = transport.open_channel(federation.address, tls.chain, tls.key, tls.root)
    tell = channel.unary_unary(f"/{transport.FEDERATION}/TellSum")
    for raw in (b"", b"\xff" * 40, wire_sums.statement_to_wire(m.SumStatement(REF, b""))):
        with pytest.raises(grpc.RpcError) as failed:
            tell(raw, timeout=60.0)
        assert isinstance(transport.error_of(failed.value), MalformedMessageError)
    channel.close()
