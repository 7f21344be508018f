"""The smoke test of a director's view: it finds what is planted, is quiet where masks are right, and proves nothing.

Masks come from the project's own keystream; the broken ones are planted here. All keys are fixed: nothing is by chance.
"""

import hashlib
import math
from itertools import combinations

import numpy as np
import pytest
from fedveil.gradient_leakage.defenses.scalar_mask import scalar_masks
from fedveil.gradient_leakage.server_view import (
    LEVEL,
    Look,
    SmokeTest,
    correlation,
    least_correlation,
    smoke_test,
    two_inputs,
)
from fedveil.utils.errors import ConfigError
from fedveil.utils.secure_sum.masks import Masker
from fedveil.utils.secure_sum.rehearsal import Contribution, Network, cast_of, spec_for
from fedveil.utils.secure_sum.terms import Suite, SumTerms

SITES = ("site-a", "site-b", "site-c", "site-d")
WORDS = 25_000


def key(*words):
    return hashlib.sha256(repr(words).encode()).digest()


def updates(words, seed=0, sites=SITES, scale=2.0**20):
    """As a site's: mostly small, some large; integers."""
    rng = np.random.default_rng(seed)
    return {site: np.rint(scale * rng.standard_t(3, words)).astype(np.int64) for site in sites}


def masked(truth, round_, own=True, keys=key, known=()):
    """Each vector under its own mask and those of its pairs; without the masks that somebody in ``known`` has."""
    vectors = {}
    for site, update in truth.items():
        plus = [keys(round_, site)] if own else []
        plus += [keys(round_, site, other) for other in truth if site < other and other not in known]
        minus = [keys(round_, other, site) for other in truth if other < site and other not in known]
        vectors[site] = update.astype(np.uint32)
        Masker(plus, minus).apply(vectors[site])
    return vectors


def found(rounds, truths=()):
    """The kinds of looks that found something."""
    return {look.kind for look in smoke_test(rounds, truths).findings}


@pytest.mark.parametrize("own", [True, False], ids=["as they arrived", "own masks taken away, as after unmasking"])
def test_right_masks_show_nothing(own):
    truths = [updates(WORDS, seed) for seed in (0, 1)]
    seen = [masked(truth, number, own) for number, truth in enumerate(truths)]
    test = smoke_test(seen, truths)
    assert not test.findings
    assert len(test.looks) > 300
    assert min(look.p_value for look in test.looks) > 1e-5  # nor is it near


def test_the_sum_of_all_sites_is_what_a_director_learns():
    truth = updates(WORDS)
    total = sum(masked(truth, 0, own=False).values())
    assert correlation(total, sum(truth.values())) > 0.9999


def test_p_values_of_right_masks_are_as_even_as_they_should_be():
    truths = updates(2000)
    looks = [look for n in range(20) for look in smoke_test([masked(truths, n)], [truths]).looks]
    share = np.mean([look.p_value < 0.05 for look in looks if look.kind.startswith("bytes, each")])
    assert 0.02 < share < 0.09
    bounds = np.mean([look.p_value < 0.05 for look in looks if look.kind.startswith("correlation")])
    assert bounds < 0.05  # these are upper bounds


@pytest.mark.parametrize("words", [100, 2000, WORDS])
@pytest.mark.parametrize("in_ring", [False, True], ids=["floats, as OpenFL 1.9", "the same in the ring"])
def test_one_scalar_as_a_mask_is_found(words, in_ring):
    truth = updates(words)
    if in_ring:
        seen = {s: (u + int.from_bytes(key(s)[:4], "big")).astype(np.uint32) for s, u in truth.items()}
    else:
        truth = {s: (u * 1e-9).astype(np.float32) for s, u in truth.items()}
        numbers = scalar_masks(len(SITES), np.random.default_rng(0))
        seen = {s: u + np.float32(n) for (s, u), n in zip(truth.items(), numbers, strict=True)}
        np.testing.assert_allclose(sum(numbers), sum(np.random.default_rng(0).random(20)[16:]))  # the pairs' cancel
    kinds = {"correlation, each vector"} | ({"correlation, words apart"} if words > 100 else set())
    assert kinds <= found([seen], [truth])


def test_one_scalar_as_a_mask_is_found_without_the_truth():
    truth = updates(WORDS)
    seen = {s: (u + int.from_bytes(key(s)[:4], "big")).astype(np.uint32) for s, u in truth.items()}
    assert "bytes, each vector" in found([seen])


@pytest.mark.parametrize("words", [100, WORDS])
def test_masks_of_one_round_used_in_another_are_found(words):
    truths = [updates(words, seed) for seed in (0, 1)]
    seen = [masked(truth, 0) for truth in truths]
    assert found(seen, truths) >= {"correlation, over rounds"}
    assert not found(seen[:1], truths[:1])  # one round alone does not show it
    if words == WORDS:
        assert found(seen) == {"bytes, over rounds"}  # an auditor without the truth sees it too


