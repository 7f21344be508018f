"""Nothing runs that the data manager did not approve, and no more of it: any other task is refused."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedveil.envoy.approval_guard import ApprovalGuard
from fedveil.envoy.approval_store import APPROVALS_FILE, ApprovalStore
from fedveil.envoy.approvals import MAX_ATTEMPTS, MAX_UNDECIDED, Decision, Limits, State, Word, limits_for
from fedveil.envoy.audit import SiteAudit
from fedveil.envoy.config import ApprovalSettings, Asking
from fedveil.envoy.steering import Change, SteeringPolicy
from fedveil.utils import messages as m
from fedveil.utils.certificates import certificate_pem, issue_identity, make_issuer, make_root, public_bytes
from fedveil.utils.data_spec import DataKind, DataSpec
from fedveil.utils.errors import (
    ConfigError,
    FederationError,
    IdentityError,
    MalformedMessageError,
    NotApprovedError,
    NotAuthorizedError,
    PlanError,
    StorageError,
    VetoedError,
)
from fedveil.utils.identity import PeerId, Role
from fedveil.utils.messages import AskedProtection, EnvoyName, RunId
from fedveil.utils.plan_bundle import Manifest, PlanFile, PlanKind
from fedveil.utils.proposal import Output, Patch, Proposal, Step, sign
from fedveil.utils.recipe import Choice, Recipe
from fedveil.utils.secure_sum.terms import NoiseTerms, SumTerms
from fedveil.utils.signed_document import SignedDocument
from fedveil.utils.tensors import Digest, Layout
from fedveil.utils.tensors import Role as TensorRole
from hypothesis import given
from hypothesis import strategies as st

NOW = 1_700_000_000.0
DAY = 86400.0
ROOT = make_root("lungs", NOW)
ISSUER = make_issuer(ROOT, "lungs", NOW)
OPERATOR = PeerId("lungs", Role.OPERATOR, "alice")
KEY, SITE_KEY = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
SITE = EnvoyName("site-a")
PLAN, OTHER = Digest("ab" * 32), Digest("cd" * 32)
PROPOSAL = Proposal(
    federation="lungs",
    study="pneumonia",
    plan=PLAN,
    settings=OTHER,
    purpose="detect pneumonia",
    legal_basis="permit 12",
    max_rounds=3,
    is_secure=True,
    aggregator="director",
    codec=None,
    asked=AskedProtection(1.0, 0.5),
    sites=(SITE, EnvoyName("site-b"), EnvoyName("site-c")),
    outputs=(Output.MODEL,),
    proposed_by=OPERATOR,
    proposed_at=NOW,
    expires_at=NOW + 30 * DAY,
)
RUN = RunId("pneumonia-1")
TASK = m.Task(
    ref=m.TaskRef(RUN, 1, 1, PLAN),
    kind=m.TaskKind.TRAIN,
    model=OTHER,
    model_bytes=100,
    layout=OTHER,
    seed=bytes(32),
    seconds_left=60.0,
    min_participants=2,
    cohort=(SITE, EnvoyName("site-b")),
    asked=AskedProtection(1.0, 0.5),
    sum=SumTerms(),
    proposal=PROPOSAL.digest,
)
PATCH = Patch(
    run=RUN,
    proposal=PROPOSAL.digest,
    number=1,
    step=Step.SET,
    settings={"learning_rate": 0.01, "local_epochs": 2},
    sites=None,
    stop={},
    to_round=None,
    reason="",
    signed_by=OPERATOR,
    signed_at=NOW,
)
MANIFEST = SimpleNamespace(data=SimpleNamespace(kind=DataKind.IMAGES, name="x-rays"), privacy=None)


def chain_of(peer=OPERATOR, key=KEY, issuer=ISSUER):
    return certificate_pem(issue_identity(issuer, key.public_key(), peer, NOW), issuer.certificate)


def signed(text, peer=OPERATOR, key=KEY, issuer=ISSUER):
    return sign(text, key, chain_of(peer, key, issuer))


class Log:
    """Remembers; or has no room."""

    def __init__(self):
        self.said, self.is_full = [], False

    def __getattr__(self, name):
        def say(*words):
            if self.is_full:
                raise StorageError("the disk is full")
            self.said.append((name, *words))

        return say


@dataclass
class SiteWithApprovals:
    folder: object
    now: float = NOW + 1
    steering: SteeringPolicy = SteeringPolicy()  # noqa: RUF009 - frozen
    allows: object = staticmethod(lambda *_: False)

    def __post_init__(self):
        self.log = Log()
        self.start()

    def start(self):
        self.store = ApprovalStore(self.folder, public_bytes(SITE_KEY.public_key()), SITE_KEY.sign)
        self.guard = ApprovalGuard(
            SITE, "lungs", ROOT.certificate, self.store, self.steering, self.log, lambda: self.now, self.allows
        )

    def restart(self):
        self.store.close()
        self.start()

    def offer(self, proposal=PROPOSAL, run=RUN, **by):
        return self.guard.offer(m.Offer(run, signed(proposal, **by)))

    def approve(self, proposal=PROPOSAL, **wish):
        limits = limits_for(proposal, "x-rays", **wish)
        self.store.decide(Decision(proposal.digest, Word.APPROVED, limits, "ada", self.now))

    def reject(self, proposal=PROPOSAL, reason="no"):
        self.store.decide(Decision(proposal.digest, Word.REJECTED, None, "ada", self.now, reason))

    def do(self, task=TASK, manifest=MANIFEST):
        """As a session does it: admit, then begin."""
        admission = self.guard.admit(task)
        self.guard.begin(task, admission, manifest)
        return admission

    def state(self):
        return self.store.books().standings[PROPOSAL.digest].state(self.now)


@pytest.fixture
def site(tmp_path):
    made = SiteWithApprovals(tmp_path)
    yield made
    made.guard.close()


@pytest.fixture
def approved(site):
    site.offer()
    site.approve()
    return site


def round_(number, **changes):
    return replace(TASK, ref=replace(TASK.ref, round=number), **changes)


# what is offered


def test_an_offer_is_kept_and_nothing_of_it_runs(site):
    assert site.offer() == PROPOSAL
    assert site.state() is State.OFFERED
    assert site.guard.approved() == ()
    with pytest.raises(NotApprovedError, match="waits for the decision of this site's data manager"):
        site.do()
    assert site.log.said == [("offered", RUN, PROPOSAL.digest, PLAN, OPERATOR)]


def test_an_offer_that_is_replayed_changes_nothing(approved):
    assert approved.offer() is None
    assert approved.offer(run=RunId("another-1")) is None
    assert approved.state() is State.APPROVED
    approved.reject()
    assert approved.offer() is None
    assert approved.state() is State.REJECTED


@given(st.data())
def test_an_offer_with_any_changed_byte_is_not_kept(tmp_path_factory, data):
    whole = signed(PROPOSAL)
    raw = bytearray(whole.content + whole.signature)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    cut = len(whole.content)
    site = SiteWithApprovals(tmp_path_factory.mktemp("site"))
    with pytest.raises(FederationError):
        site.guard.offer(m.Offer(RUN, SignedDocument(bytes(raw[:cut]), bytes(raw[cut:]), whole.chain)))
    assert site.store.books().standings == {}
    site.guard.close()


ELSEWHERE = make_root("lungs", NOW)
ENVOY = PeerId("lungs", Role.ENVOY, "alice")


@pytest.mark.parametrize(
    ("changes", "by", "error"),
    [
        ({}, {"issuer": make_issuer(ELSEWHERE, "lungs", NOW)}, IdentityError),
        ({"proposed_by": ENVOY}, {"peer": ENVOY}, NotAuthorizedError),
        ({}, {"peer": PeerId("lungs", Role.OPERATOR, "mallory")}, IdentityError),
        ({"federation": "hearts"}, {}, IdentityError),
        ({"sites": (EnvoyName("site-b"),)}, {}, MalformedMessageError),
        ({"expires_at": NOW + 0.5}, {}, NotApprovedError),
    ],
)
def test_an_offer_of_another_signer_federation_site_or_time_is_not_kept(site, changes, by, error):
    with pytest.raises(error):
        site.offer(replace(PROPOSAL, **changes), **by)
    assert site.store.books().standings == {}
    assert site.log.said == []


def test_an_offer_that_is_too_large_is_not_kept(site):
    with pytest.raises(MalformedMessageError, match="bytes, expected at most"):
        site.guard.offer(m.Offer(RUN, SignedDocument(b" " * (1 << 20), bytes(64), b"")))


def test_a_flood_of_offers_fills_no_disk(site):
    for number in range(MAX_UNDECIDED):
        site.offer(replace(PROPOSAL, study=f"study-{number}"))
    with pytest.raises(NotApprovedError, match="wait for a decision"):
        site.offer(PROPOSAL)
    assert len(site.store.books().standings) == MAX_UNDECIDED


def test_an_offer_that_cannot_be_logged_is_not_kept(site):
    site.log.is_full = True
    with pytest.raises(StorageError):
        site.offer()
    assert site.store.books().standings == {}


def test_more_approvals_than_a_heartbeat_holds_leave_the_newest_in_it(site, monkeypatch):
    monkeypatch.setattr("fedveil.envoy.approval_guard.m.MAX_APPROVED", 2)
    made = [replace(PROPOSAL, study=f"study-{number}") for number in range(4)]
    for one in made:
        site.now += 1
        site.offer(one)
        site.approve(one)
    assert site.guard.approved() == tuple(sorted(one.digest for one in made[2:]))
    site.guard.admit(replace(TASK, proposal=made[0].digest))


# what is approved


def test_what_was_approved_runs_and_is_told(approved):
    assert approved.guard.approved() == (PROPOSAL.digest,)
    assert approved.do().settings == {}


def test_a_decision_of_another_process_holds_at_the_next_task(site):
    site.offer()
    other = ApprovalStore(site.folder, public_bytes(SITE_KEY.public_key()), SITE_KEY.sign)
    other.decide(Decision(PROPOSAL.digest, Word.APPROVED, limits_for(PROPOSAL, "x-rays"), "ada", NOW))
    site.do()
    other.decide(Decision(PROPOSAL.digest, Word.REJECTED, None, "ada", NOW, "changed my mind"))
    other.close()
    assert site.guard.approved() == ()
    with pytest.raises(NotApprovedError, match="does not approve"):
        site.do()


def test_the_latest_decision_counts_also_after_a_restart(approved):
    approved.reject()
    approved.approve()
    approved.restart()
    assert approved.guard.approved() == (PROPOSAL.digest,)
    approved.reject(reason="no more")
    approved.restart()
    assert approved.guard.approved() == ()


def test_a_decision_that_cannot_be_logged_is_not_made(site):
    site.offer()

    def full():
        raise StorageError("the disk is full")

    decision = Decision(PROPOSAL.digest, Word.APPROVED, limits_for(PROPOSAL, "x-rays"), "ada", NOW)
    with pytest.raises(StorageError, match="full"):
        site.store.decide(decision, full)
    assert site.state() is State.OFFERED
    site.restart()
    assert site.state() is State.OFFERED


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"rounds": 4}, "no more than 3 are proposed"),
        ({"rounds": 0}, "at least 1"),
        ({"until": NOW + 31 * DAY}, "the proposal itself ends"),
        ({"datasets": ("ct",)}, "the plan reads data set x-rays"),
        ({"epsilon": 0.0}, "above 0"),
    ],
)
def test_limits_are_never_looser_than_what_is_proposed(wish, words):
    with pytest.raises(ConfigError, match=words):
        limits_for(PROPOSAL, "x-rays", **wish)


def test_approvals_that_were_put_back_to_before_a_rejection_do_not_count_until_somebody_approves_anew(tmp_path):
    peer = PeerId("lungs", Role.ENVOY, SITE)

    def opened():
        log = SiteAudit.open(tmp_path, peer, SITE_KEY, clock=lambda: NOW)
        store = ApprovalStore(tmp_path, public_bytes(SITE_KEY.public_key()), SITE_KEY.sign)
        guard = ApprovalGuard(
            SITE, "lungs", ROOT.certificate, store, SteeringPolicy(), log, lambda: NOW + 1, taken_back=log.taken_back
        )
        return log, store, guard

    def approve(log, store):
        limits = limits_for(PROPOSAL, "x-rays")
        decision = Decision(PROPOSAL.digest, Word.APPROVED, limits, "ada", NOW + len(log.taken_back))
        store.decide(decision, lambda: log.approved(PROPOSAL.digest, PLAN, limits.to_document(), "ada"))

    def end(log, guard):
        guard.close()
        log.close()

    log, store, guard = opened()
    guard.offer(m.Offer(RUN, signed(PROPOSAL)))
    approve(log, store)
    assert log.taken_back == frozenset()
    end(log, guard)
    before = (tmp_path / APPROVALS_FILE).read_bytes()
    log, store, guard = opened()
    guard.admit(TASK)
    guard.veto([PROPOSAL.digest], "pneumonia-1", "no", "ada")
    end(log, guard)
    (tmp_path / APPROVALS_FILE).write_bytes(before)
    log, store, guard = opened()
    assert store.books().standings[PROPOSAL.digest].limits is not None
    assert guard.approved() == ()
    with pytest.raises(NotApprovedError, match="was taken back at this site"):
        guard.admit(TASK)
    approve(log, store)
    assert guard.approved() == (PROPOSAL.digest,)
    guard.admit(TASK)
    end(log, guard)


# a task is exactly what was approved


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ref": m.TaskRef(RUN, 1, 1, OTHER)}, "approved was plan"),
        ({"codec": OTHER}, "approved was codec none"),
        ({"sum": None}, "approved was answers in a secure sum, the task has in the clear"),
        ({"sum": SumTerms(aggregator="site-b")}, "approved was aggregator director, the task has envoy:site-b"),
        ({"asked": AskedProtection()}, "less protection"),
        ({"asked": AskedProtection(1.0, 0.4)}, "less protection"),
        ({"asked": AskedProtection(2.0, 0.5)}, "less protection"),
        ({"cohort": (SITE, EnvoyName("site-x"))}, "asks site-x, and the proposal names other sites"),
        ({"proposal": None}, "names no proposal"),
        ({"proposal": OTHER}, "was never offered to this site"),
    ],
)
@pytest.mark.parametrize("kind", m.TaskKind)
def test_a_task_that_is_not_what_was_approved_is_refused(approved, changes, words, kind):
    with pytest.raises(NotApprovedError, match=words):
        approved.do(replace(TASK, kind=kind, **changes))


@pytest.mark.parametrize("kind", m.TaskKind)
def test_a_sum_with_less_noise_than_was_approved_is_refused(site, kind):
    proposal = replace(PROPOSAL, sum_noise=1.0)
    site.offer(proposal)
    site.approve(proposal)

    def summed(noise):
        bounds = (8.0,) if noise is None else (noise.bound,)
        terms = SumTerms(bounds=bounds, max_weight=1, equal_weights=True, noise=noise)
        return replace(TASK, kind=kind, proposal=proposal.digest, sum=terms)

    for noise in (None, NoiseTerms(1.0, 0.9, 3)):
        with pytest.raises(NotApprovedError, match="a sum with less noise than was approved"):
            site.guard.admit(summed(noise))
    for multiplier in (1.0, 1.5):
        site.guard.admit(summed(NoiseTerms(1.0, multiplier, 3)))


def test_more_protection_than_was_approved_is_taken(approved):
    approved.do(replace(TASK, asked=AskedProtection(0.5, 0.7)))


def test_a_data_set_that_was_not_approved_is_not_read(approved):
    other = SimpleNamespace(data=SimpleNamespace(kind=DataKind.IMAGES, name="ct"), privacy=None)
    with pytest.raises(NotApprovedError, match="a data set that was not approved"):
        approved.do(manifest=other)


def test_after_its_day_an_approval_is_over(site):
    site.offer()
    site.approve(until=NOW + DAY)
    site.do()
    site.now = NOW + DAY + 1
    assert site.state() is State.EXPIRED
    assert site.guard.approved() == ()
    with pytest.raises(NotApprovedError, match="expired at this site"):
        site.do(round_(2))


def test_a_run_that_was_begun_under_one_proposal_is_not_gone_on_with_under_another(approved):
    approved.do()
    other = replace(PROPOSAL, purpose="something else")
    approved.offer(other)
    approved.approve(other)
    with pytest.raises(NotApprovedError, match=r"run pneumonia-1 was begun here under proposal .* comes with another"):
        approved.do(round_(2, proposal=other.digest))
    approved.do(replace(TASK, ref=replace(TASK.ref, run=RunId("pneumonia-2")), proposal=other.digest))
    approved.do(round_(2))


# rounds


def test_an_approval_that_runs_out_is_logged_once(approved):
    expired = ("expired", PROPOSAL.digest)
    assert approved.guard.approved() == (PROPOSAL.digest,)
    approved.now = PROPOSAL.expires_at + 1
    approved.log.is_full = True
    assert approved.guard.approved() == ()
    approved.log.is_full = False
    for _ in range(3):
        assert approved.guard.approved() == ()
    assert approved.log.said.count(expired) == 1


def test_no_round_beyond_those_approved_is_begun_over_all_runs(site):
    site.offer()
    site.approve(rounds=2)
    site.do()
    site.do(replace(TASK, ref=replace(TASK.ref, run=RunId("pneumonia-2"))))
    assert site.state() is State.USED_UP
    with pytest.raises(NotApprovedError, match=r"approved 2 rounds of proposal .* and 2 were begun"):
        site.do(round_(2))


def test_another_attempt_of_a_round_is_the_same_round_and_another_model_under_its_number_is_not(site):
    site.offer()
    site.approve(rounds=2)
    site.do()
    site.do(replace(TASK, ref=replace(TASK.ref, attempt=2)))
    site.do(replace(TASK, model=PLAN))
    with pytest.raises(NotApprovedError):
        site.do(replace(TASK, seed=bytes(31) + b"1"))
    site.do(replace(TASK, ref=replace(TASK.ref, attempt=3)))


def test_attempts_of_a_round_have_an_end_and_count_as_one_round(site):
    site.offer()
    site.approve(rounds=2)

    def attempt(number, round_number=1):
        ref = replace(TASK.ref, round=round_number, attempt=number)
        return site.do(replace(TASK, ref=ref))

    for number in range(1, MAX_ATTEMPTS + 1):
        attempt(number)
        attempt(number)  # the very same one again is counted once
    site.restart()
    with pytest.raises(NotApprovedError, match=f"round 1 of pneumonia-1 was begun {MAX_ATTEMPTS} times"):
        attempt(MAX_ATTEMPTS + 1)
    attempt(MAX_ATTEMPTS)
    assert site.store.books().standings[PROPOSAL.digest].rounds_done() == 1
    attempt(1, round_number=2)
    with pytest.raises(NotApprovedError, match="approved 2 rounds"):
        attempt(1, round_number=3)


def test_evaluations_are_counted_apart(site):
    site.offer()
    site.approve(rounds=1)
    site.do()
    site.do(round_(2, kind=m.TaskKind.EVALUATE))
    with pytest.raises(NotApprovedError, match="approved 1 evaluations"):
        site.do(round_(3, kind=m.TaskKind.EVALUATE))


def test_a_round_is_spent_when_it_begins_whatever_becomes_of_it(site):
    site.offer()
    site.approve(rounds=1)
    site.do()
    site.restart()  # killed before anything was trained
    with pytest.raises(NotApprovedError):
        site.do(round_(2))


# patches


def patched(*patches, number=1, **changes):
    documents = tuple(one if isinstance(one, SignedDocument) else signed(one) for one in patches)
    return round_(number, patches=documents, **changes)


def test_a_patch_changes_the_settings_of_the_rounds_that_follow(approved):
    second = replace(PATCH, number=2, settings={"learning_rate": 0.001})
    assert approved.do(patched(PATCH)).settings == {"learning_rate": 0.01, "local_epochs": 2}
    assert approved.do(patched(PATCH, second, number=2)).settings == {"learning_rate": 0.001, "local_epochs": 2}


@pytest.mark.parametrize(
    ("patches", "words"),
    [
        ([replace(PATCH, number=2)], "patch 2 of pneumonia-1 came where number 1 was expected"),
        ([PATCH, PATCH], "came where number 2 was expected"),
        ([replace(PATCH, run=RunId("other-1"))], "is for other-1"),
        ([replace(PATCH, proposal=OTHER)], "or of another proposal"),
        ([replace(signed(PATCH), signature=bytes(64))], "does not fit the text"),
        ([signed(PATCH, issuer=make_issuer(ELSEWHERE, "lungs", NOW))], "not issued by this federation"),
        ([replace(PATCH, sites=(EnvoyName("site-x"),))], "asks site-x, which the approved proposal does not name"),
        ([replace(PATCH, settings={}, stop={"max_rounds": 4})], "no more than 3 were proposed"),
        ([replace(PATCH, sites=(EnvoyName("site-b"),))], "asks other sites than patch 1 names"),
    ],
)
def test_a_patch_out_of_order_unsigned_of_another_run_or_that_loosens_is_refused(approved, patches, words):
    with pytest.raises(FederationError, match=words):
        approved.do(patched(*patches))


def test_a_patch_is_neither_taken_back_nor_replaced(approved):
    approved.do(patched(PATCH))
    approved.restart()
    with pytest.raises(NotApprovedError, match="one was taken back or replaced"):
        approved.do(TASK)
    with pytest.raises(NotApprovedError, match="one was taken back or replaced"):
        approved.do(patched(replace(PATCH, reason="other")))


def test_a_site_refuses_the_patches_that_it_does_not_accept(tmp_path):
    site = SiteWithApprovals(tmp_path, steering=SteeringPolicy((Change.LEARNING_RATE, Change.LOCAL_EPOCHS), 2))
    site.offer()
    site.approve()
    site.do(patched(PATCH))
    with pytest.raises(NotApprovedError, match="sets local_epochs to 3; this site accepts 2 at most"):
        site.do(patched(PATCH, replace(PATCH, number=2, settings={"local_epochs": 3})))
    with pytest.raises(NotApprovedError, match="changes batch_size, which this site does not accept"):
        site.do(patched(PATCH, replace(PATCH, number=2, settings={"batch_size": 8})))
    site.guard.close()


def test_of_a_private_plan_nothing_is_changed_that_its_epsilon_is_counted_from(approved):
    private = SimpleNamespace(data=MANIFEST.data, privacy=object())
    with pytest.raises(NotApprovedError, match="changes local_epochs of a plan with differential privacy"):
        approved.do(patched(PATCH), private)
    run = RunId("pneumonia-2")
    rate = replace(PATCH, settings={"learning_rate": 0.01}, run=run)
    approved.do(replace(TASK, ref=replace(TASK.ref, run=run), patches=(signed(rate),)), private)


def test_pause_resume_and_stop_ask_nothing_of_a_site(approved):
    steps = [
        replace(PATCH, number=number, step=step, settings={})
        for number, step in enumerate((Step.PAUSE, Step.RESUME, Step.STOP), 1)
    ]
    assert approved.do(patched(*steps)).settings == {}


# veto


def test_what_was_vetoed_is_refused_at_once_and_after_a_restart(approved):
    approved.guard.veto([PROPOSAL.digest], "pneumonia-1", "it broke", "ada")
    assert approved.log.said[1:] == [
        ("vetoed", "pneumonia-1", "ada", "it broke", PROPOSAL.digest),
        ("rejected", PROPOSAL.digest, "ada", "it broke"),
    ]
    for _ in range(2):
        with pytest.raises(NotApprovedError, match="does not approve"):
            approved.do()
        assert approved.guard.approved() == ()
        approved.restart()
    approved.approve()
    approved.do()


def test_what_was_vetoed_is_refused_also_where_the_disk_is_full(approved):
    approved.log.is_full = True
    with pytest.raises(StorageError):
        approved.guard.veto([PROPOSAL.digest], "pneumonia-1", "it broke", "ada")
    assert approved.guard.approved() == ()
    with pytest.raises(VetoedError):
        approved.do()


# rows


@pytest.mark.parametrize(
    "change",
    [
        """UPDATE chain SET body = replace(body, '"max_rounds":1', '"max_rounds":3') WHERE number = 2""",
        "DELETE FROM chain WHERE number = 2",
    ],
)
def test_a_row_that_was_altered_or_taken_out_is_found_and_nothing_runs(site, change):
    site.offer()
    site.approve(rounds=1)
    site.do()
    site.store.close()
    database = sqlite3.connect(site.folder / APPROVALS_FILE)
    for trigger in ("chain_is_not_altered", "chain_is_not_cut"):
        database.execute(f"DROP TRIGGER {trigger}")
    database.execute(change)
    database.commit()
    database.close()
    with pytest.raises(StorageError, match="was altered"):
        site.start()


def test_rows_are_only_added(site):
    site.offer()
    database = sqlite3.connect(site.folder / APPROVALS_FILE)
    with pytest.raises(sqlite3.IntegrityError, match="rows are only added"):
        database.execute("DELETE FROM chain")
    database.close()


def test_a_decision_without_the_sites_key_is_not_believed(site):
    site.offer()
    stranger = Ed25519PrivateKey.generate()
    forger = ApprovalStore(site.folder, public_bytes(stranger.public_key()), stranger.sign)
    limits = Limits(("x-rays",), 3, None, PROPOSAL.expires_at)
    forger.decide(Decision(PROPOSAL.digest, Word.APPROVED, limits, "mallory", NOW))
    forger.close()
    with pytest.raises(StorageError, match="identity key did not sign"):
        site.guard.approved()
    with pytest.raises(StorageError):
        site.do()


def test_the_approvals_are_their_owners_alone(site):
    assert (site.folder / APPROVALS_FILE).stat().st_mode & 0o077 == 0


# declarative plans that a site lets run unasked

LAYOUT = Layout.of([("weight", (2, 2), TensorRole.PARAMETER)])


def declarative(model="small-cnn", name="Pneumonia"):
    recipe = Recipe(
        Choice(model, {"width": 16}),
        Choice("cross-entropy", {"label_smoothing": 0.0}),
        Choice("sgd", {"momentum": 0.0, "weight_decay": 0.0}),
        (),
        ("loss",),
    )
    files = tuple(PlanFile(path, 1, OTHER) for path in ("initial.safetensors", "layout.json"))
    data = DataSpec("x-rays", DataKind.IMAGES, (1, 28, 28), ("normal", "pneumonia"))
    return Manifest(name, PlanKind.DECLARATIVE, "", files, {}, LAYOUT.digest, data, "0.1.0", recipe=recipe)


ALLOWING = ApprovalSettings(Asking.ALLOW, ("Pneumonia",), ("x-rays",), 3)


@pytest.fixture
def allowing(tmp_path):
    made = SiteWithApprovals(tmp_path, allows=ALLOWING.allows_unasked)
    yield made
    made.guard.close()


def offered(site, manifest, **changes):
    proposal = replace(PROPOSAL, plan=manifest.digest, **changes)
    site.offer(proposal)
    return proposal


def test_a_declarative_plan_within_the_sites_limits_runs_unasked_and_is_logged(allowing):
    manifest = declarative()
    proposal = offered(allowing, manifest)
    assert allowing.guard.approved() == ()
    assert allowing.guard.came(proposal.digest, manifest)
    assert allowing.guard.approved() == (proposal.digest,)
    assert [one[0] for one in allowing.log.said] == ["offered", "approved"]
    assert allowing.log.said[1][-1] == "[approval] of envoy.toml"
    limits = allowing.store.books().standings[proposal.digest].limits
    assert (limits.datasets, limits.max_rounds) == (("x-rays",), 3)


@pytest.mark.parametrize(
    ("manifest", "changes"),
    [(declarative(name="Other"), {}), (declarative(), {"max_rounds": 4})],
    ids=["another-recipe", "more-rounds"],
)
def test_what_is_beyond_these_limits_waits_for_the_data_manager(allowing, manifest, changes):
    proposal = offered(allowing, manifest, **changes)
    assert not allowing.guard.came(proposal.digest, manifest)
    assert allowing.guard.approved() == ()


def test_a_plan_with_code_never_runs_unasked_whatever_the_settings_say(tmp_path):
    site = SiteWithApprovals(tmp_path, allows=lambda *_: True)
    declared = declarative()
    files = (*declared.files, PlanFile("plan.py", 1, OTHER))
    manifest = replace(declared, kind=PlanKind.TORCH, entry="plan.py:P", files=files, recipe=None)
    proposal = offered(site, manifest)
    assert not site.guard.came(proposal.digest, manifest)
    other = offered(site, declared, study="other")
    assert not site.guard.came(other.digest, declarative(name="Swapped"))
    site.guard.close()


def test_by_default_a_declarative_plan_waits_too(site):
    manifest = declarative()
    proposal = offered(site, manifest)
    assert not site.guard.came(proposal.digest, manifest)


def test_once_the_data_manager_said_no_to_a_plan_it_does_not_run_unasked_again(allowing):
    manifest = declarative()
    proposal = offered(allowing, manifest)
    allowing.guard.came(proposal.digest, manifest)
    allowing.guard.veto([proposal.digest], "pneumonia-1", "no", "ada")
    assert not allowing.guard.came(proposal.digest, manifest)
    again = offered(allowing, manifest, purpose="detect pneumonia, again")
    assert not allowing.guard.came(again.digest, manifest)
    assert allowing.guard.approved() == ()


def test_an_approval_of_its_own_that_cannot_be_logged_is_not_given(allowing):
    manifest = declarative()
    proposal = offered(allowing, manifest)
    allowing.log.is_full = True
    with pytest.raises(StorageError):
        allowing.guard.came(proposal.digest, manifest)
    assert allowing.guard.approved() == ()


def test_a_recipe_that_this_software_does_not_have_is_not_approved(allowing):
    manifest = declarative(model="transformer")
    proposal = offered(allowing, manifest)
    with pytest.raises(PlanError, match="unknown model transformer"):
        allowing.guard.came(proposal.digest, manifest)
    assert allowing.guard.approved() == ()
