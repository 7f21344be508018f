"""experiment.toml: read strictly; contradictions are refused with the reason."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from fedveil.director.experiments import CodecSettings, ExperimentSettings, RoundSettings, StopSettings
from fedveil.director.rounds import RoundPolicy, Stragglers
from fedveil.director.server_optimizer import OptimizerName, ServerOptimizer
from fedveil.director.stop_rule import Mode, StopRule
from fedveil.director.sum_settings import SecureAggregation, SecureSumSettings
from fedveil.utils.aggregation import Aggregation, Method
from fedveil.utils.config import parse_toml
from fedveil.utils.errors import ConfigError
from fedveil.utils.messages import AskedProtection
from fedveil.utils.secure_sum.terms import Suite

SMALL = """
name = "pneumonia"
[rounds]
max_rounds = 10
min_participants = 3
"""
OFF = 'secure_aggregation = "off"\n'
NOISE = "[secure_sum]\nequal_weights = true\nnoise_multiplier = 1\n"

WHOLE = """
name = "pneumonia-2"
plan = "bundle"
seed = "the fifth try"
secure_aggregation = "off"

[rounds]
max_rounds = 20
min_participants = 5
cohort_size = 6
round_timeout_seconds = 30
stragglers = "drop"
max_attempts = 2

[aggregation]
method = "krum"
byzantine = 1

[server_optimizer]
name = "fedadam"
learning_rate = 0.03
beta1 = 0.8
beta2 = 0.95
tau = 1e-4

