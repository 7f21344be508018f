"""A hundred sites with real masks, in the post-quantum suite: 33 drop out, at every step; what is left is the sum."""

import numpy as np
import pytest
from fedveil.utils.secure_sum.rehearsal import ENVOY_STEPS, Step, plain_total
from fedveil.utils.secure_sum.terms import SumTerms

STEPS = [step for step in ENVOY_STEPS if step is not Step.ADVERT]
DROPS = {f"site-{place:02d}": STEPS[place % 4] for place in range(0, 99, 3)}


@pytest.mark.slow
def test_of_a_hundred_sites_thirty_three_may_drop_out_and_each_says_at_most_256_kib_beside_its_vector(network):
    attempt = network(100, terms=SumTerms(bounds=(1.0,), max_weight=1000), drops=DROPS)
    outcome = attempt.run()
    assert len(DROPS) == 33
    assert outcome.aborted is None
    assert outcome.refusals == {}
    assert outcome.opened.cohort.threshold == 67
    assert len(outcome.survivors) == 100 - sum(step in STEPS[:2] for step in DROPS.values())

    expected = plain_total(outcome.opened.cohort, attempt.contributions, outcome.survivors, attempt.seed)
    assert np.array_equal(outcome.total, expected)
    given = [attempt.contributions[name] for name in outcome.survivors]
    weight = sum(one.num_examples for one in given)
    clipped = (np.clip(one.payload.astype(np.float64), -1, 1) * one.num_examples / weight for one in given)
    step = attempt.spec.max_total / weight / (1 << 30)
    assert np.abs(outcome.mean - sum(clipped)).max() <= len(given) * step + 1e-7

    said = dict.fromkeys(set(attempt.cast.names) - DROPS.keys(), 0)
    for _, name, content in outcome.upward:
        said[name] = said.get(name, 0) + len(content)
    assert max(said.values()) <= 256 * 1024
