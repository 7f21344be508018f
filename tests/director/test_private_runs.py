"""What an experiment may not ask of a plan with differential privacy."""

import dataclasses

import pytest
from fedveil import DifferentialPrivacy
from fedveil.director.experiments import ExperimentSettings
from fedveil.director.private_runs import check_privacy
from fedveil.utils.config import parse_toml
from fedveil.utils.data_spec import DataKind, DataSpec
from fedveil.utils.errors import ConfigError
from fedveil.utils.plan_bundle import Manifest, PlanFile, PlanKind

FILES = tuple(PlanFile(path, 1, "0" * 64) for path in ("plan.py", "layout.json", "initial.safetensors"))
DATA = DataSpec("x", DataKind.TABLE, (3,), ("a", "b"))
PLAIN = Manifest("Plan", PlanKind.TORCH, "plan.py:Plan", FILES, {}, "1" * 64, DATA, "0")
PRIVATE = dataclasses.replace(PLAIN, privacy=DifferentialPrivacy("patient", 1.0, 1.0, 0.1, units=100))
LIMITS = "[rounds]\nmax_rounds = 3\nmin_participants = 4\n"
OFF, EQUAL = 'secure_aggregation = "off"\n', "[secure_sum]\nequal_weights = true\n"
STOP = '[stop]\nmetric = "auc"\npatience = 1\n'


def settings(head="", tables=""):
    return parse_toml(f'name = "x"\n{head}{LIMITS}{tables}', ExperimentSettings, "experiment.toml")


@pytest.mark.parametrize(("head", "tables"), [(OFF, ""), ('secure_aggregation = "required"\n', EQUAL)])
def test_a_private_plan_is_taken_where_every_site_weighs_1_and_no_metric_is_asked_for(head, tables):
    check_privacy(settings(head, tables), PRIVATE, 10)


def test_a_stop_by_a_metric_that_no_site_sends_is_refused():
    with pytest.raises(
        ConfigError, match=r"stop\.metric: plan Plan is trained with differential privacy \(per patient"
    ):
        check_privacy(settings(OFF, STOP), PRIVATE, 10)
    check_privacy(settings(OFF, STOP), PLAIN, 10)


def test_a_secure_sum_weighted_by_the_number_of_examples_is_refused():
    required = 'secure_aggregation = "required"\n'
    with pytest.raises(ConfigError, match="set equal_weights = true"):
        check_privacy(settings(required), PRIVATE, 10)
    check_privacy(settings(required), PLAIN, 10)


def test_client_level_privacy_is_refused_in_a_real_federation_with_the_reason():
    with pytest.raises(ConfigError, match=r"adaptive_clipping: is refused: .* hides a whole hospital"):
        settings(tables="[adaptive_clipping]\nquantile = 0.5\n")
