"""Over real sockets: what is proposed reaches the sites it asks; what is not signed as it should be is refused."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from fedveil.director.operator_identity import load_operator_identity
from fedveil.utils import messages as m
from fedveil.utils import wire_control as control
from fedveil.utils.certificates import certificate_pem, issue_identity
from fedveil.utils.errors import ConfigError, IdentityError, NotAuthorizedError, ProtocolError
from fedveil.utils.identity import PeerId, Role
from fedveil.utils.proposal import read_proposal, sign

SETTINGS = """
name = "toy"
secure_aggregation = "off"
[study]
purpose = "a test"
sites = [{sites}]
[rounds]
max_rounds = 1
min_participants = 1
final_evaluation = false
"""


def submit(federation, text: str = SETTINGS.format(sites="")) -> m.RunId:
    with federation.operator() as operator:
        return operator.submit(text, federation.bundle)


def say(federation, submission: m.Submission) -> m.SubmitReply:
    with federation.operator() as operator:
        return control.submit_reply_from_wire(operator._ask("Submit", control.submission_to_wire(submission)))


def good(federation, text: str = SETTINGS.format(sites="")) -> m.Submission:
    """What an operator sends, once no blob of it misses."""
    submit(federation)
    with federation.operator() as operator:
        proposal = operator._propose(text, federation.bundle.manifest)
    return m.Submission(text, federation.bundle.manifest.to_json(), proposal)


def test_what_is_queued_is_proposed_at_once_to_the_sites_that_it_asks_and_to_no_other(federation):
    asked, other = federation.attending("site-a", "site-b")
    run = submit(federation, SETTINGS.format(sites='"site-a"'))
    offer, task = asked.offer(), asked.task()
    proposal = read_proposal(offer.proposal, federation.root, time.time())
    assert (offer.run, proposal.sites, proposal.purpose) == (run, ("site-a",), "a test")
    assert (task.proposal, task.cohort) == (proposal.digest, ("site-a",))
    asked.send(task, 1.0)
    view = federation.finished(run)
    assert (view.state, view.proposal) == ("finished", proposal.digest)
    assert other.items.queue == type(other.items.queue)([m.Idle()])


def test_a_site_that_comes_later_is_offered_what_is_queued_and_what_it_approved_it_is_not(federation):
    run = federation.submit(quorum=2)
    (late,) = federation.attending("site-a")
    offer = late.offer()
    digest = read_proposal(offer.proposal, federation.root, time.time()).digest
    assert offer.run == run
    late.client.beat(m.Heartbeat(approved=(digest,)))
    with federation.operator() as operator:
        assert operator.show(run).approved_by == ("site-a",)
        late.client.beat(m.Heartbeat())
        assert operator.show(run).approved_by == ()


def test_a_site_that_polls_is_offered_it_once_and_then_waits_as_ever(federation):
    federation.submit(quorum=2)
    client = federation.puppet("site-a").client
    assert isinstance(client.next_work((), 5.0), m.Offer)
    began = time.monotonic()
    assert client.next_work((), 0.3) == m.Idle()
    assert time.monotonic() - began > 0.2


@pytest.mark.parametrize(
    ("change", "refusal", "words"),
    [
        (lambda one: replace(one, proposal=None), ConfigError, "comes with a signed proposal"),
        (
            lambda one: replace(one, settings=one.settings.replace("max_rounds = 1", "max_rounds = 2")),
            ProtocolError,
            "in settings, max_rounds",
        ),
        (
            lambda one: replace(
                one, proposal=replace(one.proposal, content=one.proposal.content.replace(b"a test", b"a text"))
            ),
            IdentityError,
            "does not fit the text",
        ),
        (lambda one: replace(one, proposal=replace(one.proposal, chain=b"")), IdentityError, "certificate"),
    ],
)
def test_a_submission_whose_proposal_was_tampered_with_is_refused(federation, change, refusal, words):
    submission = good(federation)
    with pytest.raises(refusal, match=words):
        say(federation, change(submission))
    with federation.operator() as operator:
        assert len(operator.list()) == 1


def test_a_proposal_is_good_for_one_run(federation):
    submission = good(federation)
    run = say(federation, submission).run
    with pytest.raises(ProtocolError, match=f"submitted before, as {run}; submit the experiment anew"):
        say(federation, submission)


def test_a_site_proposes_nothing_and_no_operator_in_the_name_of_another(federation):
    submission = good(federation)
    _, key, _ = load_operator_identity(federation.folder, time.time())
    proposal = read_proposal(submission.proposal, federation.root, time.time())
    for role, refusal in ((Role.ENVOY, NotAuthorizedError), (Role.OPERATOR, IdentityError)):
        peer = PeerId("lungs", role, "mallory")
        identity = issue_identity(federation.issuer, key.public_key(), peer, time.time())
        chain = certificate_pem(identity, federation.issuer.certificate)
        signed = sign(replace(proposal, proposed_by=peer), key, chain)
        with pytest.raises(refusal):
            say(federation, replace(submission, proposal=signed))


def test_an_experiment_without_a_purpose_is_refused_before_anything_is_sent(federation):
    text = SETTINGS.replace('[study]\npurpose = "a test"\nsites = [{sites}]\n', "")
    with pytest.raises(ConfigError, match=r"\[study\] is missing"):
        submit(federation, text)
    with federation.operator() as operator:
        assert operator.list() == ()