def test_one_pair_seed_used_twice_is_found_by_a_coalition_of_all_others_alone():
    truths = [updates(2000, seed) for seed in (0, 1)]

    def keys(round_, *who):
        return key("both", *who) if who == ("site-a", "site-b") else key(round_, *who)

    seen = [masked(truth, number, False, keys) for number, truth in enumerate(truths)]
    assert not found(seen, truths)
    stripped = [
        {s: v for s, v in masked(truth, number, False, keys, ("site-c", "site-d")).items() if s < "site-c"}
        for number, truth in enumerate(truths)
    ]
    honest = [{s: truth[s] for s in ("site-a", "site-b")} for truth in truths]
    assert found(stripped, honest) >= {"correlation, over rounds"}
    fresh = [
        {s: v for s, v in masked(truth, number, False, key, ("site-c", "site-d")).items() if s < "site-c"}
        for number, truth in enumerate(truths)
    ]
    assert not found(fresh, honest)


@pytest.mark.parametrize("words", [100, WORDS])
def test_two_sites_under_one_mask_and_some_whose_masks_cancel_are_found(words):
    truth = updates(words)
    right = masked(truth, 0)
    mask = right["site-a"] - truth["site-a"].astype(np.uint32)
    same = right | {"site-b": truth["site-b"].astype(np.uint32) + mask}
    assert "correlation, differences of two" in found([same], [truth])
    opposite = right | {"site-b": truth["site-b"].astype(np.uint32) - mask}
    assert "correlation, sums of some" in found([opposite], [truth])


@pytest.mark.parametrize("period", [1, 4, 1 << 14, 1 << 18])
def test_a_mask_that_begins_anew_is_found(period):
    truth = updates(max(200, period + 100))
    seen = masked(truth, 0)
    mask = (seen["site-a"] - truth["site-a"].astype(np.uint32))[:period]
    seen["site-a"] = truth["site-a"].astype(np.uint32) + np.resize(mask, truth["site-a"].size)
    assert "correlation, words apart" in found([seen], [truth])


def test_every_hundredth_word_without_a_mask_is_found_and_every_thousandth_is_not():
    truth = updates(WORDS)
    right, rng = masked(truth, 0), np.random.default_rng(0)

    def bare(share):
        chosen = rng.random(WORDS) < share
        return {s: np.where(chosen, truth[s].astype(np.uint32), v) for s, v in right.items()}

    assert "bytes, each vector" in found([bare(0.01)], [truth])
    assert not found([bare(0.001)], [truth])  # what it cannot see


def test_a_biased_bit_of_the_mask_is_found_from_five_points_on():
    truth, rng = updates(WORDS), np.random.default_rng(0)

    def biased(points):
        even = rng.integers(0, 1 << 31, (len(SITES), WORDS), np.uint32)
        high = (rng.random((len(SITES), WORDS)) < 0.5 + points / 100).astype(np.uint32) << np.uint32(31)
        return {s: truth[s].astype(np.uint32) + mask for s, mask in zip(SITES, even + high, strict=True)}

    assert "bytes, each vector" in found([biased(5)])
    assert not found([biased(1)])  # what it cannot see


def test_a_linear_share_of_the_update_is_found_from_the_stated_correlation_on():
    truth, rng = updates(WORDS), np.random.default_rng(0)
    least = least_correlation(WORDS, len(smoke_test([masked(truth, 0)], [truth]).looks))
    assert 0.04 < least < 0.05

    def leaking(share):
        whole = {}
        for site, update in truth.items():
            noise, part = rng.standard_normal(WORDS), update / update.std()
            whole[site] = (share * part + math.sqrt(1 - share**2) * noise).astype(np.float32)
        test = smoke_test([whole], [truth])
        return {look.kind for look in test.findings if not look.kind.startswith("bytes")}

    assert "correlation, each vector" in leaking(1.3 * least)
    assert not leaking(0.3 * least)


def test_it_is_no_proof_masks_of_32_bit_seeds_pass():
    """Whoever tries 2^32 seeds opens these; no statistic of this kind sees it."""
    truths = [updates(WORDS, seed) for seed in (0, 1)]

    def short(round_, *who):
        return hashlib.sha256(key(round_, *who)[:4]).digest()

    assert not found([masked(truth, n, True, short) for n, truth in enumerate(truths)], truths)


def test_vectors_of_other_lengths_or_truths_of_others_are_refused():
    truth = updates(200)
    with pytest.raises(ConfigError, match="lengths"):
        smoke_test([masked(truth, 0), masked(updates(300), 1)])
    with pytest.raises(ConfigError, match="expected some"):
        smoke_test([])
    with pytest.raises(ConfigError, match="other rounds or sites"):
        smoke_test([masked(truth, 0)], [updates(200, sites=SITES[:3])])


def test_findings_are_holms():
    looks = tuple(Look("k", str(n), 0, p, 1) for n, p in enumerate((0.011, 0.04, 0.9)))
    assert [look.of for look in SmokeTest(looks, 0.05).findings] == ["0"]
    looks = tuple(Look("k", str(n), 0, p, 1) for n, p in enumerate((0.012, 0.02, 0.049)))
    assert len(SmokeTest(looks, 0.05).findings) == 3
    assert LEVEL <= 1e-6


