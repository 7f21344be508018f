"""A site's policy contradicts itself nowhere, and whatever a task asks for can only add to it."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedveil.envoy.config import DEFAULT_CONFIG, EnvoyConfig, load_config, write_default_config
from fedveil.envoy.policy import (
    OPEN_POLICY,
    CodecRule,
    Measures,
    ProtectionPolicy,
    SecureAggregationPolicy,
    Step,
    SumRule,
)
from fedveil.utils.config import parse_toml
from fedveil.utils.errors import ConfigError, StorageError
from fedveil.utils.messages import AskedProtection, EnvoyName, PayloadKind, RunId, Task, TaskKind, TaskRef
from fedveil.utils.metrics import mean_of
from fedveil.utils.secure_sum.rules import SumFloors
from fedveil.utils.secure_sum.terms import NoiseTerms, Suite, SumTerms
from fedveil.utils.tensors import Digest
from hypothesis import given
from hypothesis import strategies as st

PLAN = Digest("ab" * 32)
CODEC = Digest("cd" * 32)
NOTHING = AskedProtection()
CHECK, ENCODE, CLIP, NOISE, AUDIT = Step


def task(asked: AskedProtection = NOTHING, codec: Digest | None = None, terms: SumTerms | None = None) -> Task:
    return Task(
        ref=TaskRef(RunId("lungs-1"), 1, 1, PLAN),
        kind=TaskKind.TRAIN,
        model=PLAN,
        model_bytes=4,
        layout=PLAN,
        seed=bytes(32),
        seconds_left=60.0,
        min_participants=1,
        cohort=(EnvoyName("site-a"),),
        payload=PayloadKind.CODED if codec else PayloadKind.PLAIN,
        codec=codec,
        asked=asked,
        sum=terms,
    )


norms = st.floats(1e-12, 1e6)
multipliers = st.floats(1e-6, 1e3)


@st.composite
def policies(draw: st.DrawFn) -> ProtectionPolicy:
    held = draw(st.sets(st.sampled_from([ENCODE, CLIP, NOISE, AUDIT]))) | {CHECK}
    held |= {CLIP} if NOISE in held else set()
    return ProtectionPolicy(
        tuple(step for step in Step if step in held),
        max_norm=draw(norms) if CLIP in held else None,
        noise_multiplier=draw(multipliers) if NOISE in held else 0.0,
        max_leakage=0.1 if AUDIT in held else None,
    )


@st.composite
def requests(draw: st.DrawFn) -> AskedProtection:
    bound = draw(st.none() | norms)
    return AskedProtection(bound, draw(multipliers | st.just(0.0)) if bound is not None else 0.0)


@given(policies(), requests(), st.booleans())
def test_whatever_a_task_asks_for_it_only_adds(policy, asked, is_coded):
    coded = task(asked, CODEC if is_coded and ENCODE in policy.chain else None)
    measures = policy.with_asked(coded)
    assert set(policy.chain) - {ENCODE} <= set(measures.steps)
    assert measures.encodes is (coded.codec is not None)
    for bound in (policy.max_norm, asked.max_norm):
        assert bound is None or measures.max_norm <= bound
    assert measures.noise_multiplier >= max(policy.noise_multiplier, asked.noise_multiplier)
    assert (measures.max_norm is None) is (CLIP not in measures.steps)
    assert (measures.noise_multiplier == 0) is (NOISE not in measures.steps)
    assert measures.has_noise is (NOISE in measures.steps)


@given(policies(), requests())
def test_the_steps_stand_in_one_order_whoever_asked_for_them(policy, asked):
    steps = policy.with_asked(task(asked)).steps
    assert list(steps) == sorted(steps, key=list(Step).index)
    assert steps[0] is CHECK


def test_worked_figures():
    policy = ProtectionPolicy((CHECK, ENCODE, CLIP, NOISE), max_norm=2.0, noise_multiplier=0.5)
    assert policy.with_asked(task()) == Measures((CHECK, CLIP, NOISE), 2.0, 0.5)
    assert policy.with_asked(task(AskedProtection(1.0, 0.1), CODEC)) == Measures((CHECK, ENCODE, CLIP, NOISE), 1.0, 0.5)
    assert policy.with_asked(task(AskedProtection(9.0, 3.0))) == Measures((CHECK, CLIP, NOISE), 2.0, 3.0)
    assert OPEN_POLICY.with_asked(task(AskedProtection(9.0))) == Measures((CHECK, CLIP), 9.0, 0.0)


@pytest.mark.parametrize("asked", [NOTHING, AskedProtection(0.1), AskedProtection(9.0)])
def test_the_norm_of_a_sums_noise_is_clipped_to_whatever_else_is_asked_for(asked):
    noise = NoiseTerms(0.5, 2.0, 2)
    terms = SumTerms(bounds=(noise.bound,), max_weight=1, equal_weights=True, noise=noise)
    norm = min(0.5, asked.max_norm or 0.5)
    assert OPEN_POLICY.with_asked(task(asked, terms=terms)) == Measures((CHECK, CLIP), norm, 0.0)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "protection.chain: must be given"),
        ("chain = []", r"\[protection\]: chain: the first step must be check"),
        ('chain = ["clip"]\nmax_norm = 1', "the first step must be check"),
        ('chain = ["check", "check"]', "a step comes twice"),
        ('chain = ["check", "clip", "encode"]\nmax_norm = 1', "encode stands after clip"),
        ('chain = ["check", "noise", "clip"]\nmax_norm = 1\nnoise_multiplier = 1', "clip stands after noise"),
        ('chain = ["check", "audit", "encode"]\nmax_leakage = 0.1', "encode stands after audit"),
        ('chain = ["check", "mask"]', r"protection.chain\[1\]: expected one of check, encode, clip, noise, audit"),
        ('chain = ["check", "noise"]\nnoise_multiplier = 1', "noise without clip"),
        ('chain = ["check", "clip"]', "clip needs max_norm"),
        ('chain = ["check"]\nmax_norm = 1', "max_norm is given and the chain has no clip"),
        ('chain = ["check", "clip", "noise"]\nmax_norm = 1', "noise needs noise_multiplier"),
        ('chain = ["check", "clip"]\nmax_norm = 1\nnoise_multiplier = 1', "the chain has no noise"),
        ('chain = ["check", "clip"]\nmax_norm = 0', "max_norm is 0, expected at least"),
        ('chain = ["check", "clip"]\nmax_norm = 1e-45', "max_norm is .*, expected at least"),
        ('chain = ["check", "clip", "noise"]\nmax_norm = 1\nnoise_multiplier = -1', "noise_multiplier is -1"),
        ('chain = ["check"]\ncodec = "required"', 'codec is "required" and the chain does not encode'),
        ('chain = ["check", "encode"]\ncodec = "refused"', 'codec is "refused" and the chain encodes'),
        ('chain = ["check"]\ncodec = "sometimes"', "protection.codec: expected one of allowed, required, refused"),
        ('chain = ["check"]\nmax_leakage = 0.1', "max_leakage is given and the chain has no audit"),
        ('chain = ["check", "audit"]', "audit needs max_leakage"),
        ('chain = ["check", "audit"]\nmax_leakage = 0', "max_leakage is 0"),
        ('chain = ["check"]\naudit_cpu_seconds = 0', "audit_cpu_seconds is 0"),
        ('chain = ["check"]\nmetrics = ["*", "loss"]', "leave the others out"),
        ('chain = ["check"]\nmaxnorm = 1', "protection.maxnorm: is not a setting; did you mean max_norm"),
    ],
)
def test_a_policy_that_contradicts_itself_is_refused_by_name(table, message):
    with pytest.raises(ConfigError, match=message):
        parse_toml(f"[protection]\n{table}", EnvoyConfig, "envoy.toml")


@pytest.mark.parametrize(
    ("policy", "asking", "message"),
    [
        (ProtectionPolicy((CHECK,)), task(codec=CODEC), "has a codec; this site encodes nothing"),
        (ProtectionPolicy((CHECK,), codec=CodecRule.REFUSED), task(codec=CODEC), "this site encodes nothing"),
        (ProtectionPolicy((CHECK, ENCODE), codec=CodecRule.REQUIRED), task(), "this site sends codes alone"),
        (OPEN_POLICY, task(AskedProtection(1e-45)), "the task's max_norm is"),
        (OPEN_POLICY, task(AskedProtection(1.0, 1e300)), "asks for noise beyond"),
    ],
)
def test_a_task_that_asks_for_what_the_site_does_not_do_is_refused(policy, asking, message):
    with pytest.raises(ConfigError, match=message):
        policy.with_asked(asking)


def test_metrics_that_the_policy_does_not_name_stay():
    every = tuple(mean_of(name, 1.0, 2) for name in ("loss", "auc", "test_auc", "patient_17"))
    policy = ProtectionPolicy((CHECK,), metrics=("auc",))
    assert [metric.name for metric in policy.leaving(every)] == ["auc", "test_auc"]
    assert ProtectionPolicy((CHECK,), metrics=()).leaving(every) == ()
    assert OPEN_POLICY.leaving(every) == every


def test_the_words_of_a_chain_tell_any_two_apart():
    first = Measures((CHECK, ENCODE, CLIP), 1.0, 0.0)
    words = [
        first.words(CODEC),
        first.words(PLAN),
        Measures((CHECK, ENCODE, CLIP), 1.0 + 2**-52, 0.0).words(CODEC),
        Measures((CHECK, ENCODE, CLIP, NOISE), 1.0, 1.0).words(CODEC),
        Measures((CHECK, ENCODE, CLIP, NOISE), 1.0, 1.5).words(CODEC),
        Measures((CHECK, CLIP), 1.0, 0.0).words(None),
    ]
    assert words[0] == f"check, encode {CODEC}, clip 1"
    assert len(set(words)) == len(words)


def test_the_settings_that_joining_writes_are_those_of_the_open_policy(tmp_path: Path):
    assert write_default_config(tmp_path)
    assert load_config(tmp_path).protection == OPEN_POLICY
    assert parse_toml(DEFAULT_CONFIG, EnvoyConfig, "x") == EnvoyConfig(protection=OPEN_POLICY)


def test_joining_overwrites_no_settings(tmp_path: Path):
    file = tmp_path / "envoy.toml"
    file.write_text("# the site's own")
    assert not write_default_config(tmp_path)
    assert file.read_text() == "# the site's own"


def test_settings_that_cannot_be_written_are_said_so(tmp_path: Path):
    with pytest.raises(StorageError, match=r"envoy\.toml: cannot be written"):
        write_default_config(tmp_path / "nowhere")


def test_the_example_of_a_whole_chain_is_one_that_is_taken():
    table = (
        'chain = ["check", "encode", "clip", "noise", "audit"]\nmax_norm = 1.0\nnoise_multiplier = 0.5\n'
        'codec = "required"\nmetrics = []\nmax_leakage = 0.1\ncanaries = "canaries.npz"\naudit_cpu_seconds = 30\n'
        "structure_check = false\n"
    )
    policy = parse_toml(f"[protection]\n{table}", EnvoyConfig, "envoy.toml").protection
    assert policy == ProtectionPolicy(
        tuple(Step), 1.0, 0.5, CodecRule.REQUIRED, (), 0.1, Path("canaries.npz"), 30.0, structure_check=False
    )


# secure sums


def secure(table: str) -> SecureAggregationPolicy:
    return parse_toml(f"[secure_aggregation]\n{table}", EnvoyConfig, "envoy.toml").secure_aggregation


def test_a_site_that_says_nothing_of_secure_sums_takes_part_in_nothing_else():
    policy = parse_toml("", EnvoyConfig, "envoy.toml").secure_aggregation
    assert policy.rule is SumRule.REQUIRED
    assert policy == secure("") == secure('rule = "required"')
    assert policy.floors == SumFloors()
    with pytest.raises(
        ConfigError, match=r'this site takes part in secure sums alone .*secure_aggregation = "required"'
    ):
        policy.check(task())


def test_where_it_is_allowed_a_task_in_the_clear_is_done():
    secure('rule = "allowed"').check(task())


def test_every_floor_can_be_set():
    policy = secure(
        'min_organizations = 5\ncolluding = 2\nhonest = 3\nsuites = ["x25519"]\nmax_differing_sums = 0\n'
        'aggregators = ["director", "site-x"]\n'
    )
    assert policy.floors == SumFloors(5, 2, 3, (Suite.X25519,), 0)
    policy.check(task(terms=SumTerms(suite=Suite.X25519, aggregator="site-x")))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("min_organizations = 2", "min_organizations is 2, expected 3"),
        ("colluding = -1", "colluding is -1"),
        ("honest = 1", "honest is 1, expected 2"),
        ("suites = []", "suites is empty"),
        ('suites = ["rot13"]', r"suites\[0\]: expected one of mlkem768-x25519, x25519"),
        ("max_differing_sums = -1", "max_differing_sums is -1"),
        ("aggregators = []", "aggregators is empty"),
        ('aggregators = ["Not A Name"]', "neither 'director' nor an envoy's name"),
        ('rule = "off"', "rule: expected one of required, allowed"),
    ],
)
def test_a_floor_that_makes_no_sum_is_refused_by_name(table: str, words: str):
    with pytest.raises(ConfigError, match=words):
        secure(table)


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        (SumTerms(suite=Suite.X25519), "seals with x25519; this site takes mlkem768-x25519"),
        (SumTerms(aggregator="site-x"), "is summed by site-x; this site takes part in sums of director"),
    ],
)
def test_terms_below_the_sites_are_refused_before_any_work(terms: SumTerms, words: str):
    with pytest.raises(ConfigError, match=words):
        secure("").check(task(terms=terms))
