"""What a plan's evaluation may yield."""

import pytest
from fedveil.envoy.plan_calls import calling, collect_metrics, of_test_split
from fedveil.utils.errors import TrainingError
from fedveil.utils.metrics import MAX_METRICS, mean_of


def test_the_most_that_a_plan_may_yield_fits_one_message_for_both_splits():
    most = [mean_of(f"{number:027}", 1.0, 2.0) for number in range(8)]
    kept = collect_metrics(most * 3, "evaluate")
    both = kept + of_test_split(kept)
    assert len(both) == MAX_METRICS
    assert {len(metric.name) for metric in both} == {27, 32}


@pytest.mark.parametrize("names", [[f"m{number}" for number in range(9)], ["x" * 28]])
def test_more_metrics_or_longer_names_are_refused_where_the_plan_yields_them(names):
    with pytest.raises(TrainingError, match="evaluate yields 8 metrics at most, with names of 27 characters at most"):
        collect_metrics((mean_of(name, 1.0, 2.0) for name in names), "evaluate")


def test_of_what_a_plan_raises_the_nearest_class_of_pythons_own_is_named():
    class Patient17Error(KeyError):
        pass

    with pytest.raises(TrainingError) as caught, calling("train"):
        raise Patient17Error
    assert str(caught.value) == "the plan raised KeyError in train; the site's worker log has the details"


def test_a_name_that_is_none_is_refused_without_being_quoted():
    with pytest.raises(TrainingError, match="the plan raised ValueError in evaluate"):
        collect_metrics((mean_of(name, 1.0, 2.0) for name in ("patient 17",)), "evaluate")
