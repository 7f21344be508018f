"""What a plan says of its privacy: taken whole from a manifest, or refused with the reason."""

import dataclasses
import json

import pytest
from fedveil import DifferentialPrivacy
from fedveil.utils.data_spec import DataKind, DataSpec
from fedveil.utils.errors import MalformedMessageError, PlanError
from fedveil.utils.plan_bundle import Manifest, PlanFile, PlanKind, read_manifest
from fedveil.utils.privacy.events import Release, SampledGaussian
from fedveil.utils.privacy.values import Unit
from fedveil.utils.tensors import canonical_json
from hypothesis import given
from hypothesis import strategies as st

PRIVACY = DifferentialPrivacy("patient", max_norm=1, noise_multiplier=1.5, sampling_rate=0.05, units=800, steps=4)


def manifest(privacy):
    files = tuple(PlanFile(path, 1, "0" * 64) for path in ("plan.py", "layout.json", "initial.safetensors"))
    data = DataSpec("x", DataKind.TABLE, (3,), ("a", "b"))
    return Manifest("Plan", PlanKind.TORCH, "plan.py:Plan", files, {}, "1" * 64, data, "0", privacy)


def test_what_rounds_release_follows_from_the_setting_alone():
    assert PRIVACY.release(10) == Release(SampledGaussian(0.05, 1.5, 40), Unit.PATIENT)
    assert PRIVACY.expected_units == 40


@given(
    st.sampled_from(["record", "patient"]),
    st.floats(1e-6, 1e6),
    st.floats(1e-3, 100),
    st.floats(1e-6, 1),
    st.integers(1, 10_000),
    st.integers(1, 1000),
)
def test_a_manifest_carries_the_privacy_of_a_plan(unit, bound, noise, rate, units, steps):
    privacy = DifferentialPrivacy(unit, bound, noise, rate, units, steps, 0.5 / units)
    assert read_manifest(manifest(privacy).to_json()).privacy == privacy
    assert dataclasses.replace(privacy, steps=steps) == privacy


def test_a_manifest_without_privacy_has_the_bytes_that_it_always_had_and_another_digest_than_one_with_it():
    plain = manifest(None)
    assert "privacy" not in json.loads(plain.to_json())
    assert read_manifest(plain.to_json()).privacy is None
    assert manifest(PRIVACY).digest != plain.digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit": "site"}, "no training protects a site"),
        ({"unit": "hospital"}, "unit 'hospital', expected record or patient"),
        ({"noise_multiplier": 0}, "without noise nothing is private"),
        ({"max_norm": -1.0}, "expected numbers above 0"),
        ({"max_norm": float("inf")}, "max_norm inf, expected a number"),
        ({"sampling_rate": 1.5}, "sampling_rate 1.5, expected more than 0 and at most 1"),
        ({"units": 0}, "units 0, expected a whole number from 1"),
        ({"steps": 2.0}, r"steps 2\.0, expected a whole number"),
        ({"steps": True}, "steps True"),
        ({"delta": 0.01}, "allows to publish somebody's data"),
    ],
)
def test_what_protects_nobody_is_refused_with_the_reason(changes, message):
    with pytest.raises(PlanError, match=message):
        dataclasses.replace(PRIVACY, **changes)


@pytest.mark.parametrize("change", [{"epsilon": 1.0}, {"steps": None}, {"noise_multiplier": 0.0}])
def test_a_manifest_with_another_privacy_than_there_is_is_no_manifest(change):
    document = json.loads(manifest(PRIVACY).to_json())
    document["privacy"] = {key: value for key, value in (document["privacy"] | change).items() if value is not None}
    with pytest.raises(MalformedMessageError, match="privacy"):
        read_manifest(canonical_json(document))
    document["privacy"] = None
    with pytest.raises(MalformedMessageError):
        read_manifest(canonical_json(document))
