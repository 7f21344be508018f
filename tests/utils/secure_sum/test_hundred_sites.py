"""A hundred sites with real masks: 33 drop out, at every step, and what is left is the sum to the bit."""

import numpy as np
import pytest
from fedveil.utils.secure_sum.rehearsal import ENVOY_STEPS, Step, plain_total
from fedveil.utils.secure_sum.terms import SumTerms


@pytest.mark.slow
def test_of_a_hundred_sites_thirty_three_may_drop_out(network):
    steps = [step for step in ENVOY_STEPS if step is not Step.ADVERT]
    drops = {f"site-{place:02d}": steps[place % 4] for place in range(0, 99, 3)}
    attempt = network(100, drops=drops)
    outcome = attempt.run()
    assert len(drops) == 33
    assert outcome.aborted is None
    assert outcome.refusals == {}
    assert outcome.opened.cohort.threshold == 67
    assert len(outcome.survivors) == 100 - sum(step in steps[:2] for step in drops.values())
    expected = plain_total(outcome.opened.cohort, attempt.contributions, outcome.survivors, attempt.seed)
    assert np.array_equal(outcome.total, expected)
    given = [attempt.contributions[name] for name in outcome.survivors]
    weight = sum(one.num_examples for one in given)
    clipped = (np.clip(one.payload.astype(np.float64), -1, 1) * one.num_examples / weight for one in given)
    step = attempt.spec.max_total / weight / (1 << 30)
    assert np.abs(outcome.mean - sum(clipped)).max() <= len(given) * step + 1e-7


@pytest.mark.slow
def test_the_control_messages_of_a_site_among_a_hundred_take_at_most_256_kib(network):
    """In the post-quantum suite, of what each site says in all steps together; and the vector is 4 bytes a word."""
    terms = SumTerms(bounds=(1.0,), max_weight=1000)
    outcome = network(100, terms=terms).run()
    said = dict.fromkeys(outcome.survivors, 0)
    for _, name, content in outcome.upward:
        said[name] += len(content)
    assert len(said) == 100
    assert max(said.values()) <= 256 * 1024
