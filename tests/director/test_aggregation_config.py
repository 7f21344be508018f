"""[aggregation_config] says what [rounds] and secure_aggregation say, or is refused."""

import pytest
from fedveil.director.experiments import ExperimentSettings
from fedveil.director.sum_settings import SecureAggregation
from fedveil.utils.config import parse_toml
from fedveil.utils.errors import ConfigError

WHOLE = """
name = "toy"
[aggregation_config]
min_participants = 3
aggregation_method = "secure_sum"
timeout_minutes = 30
max_rounds = 50
[privacy_budget]
epsilon = 1.5
delta = 1e-5
mechanism = "gaussian"
"""


def read(text: str) -> ExperimentSettings:
    return parse_toml(text, ExperimentSettings, "experiment.toml")


def test_it_is_taken_as_it_is_and_is_what_the_native_tables_say():
    found = read(WHOLE)
    assert (found.rounds.min_participants, found.rounds.max_rounds, found.rounds.round_timeout_seconds) == (3, 50, 1800)
    assert found.secure_aggregation is SecureAggregation.REQUIRED
    assert found.privacy_budget.epsilon == 1.5
    native = 'name = "toy"\n[rounds]\nmin_participants = 3\nmax_rounds = 50\nround_timeout_seconds = 1800\n'
    assert found.rounds == read(native).rounds


def test_both_may_say_the_same_and_the_native_table_may_say_more():
    found = read(WHOLE + "[rounds]\nmax_rounds = 50\nmax_attempts = 2\n")
    assert (found.rounds.max_rounds, found.rounds.max_attempts) == (50, 2)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("[rounds]\nmax_rounds = 49\n", ["aggregation_config.max_rounds", "rounds.max_rounds"]),
        ("[rounds]\nmin_participants = 4\n", ["aggregation_config.min_participants", "rounds.min_participants"]),
        ("[rounds]\nround_timeout_seconds = 30\n", ["timeout_minutes (1800 s)", "rounds.round_timeout_seconds"]),
    ],
)
def test_a_contradiction_is_refused_with_both_named(more, words):
    with pytest.raises(ConfigError) as refused:
        read(WHOLE + more)
    assert [word for word in [*words, "experiment.toml"] if word not in str(refused.value)] == []


def test_a_secure_sum_in_the_clear_is_a_contradiction():
    with pytest.raises(ConfigError, match=r"aggregation_config\.aggregation_method and secure_aggregation contradict"):
        read('secure_aggregation = "off"\n' + WHOLE)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("max_rounds = 50", 'max_rounds = "50"', "aggregation_config.max_rounds: expected a whole number"),
        ("max_rounds = 50", "max_rounds = true", "aggregation_config.max_rounds: expected a whole number"),
        ("max_rounds = 50", "max_rounds = 0", "max_rounds is 0"),
        ("max_rounds = 50", "", "rounds.max_rounds must be given"),
        ("timeout_minutes = 30", "timeout_minutes = -1", "round_timeout_seconds is -60"),
        ('"secure_sum"', '"median"', "expected one of secure_sum"),
        ('"gaussian"', '"laplace"', "expected one of gaussian, skellam"),
        ('"gaussian"', '"skellam"', "secure_sum.noise_multiplier"),
        ("epsilon = 1.5", "epsilon = -1", "epsilon is -1"),
        ("epsilon = 1.5", "", "privacy_budget.epsilon must be given"),
        ("max_rounds = 50", "rounds = 50", "aggregation_config.rounds is not a setting"),
    ],
)
def test_what_is_none_is_refused_by_its_name(before, after, words):
    with pytest.raises(ConfigError) as refused:
        read(WHOLE.replace(before, after))
    assert words in str(refused.value).replace(": must", " must").replace(": is not", " is not")


def test_a_table_that_is_no_table_is_refused():
    with pytest.raises(ConfigError, match="aggregation_config: expected a table"):
        read('name = "toy"\naggregation_config = 3\n[rounds]\nmax_rounds = 1\nmin_participants = 3\n')
