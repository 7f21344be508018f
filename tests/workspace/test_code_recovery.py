"""Where codes give images back exactly, beside the count of pixels."""

import pytest
from fedveil.gradient_leakage.vae.recovery import predicted_exact_recovery
from fedveil.workspace.benchmarks.code_recovery import Recovered, Series, as_markdown, recover, threshold_of


def recovered(numbers, psnr, *, basis="seeded", rounds=1, target=0):
    prediction = predicted_exact_recovery(numbers, rounds, 784, 1)
    return Recovered(Series(basis, numbers, rounds), target, psnr, 0.0, prediction)


def test_the_threshold_is_above_every_failure_and_counts_all_rounds():
    found = [recovered(588, 90.0), recovered(784, 20.0), recovered(784, 99.0, target=1), recovered(300, 80.0, rounds=4)]
    assert threshold_of(found, "seeded") == 1200
    assert threshold_of(found[:2], "seeded") is None
    assert threshold_of(found, "learned") is None


def test_the_table_says_what_was_predicted_and_where_it_became_exact():
    lines = "\n".join(as_markdown([recovered(196, 15.0), recovered(1568, 95.0), recovered(392, 20.0, rounds=4)]))
    assert "| seeded | 196 | 1 | 196 | 0.25 | not exact | 15.0 |" in lines
    assert "| seeded | 1568 | 1 | 1568 | 2 | exact | 95.0 |" in lines
    assert "nowhere" in lines.splitlines()[-1] or "from" in lines.splitlines()[-1]


@pytest.mark.slow
def test_far_above_the_prediction_an_image_comes_back_exactly_and_far_below_not(real_set):
    real_set("pneumoniamnist/pneumoniamnist.npz")
    few, many = recover((Series("seeded", 98), Series("seeded", 784, rounds=4)), targets=1, iterations=900)
    assert many.is_exact
    assert not few.is_exact
    assert many.prediction.is_exact_recovery_expected
    assert not few.prediction.is_exact_recovery_expected
