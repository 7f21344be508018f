"""What a data manager types about what is proposed, without a director and beside a running envoy."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from fedveil.envoy.__main__ import app
from fedveil.envoy.approval_store import ApprovalStore
from fedveil.envoy.approvals import Decision, State, Word, limits_for
from fedveil.envoy.enrolment import load_credentials, prepare_join, save_credentials
from fedveil.utils.certificates import (
    certificate_pem,
    issue_client,
    issue_identity,
    key_pem,
    make_issuer,
    make_key,
    make_root,
    read_identity_key,
)
from fedveil.utils.identity import PeerId, Role, expires_at
from fedveil.utils.join_file import JoinFile, sign_join_file
from fedveil.utils.messages import AskedProtection, EnvoyName, JoinReply, RunId
from fedveil.utils.plan_bundle import open_bundle
from fedveil.utils.proposal import Output, Proposal, sign
from fedveil.utils.tensors import Digest
from fedveil.workspace.plan_builder import build_plan
from typer.testing import CliRunner

DAY = 86400.0
PLAN = """
import numpy as np
from fedveil import ArrayPlan, DataKind, DataSpec, mean_of

class Toy(ArrayPlan):
    data = DataSpec("none", DataKind.NONE)

    def initial(self):
        return {"w": np.zeros(SIZE, np.float32)}

    def train(self, weights, data, rng):
        return {"w": weights["w"] + 1}, 5  # MARK

    def evaluate(self, weights, data):
        yield mean_of("mean", weights["w"].mean(), 1)
