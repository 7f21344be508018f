"""Test vectors: one whole sum, message by message, with the randomness of each site written down.

``vectors/sum_*.json`` are made by ``python tests/utils/secure_sum/test_vectors.py``. Sealed boxes hold randomness of
their own, so a site's deal is not made again byte for byte; everything else is.
"""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fedveil.utils.metrics import mean_of
from fedveil.utils.secure_sum import encoding, participant, summation
from fedveil.utils.secure_sum.rehearsal import Contribution, Network, Step, cast_of, drawn, identity_of, spec_for
from fedveil.utils.secure_sum.rules import Promises
from fedveil.utils.secure_sum.tallies import MetricShape
from fedveil.utils.secure_sum.terms import Suite, SumTerms

FOLDER = Path(__file__).parent / "vectors"
DROPPED = "site-c"
NAMES = ("site-a", "site-b", "site-c", "site-d")
SEED = hashlib.sha256(b"fedveil secure sum, test vectors").digest()


def setting(suite):
    """Four sites, of which one drops out before its vector leaves."""
    cast = cast_of(NAMES)
    given = {
        name: Contribution(
            np.array([0.5, -0.25, 1.5, 0.125 * place, -1.0], np.float32),
            10 * (place + 1),
            (mean_of("loss", 0.5 + place, 10.0),),
        )
        for place, name in enumerate(cast.names)
    }
    spec = spec_for((3, 2), 4, SumTerms(suite=suite, bounds=(1.0, 2.0), max_weight=100))
    return Network(cast, spec, given, seed=SEED, drops={DROPPED: Step.MASKED}, audit_head=b"head of the audit log")


def document(suite):
    """The vectors, as they are kept."""
    attempt = setting(suite)
    outcome = attempt.run()
    opened = outcome.opened
    return {
        "about": "one secure sum of four sites, threshold 3; site-c drops out before its vector leaves",
        "scheme": "fedveil-sum/1",
        "suite": suite.value,
        "spec_digest": attempt.spec.digest.hex(),
        "rounding_seed": SEED.hex(),
        "sites": {
            name: {
                "identity_private_key": identity_of(name).private_bytes_raw().hex(),
                "mask_secret_self_secret_share_seed": [drawn_in_order(name, place).hex() for place in range(3)],
                "payload": attempt.contributions[name].payload.tolist(),
                "num_examples": attempt.contributions[name].num_examples,
            }
            for name in NAMES
        },
        "transcript": opened.transcript.hex(),
        "messages": [
            {"step": step.value, "envoy": name, "bytes": content.hex()} for step, name, content in in_order(outcome)
        ],
        "vectors": {name: vector.tobytes().hex() for name, vector in outcome.vectors.items()},
        "masks_in_the_sum": [key.hex() for key in opened.plus],
        "masks_taken_from_the_sum": [key.hex() for key in opened.minus],
        "total": outcome.total.tobytes().hex(),
        "mean": [float(number) for number in outcome.mean],
        "num_examples": outcome.tallies.num_examples,
    }


def drawn_in_order(name, place):
    """What a site's source gives at its first, second and third call."""
    source = drawn(SEED + b"site" + name.encode())
    return [source(32) for _ in range(place + 1)][-1]


def in_order(outcome):
    """All messages by step, then by envoy."""
    everything = [*outcome.upward, *outcome.downward]
    return sorted(everything, key=lambda one: (list(Step).index(one[0]), one[1]))


@pytest.fixture(scope="module", params=list(Suite), ids=lambda suite: suite.value)
def kept(request):
    path = FOLDER / f"sum_{request.param.value}.json"
    return request.param, json.loads(path.read_text("utf-8"))


def messages(vectors, step):
    return {one["envoy"]: bytes.fromhex(one["bytes"]) for one in vectors["messages"] if one["step"] == step.value}


