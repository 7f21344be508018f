"""The gate: measured once for each plan and chain, on public images alone; closed wherever it does not know."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fedveil.envoy import gate as gate_module
from fedveil.envoy.edge import Edge
from fedveil.envoy.gate import LeakGate, Outcome
from fedveil.envoy.journal import DATABASE_FILE, Journal
from fedveil.envoy.leak_test import Attempt, LeakTest, Sent
from fedveil.envoy.payload import Payloads
from fedveil.envoy.policy import ProtectionPolicy, Step
from fedveil.envoy.protection import Closed, Off, Open
from fedveil.gradient_leakage.attacks.imprint import Imprint
from fedveil.gradient_leakage.defenses.chain import Chain
from fedveil.gradient_leakage.defenses.clip import Clip
from fedveil.gradient_leakage.defenses.coded import Coded
from fedveil.gradient_leakage.models import build
from fedveil.gradient_leakage.threat_model import ImageDomain
from fedveil.gradient_leakage.vae.fitting import seeded
from fedveil.gradient_leakage.victim import layout_of
from fedveil.utils import messages as m
from fedveil.utils.data_spec import DataKind, DataSpec
from fedveil.utils.errors import ConfigError, PlanError
from fedveil.utils.plan_bundle import PlanKind, open_bundle, write_bundle
from fedveil.utils.tensors import digest_of, model_pieces
from hypothesis import given
from hypothesis import strategies as st

DOMAIN = ImageDomain((1, 8, 8), 2)
POLICY = ProtectionPolicy((Step.CHECK, Step.AUDIT), max_leakage=0.2)
SECRET = "/data/patients/miller.png"


def bundle_of(model, folder):
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    layout = layout_of(model)
    vector = torch.cat([named[e.name].detach().reshape(-1) for e in layout.entries]).numpy().astype(np.float32)
    write_bundle(
        folder,
        name="digits",
        kind=PlanKind.TORCH,
        entry="plan.py:Digits",
        sources={"plan.py": b""},
        settings={},
        layout=layout,
        initial=(vector, b""),
        data=DataSpec("digits", DataKind.IMAGES, DOMAIN.shape, ("a", "b")),
        software="0",
    )
    model_file = folder / "model.safetensors"
    model_file.write_bytes(b"".join(bytes(piece) for piece in model_pieces(layout, vector, b"")))
    return open_bundle(folder), model_file


@pytest.fixture
def plan(tmp_path):
    return bundle_of(build("relu-cnn", DOMAIN, 0), tmp_path / "plan")


@pytest.fixture
def measured(monkeypatch):
    """Measurements without a child: what was measured, and what comes out."""
    calls = []

    def measure(bundle, chain, canaries, **_):
        calls.append((bundle.digest, chain.digest, canaries.digest))
        if isinstance(measure.gain, Exception):
            raise measure.gain
        broken = Attempt(Sent.GRADIENT, "dlg", False, 0.9, 0.9, 4, 4)
        return LeakTest((broken, replace(broken, is_defended=True, gain=measure.gain)), 1.0, has_chain=True)

    measure.gain, measure.calls = 0.1, calls
    monkeypatch.setattr(gate_module, "measure", measure)
    return measure


def test_a_plan_is_measured_once_and_again_when_the_chain_the_plan_or_the_canaries_change(plan, measured, tmp_path):
    bundle, model = plan
    for _ in range(3):
        assert LeakGate(tmp_path, POLICY).gate(bundle, model, Chain())() == Open(0.1)
    assert len(measured.calls) == 1
    LeakGate(tmp_path, POLICY).gate(bundle, model, Chain((Clip(1.0),)))()
    LeakGate(tmp_path, POLICY).gate(bundle, model, Chain((Clip(2.0),)))()
    assert len(measured.calls) == 3
    other, other_model = bundle_of(build("relu-cnn", DOMAIN, 1), tmp_path / "other")
    LeakGate(tmp_path, POLICY).gate(other, other_model, Chain())()
    assert len(measured.calls) == 4
    images = np.random.default_rng(0).integers(0, 255, (40, 8, 8), np.uint8)
    np.savez(tmp_path / "public.npz", images=images, labels=np.arange(40) % 2)
    LeakGate(tmp_path, replace(POLICY, canaries=tmp_path / "public.npz")).gate(bundle, model, Chain())()
    assert len(set(measured.calls)) == 5
    LeakGate(tmp_path, replace(POLICY, max_leakage=0.05)).gate(bundle, model, Chain())()
    assert len(measured.calls) == 5  # the bound is the site's own business: the score is the same


def test_a_codec_lowers_no_score_the_chain_is_measured_without_it_too(plan, measured, tmp_path, monkeypatch):
    bundle, model = plan
    coded = Chain((Coded(seeded(bundle.layout, 4.0)), Clip(1.0)))
    real = gate_module.measure

    def measure(plan, chain, canaries, **said):
        measured.gain = 0.05 if chain.encoder else 0.6
        return real(plan, chain, canaries, **said)

    monkeypatch.setattr(gate_module, "measure", measure)
    assert isinstance(LeakGate(tmp_path, POLICY).gate(bundle, model, coded)(), Closed)
    assert {chain for _, chain, _ in measured.calls} == {coded.digest, Chain((Clip(1.0),)).digest}


def test_one_task_has_one_verdict(plan, measured, tmp_path):
    asked = LeakGate(tmp_path, POLICY).gate(*plan, Chain())
    assert asked() == Open(0.1)
    measured.gain = 0.9
    assert asked() == Open(0.1)


def test_a_score_above_the_bound_closes_and_the_reason_tells_the_director_no_figure(plan, measured, tmp_path):
    measured.gain = 0.2345
    verdict = LeakGate(tmp_path, POLICY).gate(*plan, Chain())()
    assert isinstance(verdict, Closed)
    assert "0.2" not in verdict.reason


@pytest.mark.parametrize("gain", [PlanError(f"cannot read {SECRET}"), PlanError("")])
def test_a_plan_that_cannot_be_measured_closes_and_its_words_stay_at_the_site(gain, plan, measured, tmp_path):
    measured.gain = gain
    verdict = LeakGate(tmp_path, POLICY).gate(*plan, Chain())()
    assert isinstance(verdict, Closed)
    assert SECRET not in verdict.reason


@given(score=st.none() | st.floats(0, 1), bound=st.floats(0.001, 1), obstacle=st.text())
def test_the_gate_opens_for_a_known_score_within_the_bound_and_for_nothing_else(score, bound, obstacle):
    verdict = Outcome(score, obstacle, 1.0).verdict(bound)
    assert isinstance(verdict, Open) is (score is not None and score <= bound)


def test_without_a_bound_the_gate_is_off_and_nothing_is_measured(plan, measured, tmp_path):
    assert LeakGate(tmp_path, ProtectionPolicy((Step.CHECK,))).gate(*plan, Chain())() == Off()
    assert measured.calls == []


def test_no_canaries_for_a_plan_keep_it_closed(plan, measured, tmp_path):
    gate = LeakGate(tmp_path, replace(POLICY, canaries=tmp_path / "missing.npz"))
    assert isinstance(gate.gate(*plan, Chain())(), Closed)
    assert measured.calls == []


def test_a_round_whose_model_has_an_imprint_is_refused_before_it_is_trained(measured, tmp_path):
    published = Imprint(bins=64).prepare(build("relu-cnn", DOMAIN, 0), DOMAIN, torch.Generator().manual_seed(0))
    bundle, model = bundle_of(published, tmp_path / "imprint")
    for policy in (POLICY, ProtectionPolicy((Step.CHECK,))):
        verdict = LeakGate(tmp_path, policy).gate(bundle, model, Chain())()
        assert isinstance(verdict, Closed)
        assert "0.measure.weight" in verdict.reason
    assert measured.calls == []
    assert (
        LeakGate(tmp_path, ProtectionPolicy((Step.CHECK,), structure_check=False)).gate(bundle, model, Chain())()
        == Off()
    )


def test_a_measurement_that_was_ended_is_not_kept(plan, measured, tmp_path):
    gate = LeakGate(tmp_path, POLICY)
    gate.close()
    gate.gate(*plan, Chain())()
    LeakGate(tmp_path, POLICY).gate(*plan, Chain())()
    assert len(measured.calls) == 2


def test_an_envoys_edge_declines_a_task_whose_model_is_an_imprint_and_admits_the_plans_own(plan, measured, tmp_path):
    imprint = Imprint(bins=64).prepare(build("relu-cnn", DOMAIN, 0), DOMAIN, torch.Generator().manual_seed(0))
    journal, payloads = Journal(tmp_path / DATABASE_FILE), Payloads(tmp_path / "work")
    edge = Edge(POLICY, journal, payloads, tmp_path / "state", LeakGate(tmp_path, POLICY))
    for (bundle, model), is_admitted in ((plan, True), (bundle_of(imprint, tmp_path / "imprint"), False)):
        task = m.Task(
            ref=m.TaskRef(m.RunId("run-1"), 1, 1, bundle.digest),
            kind=m.TaskKind.TRAIN,
            model=digest_of(model.read_bytes()),
            model_bytes=model.stat().st_size,
            layout=bundle.layout.digest,
            seed=bytes(32),
            seconds_left=60.0,
            min_participants=1,
            cohort=("site-a",),
        )
        if is_admitted:
            assert edge.open(task, bundle, model, edge.admit(task), None).gate() == Open(0.1)
        else:
            with pytest.raises(ConfigError, match=r"looks built for an attack \(a heuristic\): 0.measure.weight"):
                edge.open(task, bundle, model, edge.admit(task), None)
    journal.close()
