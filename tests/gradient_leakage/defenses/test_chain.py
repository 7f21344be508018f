import json
import subprocess
import sys

import numpy as np
import pytest
from fedveil.gradient_leakage.defenses.chain import Chain
from fedveil.gradient_leakage.defenses.clip import Clip
from fedveil.gradient_leakage.defenses.coded import Coded
from fedveil.gradient_leakage.defenses.gaussian import GaussianMechanism
from fedveil.gradient_leakage.defenses.outpost import Outpost, Span
from fedveil.gradient_leakage.defenses.quantise import Quantise
from fedveil.gradient_leakage.defenses.sketch import Sketch
from fedveil.gradient_leakage.defenses.soteria import Soteria
from fedveil.gradient_leakage.defenses.top_k import TopK
from fedveil.gradient_leakage.vae.fitting import fit
from fedveil.utils.errors import ConfigError
from fedveil.utils.tensors import Layout, Role
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

LAYOUT = Layout.of([("w", (10, 20), Role.PARAMETER), ("n", (5,), Role.BUFFER)])
CODEC = fit(LAYOUT, np.random.default_rng(1).standard_normal((40, 205)).astype(np.float32), 10)
NOISE = GaussianMechanism(1.0, 0.5)


SMALL = st.floats(-1e4, 1e4, width=32)


def vectors(least=1, most=200, elements=SMALL):
    return arrays.arrays(np.float32, st.integers(least, most), elements=elements)


@given(vectors(205, 205), st.integers(0, 5))
def test_a_chain_is_its_steps_one_after_the_other(vector, seed):
    before, chain = vector.copy(), Chain((Coded(CODEC), NOISE, Quantise(8)))
    payload = chain(vector, np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    assert np.array_equal(payload, Quantise(8)(NOISE(CODEC.encode(vector), rng), rng))
    assert np.array_equal(before, vector)
    assert np.array_equal(chain.decoded(payload), CODEC.decode(payload))


@given(vectors(205, 205))
def test_code_and_passed_entries_share_one_clip(vector):
    payload = Chain((Coded(CODEC), Clip(1.0)))(vector, None)
    assert np.linalg.norm(payload.astype(float)) <= 1
    whole = CODEC.encode(vector).astype(float)
    assert len(payload) == CODEC.code_size + 5
    assert np.allclose(payload, whole * min(1.0, 1 / max(np.linalg.norm(whole), 1e-30)), rtol=1e-5, atol=1e-30)


def test_an_empty_chain_hands_on_the_very_update(rng):
    vector = np.ones(3, np.float32)
    assert Chain()(vector, rng) is vector
    assert Chain().decoded(vector) is vector
    assert (Chain().label, Chain().describe(), Chain().encoder) == ("none", "[]", None)


def test_a_chain_without_an_encoder_is_read_as_it_came(rng):
    payload = Chain((TopK(0.5), NOISE))(np.ones(4, np.float32), rng)
    assert Chain((TopK(0.5), NOISE)).decoded(payload) is payload


def test_a_sketch_is_decoded_after_its_noise(rng):
    sketch = Sketch(1, 0.5, 10)
    chain = Chain((sketch, NOISE))
    payload = chain(np.ones(10, np.float32), rng)
    assert np.array_equal(chain.decoded(payload), sketch.decode(payload))


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ((NOISE, Coded(CODEC)), "clip where the noise is added"),
        ((Clip(1.0), Sketch(0, 0.5, 205)), "clip where the noise is added"),
        ((Coded(CODEC), Sketch(0, 0.5, 25)), "two encoders"),
        ((NOISE, NOISE), "noise twice"),
        ((Coded(CODEC), Soteria(0, (2, 2), (1,))), "no longer there"),
        ((Sketch(0, 0.5, 9), Outpost((Span(0, 4, 0.1),))), "no longer there"),
        ((Coded(CODEC), Outpost(()), NOISE), "OUTPOST.* after an encoder"),
    ],
)
def test_an_order_in_which_a_step_could_not_do_what_it_promises_is_refused(steps, why):
    with pytest.raises(ConfigError, match=why):
        Chain(steps)


@pytest.mark.parametrize(
    "steps",
    [
        (Soteria(0, (2, 2), (1,)), Coded(CODEC), NOISE),
        (TopK(0.1), Sketch(0, 0.5, 205), NOISE, Quantise(8)),
        (NOISE, TopK(0.1), Clip(1.0)),
    ],
)
def test_an_order_that_makes_sense_is_taken(steps):
    assert Chain(steps).steps == steps


def test_a_description_names_every_parameter_and_the_codec_by_its_digest():
    chain = Chain((Soteria(0, (2, 2), (1,)), Coded(CODEC), NOISE))
    assert json.loads(chain.describe()) == [
        ["Soteria", {"start": 0, "shape": [2, 2], "columns": [1]}],
        ["Coded", {"codec": CODEC.digest}],
        ["GaussianMechanism", {"max_norm": 1.0, "noise_multiplier": 0.5}],
    ]
    assert Chain((Clip(1.0),)).digest == Chain((Clip(1.0),)).digest
    others = [Chain(), Chain((Clip(1.0),)), Chain((Clip(2.0),)), Chain((NOISE,)), Chain((Outpost((Span(0, 1, 0.1),)),))]
    assert len({one.digest for one in others}) == len(others)


def test_labels_are_one_short_phrase():
    chain = Chain((TopK(0.01), Sketch(0, 0.05, 205), NOISE, Quantise(8)))
    assert chain.label == "top-k 1 %, sketch to 5 %, clip 1 + noise 0.5, 8 bits"


def test_chains_and_noise_need_no_torch():
    script = (
        "import sys, fedveil.gradient_leakage.defenses.chain, fedveil.utils.privacy.noise; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0
