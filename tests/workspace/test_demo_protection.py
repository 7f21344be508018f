"""The demo's defenses are policies that an envoy takes; a codec that does not fit is refused before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedveil.envoy.config import EnvoyConfig
from fedveil.envoy.policy import Step
from fedveil.gradient_leakage.vae.codec import codec_bytes
from fedveil.gradient_leakage.vae.fitting import seeded
from fedveil.utils.config import parse_toml
from fedveil.utils.errors import ConfigError, LayoutMismatchError, MalformedMessageError
from fedveil.utils.plan_bundle import Bundle, open_bundle
from fedveil.utils.tensors import Layout, Role
from fedveil.workspace.benchmarks import noop_plan
from fedveil.workspace.demo import DemoOptions
from fedveil.workspace.demo_protection import DemoDefense, defense_of, envoy_settings, given_codec
from fedveil.workspace.plan_builder import build_plan


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("plan")
    build_plan(Path(noop_plan.__file__), folder / "bundle", {"elements": 1_000})
    return open_bundle(folder / "bundle")


@pytest.mark.parametrize("defense", DemoDefense)
def test_every_defense_is_a_policy_that_an_envoy_takes(defense: DemoDefense):
    policy = parse_toml(envoy_settings(defense), EnvoyConfig, "envoy.toml").protection
    assert policy is not None
    assert (Step.CLIP in policy.chain) == (defense is not DemoDefense.NONE)
    assert (Step.NOISE in policy.chain) == (defense is DemoDefense.CLIP_NOISE)
    assert {Step.CHECK, Step.ENCODE} <= set(policy.chain)
    assert defense_of(defense.value) is defense


def test_no_defense_of_the_demo_is_said_to_protect_a_patient():
    assert DemoDefense.NONE.words.startswith("no defense")
    assert "hides no patient" in DemoDefense.CLIP.words
    assert "far too little for a guarantee" in DemoDefense.CLIP_NOISE.words


def test_a_defense_that_is_none_is_refused_with_those_that_are():
    with pytest.raises(ConfigError, match="--defense dp: expected one of none, clip, clip-noise"):
        defense_of("dp")


def test_a_codec_is_fitted_or_given_and_not_both(tmp_path: Path):
    with pytest.raises(ConfigError, match="leave one of them out"):
        DemoOptions(tmp_path, codec=True, codec_file=tmp_path / "codec.safetensors")


def test_a_given_codec_that_fits_is_named_by_its_digest(bundle: Bundle, tmp_path: Path):
    codec, file = seeded(bundle.layout, 100.0), tmp_path / "codec.safetensors"
    file.write_bytes(codec_bytes(codec))
    given = given_codec(file, bundle)
    assert given.table == f'\n[codec]\ndigest = "{codec.digest}"\n'
    assert given.codec.layout == bundle.layout


def test_a_given_codec_that_does_not_fit_is_refused_with_the_reason(bundle: Bundle, tmp_path: Path):
    file = tmp_path / "codec.safetensors"
    with pytest.raises(ConfigError, match=r"--codec-file .*codec\.safetensors: cannot be read: No such file"):
        given_codec(file, bundle)
    file.write_bytes(b"no codec")
    with pytest.raises(MalformedMessageError):
        given_codec(file, bundle)
    file.write_bytes(codec_bytes(seeded(Layout.of([("w", (999,), Role.PARAMETER)]), 100.0)))
    with pytest.raises(LayoutMismatchError, match="a codec of another model than the demo's"):
        given_codec(file, bundle)