"""


class Site:
    """A site that joined, and a researcher who proposes to it; no director, no envoy."""

    def __init__(self, folder):
        self.folder, self.now = folder, time.time()
        root = make_root("lungs", self.now)
        self.issuer = make_issuer(root, "lungs", self.now)
        self.root = root.certificate
        self.operator, self.key = PeerId("lungs", Role.OPERATOR, "alice"), Ed25519PrivateKey.generate()
        self._join()

    def _join(self):
        key = make_key()
        bootstrap = issue_client(self.issuer, key.public_key(), PeerId("lungs", Role.JOIN, "f00"), DAY, self.now)
        join = sign_join_file(
            JoinFile(
                federation="lungs",
                name="site-a",
                organization="Site A",
                role=Role.ENVOY,
                addresses=("127.0.0.1:1",),
                root=certificate_pem(self.root),
                issuer=certificate_pem(self.issuer.certificate),
                bootstrap=certificate_pem(bootstrap),
                bootstrap_key=key_pem(key),
                expires_at=int(expires_at(bootstrap)),
            ),
            self.issuer,
        )
        request, keys = prepare_join(self.folder, join)
        peer = PeerId("lungs", Role.ENVOY, "site-a")
        asked = x509.load_der_x509_csr(request.signing_request).public_key()
        leaf = issue_client(self.issuer, asked, peer, 9 * DAY, self.now)
        own = Ed25519PublicKey.from_public_bytes(request.identity_key)
        identity = issue_identity(self.issuer, own, peer, self.now)
        chain = certificate_pem(leaf, self.issuer.certificate)
        reply = JoinReply("lungs", EnvoyName("site-a"), "Site A", chain, certificate_pem(identity))
        save_credentials(self.folder, join, keys, reply, self.now)

    def store(self):
        credentials = load_credentials(self.folder, self.now)
        key = read_identity_key(credentials.identity_key, "the identity key")
        return ApprovalStore(self.folder, credentials.public_identity, key.sign)

    def fetched(self, text):
        """A plan, as an envoy fetches it."""
        source = self.folder / "toy.py"
        source.write_text(text)
        built = self.folder / "built"
        digest = build_plan(source, built).digest
        shutil.copytree(built, self.folder / "plans" / digest, dirs_exist_ok=True)
        shutil.rmtree(built)
        return digest

    def offer(self, mark="", size=4, is_here=True, **changes):
        text = PLAN.replace("MARK", mark).replace("SIZE", str(size))
        plan = self.fetched(text) if is_here else Digest("ee" * 32)
        proposal = Proposal(
            **{
                "federation": "lungs",
                "study": "toys",
                "plan": plan,
                "settings": Digest("cd" * 32),
                "purpose": "a test",
                "legal_basis": "",
                "max_rounds": 5,
                "is_secure": True,
                "aggregator": "director",
                "codec": None,
                "asked": AskedProtection(),
                "sites": (),
                "outputs": (Output.MODEL,),
                "proposed_by": self.operator,
                "proposed_at": self.now - 10,
                "expires_at": self.now + 30 * DAY,
            }
            | changes
        )
        chain = certificate_pem(
            issue_identity(self.issuer, self.key.public_key(), self.operator, self.now), self.issuer.certificate
        )
        store = self.store()
        store.offer(sign(proposal, self.key, chain), proposal, RunId("toys-1"), self.now)
        store.close()
        return proposal

    def standing(self, proposal):
        store = self.store()
        found = store.books().standings[proposal.digest]
        store.close()
        return found

    def type(self, *words, **more):
        done = CliRunner().invoke(app, [*words, "--folder", str(self.folder)], **more)
        return done.exit_code, done.output


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path / "site")


def logged(site):
    lines = (site.folder / "audit.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["event"] for line in lines]


def test_what_was_proposed_is_listed_with_its_state_and_rounds(site):
    assert "Nothing was proposed" in site.type("plan", "list")[1]
    proposal = site.offer()
    code, text = site.type("plan", "list")
    assert code == 0
    for word in (proposal.digest[:12], "toys", "offered", "0 of 5", "alice"):
        assert word in text


def test_a_proposal_is_shown_with_all_that_it_asks_for_and_its_source(site):
    proposal = site.offer("as it was")
    code, text = site.type("plan", "show", proposal.digest[:8], "--source")
    assert code == 0
    for word in (proposal.digest, proposal.plan, "purpose: a test", "in secure sums alone", "file toy.py", "as it was"):
        assert word in text
    assert "leak test: none yet" in text


def test_an_approval_is_asked_for_signed_logged_and_named_in_the_list(site):
    proposal = site.offer()
    code, text = site.type("plan", "approve", proposal.digest[:8], "--yes", "--rounds", "2")
    assert code == 0, text
    standing = site.standing(proposal)
    assert standing.state(time.time()) is State.APPROVED
    assert standing.limits.max_rounds == 2
    (event,) = [event for event in logged(site) if event["what"] == "approved"]
    assert (event["proposal"], event["limits"]["max_rounds"]) == (proposal.digest, 2)
    assert "0 of 2" in site.type("plan", "list")[1]


def test_without_a_terminal_nothing_is_approved_unless_it_says_yes(site):
    proposal = site.offer()
    code, text = site.type("plan", "approve", proposal.digest[:8])
    assert (code, "no terminal to ask at" in text) == (1, True)
    assert site.standing(proposal).decision is None


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--rounds", "6"), "no more than 5 are proposed"),
        (("--until", "2999-01-01"), "the proposal itself ends"),
        (("--until", "2001-01-01"), "that day is over"),
        (("--until", "soon"), "expected a day"),
        (("--epsilon", "1"), "names no delta"),
    ],
)
def test_limits_that_are_looser_than_the_proposal_or_count_nothing_are_refused(site, words, reason):
    proposal = site.offer()
    code, text = site.type("plan", "approve", proposal.digest[:8], "--yes", *words)
    assert (code, reason in text) == (1, True)
    assert site.standing(proposal).decision is None


def test_a_rejection_takes_an_approval_back_with_its_reason(site):
    proposal = site.offer()
    site.type("plan", "approve", proposal.digest[:8], "--yes")
    assert site.type("plan", "reject", proposal.digest[:8], "--reason", "no permit")[0] == 0
    assert site.standing(proposal).state(time.time()) is State.REJECTED
    assert "no permit" in site.type("plan", "show", proposal.digest[:8])[1]
    assert [event["what"] for event in logged(site)][-1] == "rejected"


def test_without_an_envoy_a_veto_is_a_rejection(site):
    proposal = site.offer()
    site.type("plan", "approve", proposal.digest[:8], "--yes")
    assert site.type("veto", proposal.digest[:8], "--reason", "no")[0] == 0
    assert site.standing(proposal).state(time.time()) is State.REJECTED
    code, text = site.type("veto")
    assert (code, "no envoy runs" in text) == (1, True)


def test_a_prefix_that_could_be_two_is_refused_with_both_names(site):
    first, second = site.offer(), site.offer(study="others")
    assert first.plan == second.plan
    code, text = site.type("plan", "show", first.plan[:8])
    assert code == 1
    assert first.digest[:12] in text
    assert second.digest[:12] in text


def test_a_plan_that_was_changed_on_disk_is_not_approved(site):
    proposal = site.offer()
    bundle = open_bundle(site.folder / "plans" / proposal.plan)
    path = bundle.blob_path("toy.py")
    path.write_bytes(path.read_bytes().replace(b"+ 1", b"+ 2"))
    code, text = site.type("plan", "approve", proposal.digest[:8], "--yes")
    assert (code, "has SHA-256" in text) == (1, True)
    assert site.standing(proposal).decision is None


def test_a_plan_that_is_not_here_yet_is_not_approved(site):
    proposal = site.offer(is_here=False)
    code, text = site.type("plan", "approve", proposal.digest[:8], "--yes")
    assert (code, "is not here yet" in text) == (1, True)


def test_an_expired_proposal_is_not_approved(site):
    proposal = site.offer(expires_at=time.time() - 1)
    code, text = site.type("plan", "approve", proposal.digest[:8], "--yes")
    assert (code, "ended on" in text) == (1, True)


def test_a_codec_that_is_not_here_is_not_approved(site):
    proposal = site.offer(codec=Digest("aa" * 32))
    code, text = site.type("plan", "approve", proposal.digest[:8], "--yes")
    assert (code, "codec aaaaaaaaaaaa" in text) == (1, True)


# diff


def approved(site, proposal):
    store = site.store()
    store.decide(Decision(proposal.digest, Word.APPROVED, limits_for(proposal, None), "ada", time.time()))
    store.close()


def test_a_diff_shows_each_changed_line_setting_and_tensor_since_the_last_approval(site):
    first = site.offer("as it was")
    assert "all of it is new" in site.type("plan", "diff", first.digest[:8])[1]
    approved(site, first)
    second = site.offer("as it is now", size=8, purpose="something else", max_rounds=50)
    code, text = site.type("plan", "diff", second.digest[:8])
    assert code == 0, text
    for line in (
        '-        return {"w": weights["w"] + 1}, 5  # as it was',
        '+        return {"w": weights["w"] + 1}, 5  # as it is now',
        "purpose: a test -> something else",
        "rounds: 5 at most -> 50 at most",
        "tensor w: 4 float32 parameter -> 8 float32 parameter",
        "initial.safetensors",
    ):
        assert line in text, line


def test_a_diff_of_the_same_plan_says_so(site):
    first = site.offer()
    approved(site, first)
    second = site.offer(max_rounds=6)
    assert "the plan is the same, byte for byte" in site.type("plan", "diff", second.digest[:8])[1]


def test_a_diff_and_the_source_hide_nothing_behind_a_terminals_escapes(site):
    first = site.offer()
    approved(site, first)
    second = site.offer("\x1b[8m import os \u202e hidden")
    for words in (("diff", second.digest[:8]), ("show", second.digest[:8], "--source")):
        text = site.type("plan", *words)[1]
        assert "\\x1b[8m import os \\u202e hidden" in text
        assert "\x1b" not in text


def test_a_folder_that_did_not_join_has_nothing_to_decide(tmp_path):
    done = CliRunner().invoke(app, ["plan", "list", "--folder", str(tmp_path)])
    assert done.exit_code == 1
    assert "has not joined" in done.output


def test_a_proposal_whose_signature_is_not_right_any_more_is_not_approved(site):
    proposal = site.offer()
    store = site.store()
    standing = store.books().standings[proposal.digest]
    other = replace(proposal, study="forged")
    store.offer(replace(standing.document, content=other.to_json()), other, RunId("toys-1"), site.now)
    store.close()
    code, text = site.type("plan", "approve", other.digest[:8], "--yes")
    assert (code, "does not fit the text" in text) == (1, True)


def test_what_a_plan_imports_and_calls_is_shown_before_it_is_approved(site):
    proposal = site.offer("\n        open('/etc/passwd')")
    for words in (("show", proposal.digest[:8]), ("approve", proposal.digest[:8], "--yes")):
        text = " ".join(site.type("plan", *words)[1].split())
        assert "imports: fedveil, numpy" in text
        assert "call: toy.py:13: open()" in text


def test_a_plan_that_imports_what_the_site_does_not_allow_is_not_approved(site):
    proposal = site.offer("\n        import socket")
    assert "forbidden: toy.py:13: import of socket" in site.type("plan", "show", proposal.digest[:8])[1]
    code, text = site.type("plan", "approve", proposal.digest[:8], "--yes")
    assert (code, "import of socket is not allowed" in " ".join(text.split())) == (1, True)
    assert site.standing(proposal).decision is None
    (site.folder / "envoy.toml").write_text('[approval]\nimports = ["socket"]\n')
    assert site.type("plan", "approve", proposal.digest[:8], "--yes")[0] == 0