[stop]
metric = "loss"
mode = "min"
patience = 3
min_delta = 0.01
wall_clock_seconds = 3600
"""

DIGEST = "0f" * 32
CODED = SMALL + f'[codec]\ndigest = "{DIGEST}"\n'


def parse(text: str) -> ExperimentSettings:
    return parse_toml(text, ExperimentSettings, "experiment.toml")


def test_the_smallest_experiment_has_defaults_for_the_rest() -> None:
    settings = parse(SMALL)
    assert settings == ExperimentSettings("pneumonia", RoundSettings(10, 3))
    assert settings.round_policy == RoundPolicy(3, 600.0, Stragglers.WAIT)
    assert settings.stop_rule == StopRule(10)
    assert settings.aggregation.method is Method.WEIGHTED_MEAN
    assert settings.server_optimizer.moments == ()
    assert settings.seed_bytes is None


def test_every_key_is_read() -> None:
    settings = parse(WHOLE)
    assert settings == ExperimentSettings(
        "pneumonia-2",
        RoundSettings(20, 5, 6, 30.0, Stragglers.DROP, 2),
        "bundle",
        "the fifth try",
        Aggregation(Method.KRUM, byzantine=1),
        ServerOptimizer(OptimizerName.FEDADAM, 0.03, beta1=0.8, beta2=0.95, tau=1e-4),
        StopSettings("loss", Mode.MIN, 3, 0.01, 3600.0),
        secure_aggregation=SecureAggregation.OFF,
    )
    assert settings.round_policy == RoundPolicy(5, 30.0, Stragglers.DROP)
    assert settings.stop_rule == StopRule(20, "loss", Mode.MIN, 3, 0.01, 3600.0)


def test_a_codec_is_named_by_its_digest_and_lies_beside_the_experiment_unless_it_is_said_otherwise() -> None:
    assert parse(SMALL).codec is None
    assert parse(CODED).codec == CodecSettings(DIGEST, Path("codec.safetensors"))
    assert parse(CODED + 'file = "codecs/x100.safetensors"').codec == CodecSettings(
        DIGEST, Path("codecs/x100.safetensors")
    )


def test_what_the_sites_are_asked_to_add_is_nothing_unless_it_is_said() -> None:
    assert parse(SMALL).protection == AskedProtection(None, 0.0)
    text = SMALL + "[protection]\nmax_norm = 2\nnoise_multiplier = 0.5\n"
    assert parse(text).protection == AskedProtection(2.0, 0.5)
    assert parse(SMALL + "[protection]\nmax_norm = 2\n").protection == AskedProtection(2.0)


def test_a_seed_is_hexadecimal_or_any_text() -> None:
    assert parse(f'seed = "{"0f" * 32}"' + SMALL).seed_bytes == b"\x0f" * 32
    assert parse('seed = "7"' + SMALL).seed_bytes == hashlib.sha256(b"7").digest()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SMALL.replace("pneumonia", "Pneumonia 1"), "name: expected 1 to 56 lower-case"),
        (SMALL.replace("pneumonia", ""), "name: expected 1 to 56 lower-case"),
        ('seed = ""' + SMALL, "seed is empty"),
        (SMALL.replace("pneumonia", "a" * 57), "name: expected 1 to 56 lower-case"),  # RUN-NUMBER must be a name
        ('name = "a"', "rounds: must be given"),
        ('name = "a"\n[rounds]\nmax_rounds = 3', "rounds.min_participants: must be given"),
        (SMALL + "min_participant = 3", "did you mean min_participants"),
        (SMALL.replace("= 3", "= 0"), r"\[rounds\]: min_participants is 0, expected at least 1"),
        (SMALL.replace("= 10", "= 0"), "max_rounds is 0, expected at least 1"),
        (SMALL.replace("= 10", "= 100001"), "at most 100000"),
        (SMALL + "max_attempts = 0", "max_attempts is 0"),
        (SMALL + "round_timeout_seconds = 0", "round_timeout_seconds is 0"),
        (SMALL + "round_timeout_seconds = 1e9", "expected more than 0 and at most 30 days"),
        (SMALL + "round_timeout_seconds = inf", "round_timeout_seconds: .*finite"),
        (SMALL + "cohort_size = 1", "cohort_size is 1, which cannot give the 3 answers of min_participants"),
        (SMALL + '[aggregation]\nmethod = "krum"\nbyzantine = 2', "krum needs 7 updates as it is set, and rounds.min"),
        (SMALL + '[aggregation]\nmethod = "trimmed_mean"\ntrim_fraction = 0.1', "needs 10 updates"),
        (SMALL + "[aggregation]\nmax_norm = 3.0", r"\[aggregation\]: max_norm belongs to norm_bounding"),
        (SMALL + "[server_optimizer]\ntau = 1.0", r"\[server_optimizer\]: tau is given, and fedavg has none"),
        (SMALL + "[stop]\npatience = 3", r"\[stop\]: patience is given without metric"),
        (SMALL + "[codec]", "codec.digest: must be given"),
        (SMALL + '[codec]\ndigest = "abc"', r"\[codec\]: digest is 'abc', expected 64 lower-case hexadecimal"),
        (CODED.replace("0f", "0F"), "expected 64 lower-case hexadecimal"),
        (CODED + 'file = ""', "file is empty"),
        (CODED + "ratio = 100", "codec.ratio: is not a setting"),  # of the file, not of the experiment
        (
            SMALL + "[protection]\nnoise_multiplier = 1",
            r"\[protection\]: noise_multiplier is 1 and max_norm is not given",
        ),
        (SMALL + "[protection]\nmax_norm = 0", "max_norm is 0, expected more than 0"),
        (SMALL + "[protection]\nmax_norm = -1.5", "max_norm is -1.5, expected more than 0"),
        (SMALL + "[protection]\nmax_norm = 1\nnoise_multiplier = -1", "noise_multiplier is -1, expected at least 0"),
        (SMALL + "[protection]\nmax_norm = nan", "protection.max_norm: expected a finite number"),
        (SMALL + "[protection]\nmax_norms = 1", "did you mean max_norm"),
        (SMALL + '[stop]\nmetric = "auc"\npatience = 10', "can never end a run of 10 rounds"),
    ],
)
def test_what_contradicts_is_refused_with_the_reason(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(text)


@pytest.mark.parametrize(
    "keys",
    [
        'method = "coordinate_median"',
        'method = "trimmed_mean"\ntrim_fraction = 0.1',
        'method = "krum"\nbyzantine = 1',
        'method = "multi_krum"\nbyzantine = 1',
        'method = "norm_bounding"\nmax_norm = 1.0',
    ],
)
def test_a_rule_that_judges_updates_is_refused_where_the_director_has_codes(keys: str) -> None:
    text = OFF + SMALL.replace("= 3", "= 10") + f"[aggregation]\n{keys}\n"
    assert parse(text).codec is None
    with pytest.raises(ConfigError, match=r"the director has codes alone; use weighted_mean, or leave \[codec\] out"):
        parse(text + f'[codec]\ndigest = "{DIGEST}"\n')


def test_secure_aggregation_is_required_unless_an_experiment_says_otherwise() -> None:
    assert parse(SMALL).is_secure
    assert not parse(OFF + SMALL).is_secure
    assert parse(SMALL).secure_sum == SecureSumSettings()
    text = SMALL + '[secure_sum]\nsuite = "x25519"\nmax_examples = 500\nclip = 0.5\ncolluding = 2\nhonest = 3\n'
    asked = parse(text + "stage_timeout_seconds = 5\n").secure_sum
    assert asked == SecureSumSettings(Suite.X25519, 500, 0.5, 2, 3, stage_timeout_seconds=5.0)
    assert asked.max_weight == 500
    equal = parse(SMALL + "[secure_sum]\nequal_weights = true\n")
    assert equal.secure_sum.max_weight == 1
    assert not equal.wants_final_evaluation  # there would be no metrics
    assert parse(SMALL).wants_final_evaluation
    assert parse(SMALL + '[secure_sum]\naggregator = "envoy:site-c"\n').secure_sum.summing_envoy == "site-c"


GROUPED = SMALL.replace("= 3", "= 9") + "[secure_sum]\ngroups = 3\n"
MEDIAN = '[aggregation]\nmethod = "coordinate_median"\n'
TRIMMED = '[aggregation]\nmethod = "trimmed_mean"\ntrim_fraction = 0.25\n'


def test_a_rule_over_groups_that_are_summed_apart_is_asked_for_with_the_number_of_groups() -> None:
    assert parse(GROUPED + MEDIAN).secure_sum.groups == 3
    assert parse(GROUPED + MEDIAN).group_quorum == 3
    wider = GROUPED.replace("groups = 3", "groups = 5").replace("= 9", "= 12")
    assert parse(wider + TRIMMED).group_quorum == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GROUPED.replace("groups = 3", "groups = 2") + MEDIAN, "groups is 2, expected 3 at least"),
        (GROUPED.replace("groups = 3", "groups = -3") + MEDIAN, "groups is -3, expected 3 at least"),
        (GROUPED, "groups is 3, and aggregation.method weighted_mean is no rule over groups"),
        (GROUPED + '[aggregation]\nmethod = "krum"\nbyzantine = 1', "method krum is no rule over groups"),
        (GROUPED + TRIMMED, "method trimmed_mean needs 4 groups as it is set, and secure_sum.groups is 3"),
        (GROUPED.replace("= 9", "= 8") + MEDIAN, "min_participants is 8, and 3 groups of 3 .* raise it to 9 or more"),
        (GROUPED + "honest = 3\n" + MEDIAN, "3 groups of 4 organizations .* raise it to 12 or more"),
        (GROUPED.replace("= 9", "= 9\ncohort_size = 9") + MEDIAN, "cohort_size draws other envoys each round"),
        (GROUPED + 'aggregator = "envoy:site-c"\n' + MEDIAN, "an aggregator elsewhere opens one sum a round"),
        (GROUPED + MEDIAN + f'[codec]\ndigest = "{"ab" * 32}"\n', "with \\[codec\\] the director has codes alone"),
        ('secure_aggregation = "off"\n' + GROUPED + MEDIAN, "groups with secure_aggregation = .off."),
        (SMALL + MEDIAN, "with secure_sum.groups over the sums of groups"),
    ],
)
def test_groups_that_cannot_be_are_refused_with_the_reason(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SMALL.replace("= 3", "= 2"), "min_participants is 2, and under secure aggregation .* raise it to 3 or more"),
        (SMALL.replace("= 3", "= 1"), 'or say secure_aggregation = "off"'),
        (SMALL + '[aggregation]\nmethod = "coordinate_median"', "coordinate_median compares single updates"),
        (SMALL + '[aggregation]\nmethod = "norm_bounding"\nmax_norm = 1', "norm_bounding compares single updates"),
        ('secure_aggregation = "maybe"' + SMALL, "secure_aggregation: expected one of required, off"),
        (SMALL + '[secure_sum]\nsuite = "rot13"', "expected one of mlkem768-x25519, x25519"),
        (SMALL + "[secure_sum]\nmax_examples = 0", "max_examples is 0"),
        (SMALL + "[secure_sum]\nmax_examples = 2000000", "expected 1 to 1048576"),
        (SMALL + "[secure_sum]\nclip = 0", "clip is 0"),
        (SMALL + "[secure_sum]\ncolluding = -1", "colluding is -1"),
        (SMALL + "[secure_sum]\nhonest = 1", "honest is 1, expected at least 2"),
        (SMALL + "[secure_sum]\nstage_timeout_seconds = 0", "stage_timeout_seconds is 0"),
        (SMALL + '[secure_sum]\naggregator = "site-c"', 'expected "director" or "envoy:NAME"'),
        (SMALL + '[secure_sum]\naggregator = "envoy:../c"', 'expected "director" or "envoy:NAME"'),
        (SMALL + '[secure_sum]\nequal_weights = true\n[stop]\nmetric = "loss"\npatience = 2', "the sites send none"),
        (SMALL + "[secure_sum]\nnoise_multiplier = 1", "without equal_weights; .* set equal_weights = true"),
        (SMALL + NOISE, r"protection\.max_norm is not given; .* give max_norm in \[protection\]"),
        (SMALL + NOISE + "[protection]\nmax_norm = 1\nnoise_multiplier = 1", "leave one of them out"),
        (SMALL + NOISE.replace("= 1", "= 99") + "[protection]\nmax_norm = 1", "noise_multiplier is 99, expected 0 for"),
        (SMALL + NOISE + "groups = 3", "groups is 3 and noise_multiplier 1; .* leave one of them out"),
        (SMALL + NOISE + "[protection]\nmax_norm = 1e-30", "max_norm of a secure sum's noise is 1e-30"),
        (SMALL + NOISE + "colluding = 2\n[protection]\nmax_norm = 1", r"have no threshold: raise rounds\.min_part"),
    ],
)
def test_what_a_sum_alone_cannot_give_is_refused_with_the_reason(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(text)