def test_the_aggregator_says_and_finds_what_the_vectors_say(kept):
    suite, vectors = kept
    attempt = setting(suite)
    assert attempt.spec.digest.hex() == vectors["spec_digest"]

    def heard(stage, step):
        for name, content in messages(vectors, step).items():
            stage = summation.take(stage, name, content)
        return stage

    def said(items, step):
        assert messages(vectors, step).items() <= dict(items).items()

    stage, items = summation.close_cohort(heard(summation.begin(attempt.spec, attempt.cast.roster), Step.ADVERT))
    said(items, Step.COHORT)
    assert stage.cohort.transcript.hex() == vectors["transcript"]
    assert stage.threshold == 3
    stage, items = summation.deliver(heard(stage, Step.SHARES))
    said(items, Step.DELIVERY)
    stage = heard(stage, Step.MASKED)
    stage, items = summation.call_survivors(stage, stage.announced, b"head of the audit log")
    said(items, Step.SURVIVORS)
    stage, items = summation.reveal(heard(stage, Step.CONSENT))
    said(items, Step.CONSENTS)
    opened = summation.open_sum(heard(stage, Step.UNMASKING))
    assert opened.survivors == ("site-a", "site-b", "site-d")
    assert [key.hex() for key in opened.plus] == vectors["masks_in_the_sum"]
    assert [key.hex() for key in opened.minus] == vectors["masks_taken_from_the_sum"]
    total, mean = np.zeros(opened.words, np.uint32), np.zeros(5, np.float32)
    for vector in vectors["vectors"].values():
        summation.add_vector(opened.cohort, total, np.frombuffer(bytes.fromhex(vector), np.uint32))
    summation.unmask_total(opened, total)
    assert total.tobytes().hex() == vectors["total"]
    tallies = summation.tallies(opened, total)
    assert tallies.num_examples == vectors["num_examples"] == 10 + 20 + 40
    assert tallies.clipped == (3, 0)
    summation.decode(opened, total, tallies.num_examples, mean)
    assert mean.tolist() == vectors["mean"]
    by_hand = [0.5, -0.25, 1.0, (0 * 10 + 0.125 * 20 + 0.375 * 40) / 70, -1.0]
    assert np.allclose(mean, by_hand, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_a_site_says_what_the_vectors_say(kept, name):
    suite, vectors = kept
    attempt = setting(suite)
    given, promises = attempt.contributions[name], Promises(attempt.spec.ref.run)
    random = drawn(SEED + b"site" + name.encode())
    shapes = [MetricShape(one.name, one.kind) for one in given.metrics]
    state, said = participant.advertise(attempt.cast.sites[name], attempt.spec, shapes, promises, random)
    assert said == messages(vectors, Step.ADVERT)[name]
    assert [one.hex() for one in (state.mask_secret, state.self_secret)] == vectors["sites"][name][
        "mask_secret_self_secret_share_seed"
    ][:2]
    state, said = participant.share(state, messages(vectors, Step.COHORT)[name], promises, random)
    deal = encoding.decode(messages(vectors, Step.SHARES)[name]).deal
    mine, theirs = (encoding.read_deal(one.body) for one in (state.deal, deal))
    assert replace(mine, pieces=()) == replace(theirs, pieces=())  # the boxes in the pieces are sealed anew
    if name == DROPPED:
        return
    ready = participant.receive(replace(state, deal=deal), messages(vectors, Step.DELIVERY)[name], state.promises)
    stream = participant.stream(ready, given.payload, given.num_examples, given.metrics, SEED)
    vector = b"".join(part.tobytes() for part in stream)
    assert vector.hex() == vectors["vectors"][name]
    masked, said = participant.announce(ready, hashlib.sha256(vector).hexdigest())
    assert said == messages(vectors, Step.MASKED)[name]
    consented, said = participant.consent(masked, messages(vectors, Step.SURVIVORS)[name], masked.promises)
    assert said == messages(vectors, Step.CONSENT)[name]
    _, said = participant.unmask(consented, messages(vectors, Step.CONSENTS)[name], consented.promises)
    assert said == messages(vectors, Step.UNMASKING)[name]


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for each in Suite:
        text = json.dumps(document(each), indent=1) + "\n"
        (FOLDER / f"sum_{each.value}.json").write_text(text, "utf-8")
        sys.stdout.write(f"sum_{each.value}.json: {len(text)} bytes\n")