# Two inputs on a small ring.

FIRST = np.array([[0] * 16, [0] * 16, [7] * 16], np.uint32)
SECOND = np.array([[5] * 16, [2] * 16, [0] * 16], np.uint32)


def sums(keys=key, own=False):
    def view(given, number):
        truth = {site: given[place].astype(np.int64) for place, site in enumerate(SITES[: len(given)])}
        return np.stack(list(masked(truth, number, own, keys).values()))

    return view


@pytest.mark.parametrize("own", [True, False])
def test_what_is_seen_of_a_sum_does_not_tell_which_of_two_inputs_of_one_total_went_in(own):
    test = two_inputs(sums(own=own), FIRST, SECOND, 400)
    assert not test.findings
    assert {len(kind) for kind in test.by_kind().values()} == {3, 7}


def test_two_inputs_are_told_apart_where_a_mask_is_missing_or_used_again():
    def without_one_pair(round_, *who):
        return key(0, *who)  # the same in all rounds

    assert two_inputs(sums(without_one_pair), FIRST, SECOND, 400).findings

    def bare(given, _number):
        return given

    assert two_inputs(bare, FIRST, SECOND, 400).findings

    def scalar(given, number):
        rows = [row + int.from_bytes(key(number, n)[:4], "big") for n, row in enumerate(given.astype(np.uint64))]
        return np.stack(rows).astype(np.uint32)

    spread = np.array([np.arange(16) % 8, np.zeros(16), np.zeros(16)], np.uint32)
    other = np.roll(spread, 1, axis=0)

    def neighbours(given, number):
        return np.diff(scalar(given, number), axis=1)

    assert two_inputs(neighbours, spread, other, 400).findings


def test_one_mask_cancelled_in_a_subset_shows_only_jointly():
    """Each vector alone is even; two of them together are not."""

    def cancelling(given, number):
        first = given[0] + np.frombuffer(key(number) * 2, np.uint32)
        second = given[1] - np.frombuffer(key(number) * 2, np.uint32)
        third = given[2] + np.frombuffer(key(number, 2) * 2, np.uint32)
        return np.stack([first, second, third])

    test = two_inputs(cancelling, FIRST, SECOND, 400)
    assert test.findings
    assert all("rows 0, 1" in look.of for look in test.findings)


def test_inputs_of_different_totals_are_refused_and_so_are_too_few_draws():
    with pytest.raises(ConfigError, match="totals"):
        two_inputs(sums(), FIRST, SECOND + 1, 100)
    with pytest.raises(ConfigError, match="repeat more"):
        two_inputs(sums(), FIRST, SECOND, 3)


def test_sites_are_combined_as_a_director_would():
    truth = updates(1300)
    kinds = smoke_test([masked(truth, 0), masked(truth, 1)], [truth, truth]).by_kind()
    pairs, some = len(list(combinations(SITES, 2))), 6 + 4
    assert len(kinds["correlation, each vector"]) == 8
    assert len(kinds["correlation, differences of two"]) == 2 * pairs
    assert len(kinds["correlation, sums of some"]) == 2 * some
    assert len(kinds["correlation, over rounds"]) == 4


# The same of the real protocol, in process: all steps, own masks taken away as the director can.


class Real:
    """Sums of three sites by the protocol's own code; ``sizes`` are those of everything that was said."""

    def __init__(self):
        self.cast, self.sizes = cast_of(SITES[:3]), set()

    def __call__(self, given, number):
        # A bound and a total weight by which integers stay themselves; the stochastic rounding moves none so small.
        terms = SumTerms(suite=Suite.X25519, bounds=(2.0**30 / 3,), max_weight=1)
        spec = spec_for((given.shape[1],), 3, terms, run=f"run-{number}")
        contributions = {
            name: Contribution(row.astype(np.float32), 1) for name, row in zip(self.cast.names, given, strict=True)
        }
        seed = hashlib.sha256(str(number).encode()).digest()
        outcome = Network(self.cast, spec, contributions, seed).run()
        assert outcome.opened is not None
        np.testing.assert_array_equal(outcome.total[: given.shape[1]], given.sum(0, np.uint32))
        said = [(step, name, len(content)) for step, name, content in (*outcome.upward, *outcome.downward)]
        self.sizes.add(tuple(said))
        own = dict(zip(outcome.survivors, outcome.opened.plus, strict=True))
        rows = []
        for name in self.cast.names:
            row = outcome.vectors[name][: given.shape[1]].copy()
            Masker((), (own[name],)).apply(row)
            rows.append(row)
        return np.stack(rows)


def test_of_the_real_protocol_neither_vectors_nor_sizes_tell_which_input_went_in():
    """Both inputs have one total; what is seen are vectors less own masks, on the ring of three bits."""
    first = np.tile(FIRST, (1, 16))
    second = np.tile(SECOND, (1, 16))
    real = Real()
    test = two_inputs(real, first, second, 12)
    assert not test.findings
    assert len(test.looks) == 10
    assert len(real.sizes) == 1  # every message has the same length, whatever the input and the run
