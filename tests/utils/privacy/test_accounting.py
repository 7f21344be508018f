import math

import numpy as np
import pytest
from fedveil.utils.errors import ConfigError, PrivacyError
from fedveil.utils.privacy import accounting
from fedveil.utils.privacy.accounting import checked, cross_check, reported, stopping
from fedveil.utils.privacy.events import Gaussian, Release, SampledGaussian, Skellam, grouped
from fedveil.utils.privacy.gaussian import calibrated_noise, exact_epsilon, release_epsilon
from fedveil.utils.privacy.renyi import ORDERS, curve, epsilons, filter_order, repetitions
from fedveil.utils.privacy.values import Accountant, Epsilon, PublishedEpsilon, Unit, accountant_named, rounded_up
from hypothesis import given, settings
from hypothesis import strategies as st

HISTORIES = {
    "the issue's": ([SampledGaussian(0.032, 1.0, 32)], 1e-5),
    "a hundred times longer": ([SampledGaussian(0.032, 1.0, 3200)], 1e-5),
    "much noise, many steps": ([SampledGaussian(0.01, 100.0, 10_000)], 1e-5),
    "little noise": ([SampledGaussian(0.1, 0.6, 10)], 1e-5),
    "half of all": ([SampledGaussian(0.5, 4.0, 8)], 1e-6),
    "rarely": ([SampledGaussian(0.001, 5.0, 1000)], 1e-6),
    "three studies": ([SampledGaussian(0.032, 1.0, 320), SampledGaussian(0.01, 2.0, 1000), Gaussian(20.0, 10)], 1e-5),
}
WHOLE = [(0.5, 1, 1e-5), (2.0, 1, 1e-5), (20.0, 10, 1e-5), (1.0, 1, 1e-8), (300.0, 500, 1e-6)]


def fine(history, delta, *, pessimistic):
    """The library by itself, on a grid so fine that rounding up and rounding down nearly agree."""
    distributions = pytest.importorskip("dp_accounting.pld.privacy_loss_distribution")
    guess = float(epsilons(curve(history), delta).min())
    total = None
    for one in history:
        step = distributions.from_gaussian_mechanism(
            one.noise_multiplier,
            sampling_prob=getattr(one, "sampling_rate", 1.0),
            value_discretization_interval=max(1e-6, min(1e-4, guess * 1e-4)),
            pessimistic_estimate=pessimistic,
            use_connect_dots=pessimistic,
        ).self_compose(one.steps)
        total = step if total is None else total.compose(step)
    return total.get_epsilon_for_delta(delta)


@pytest.mark.parametrize("name", HISTORIES)
def test_the_reported_epsilon_is_within_one_percent_of_pld_and_never_below_it(name):
    history, delta = HISTORIES[name]
    found = reported(history, delta, Unit.PATIENT).value
    assert fine(history, delta, pessimistic=False) <= found <= 1.01 * fine(history, delta, pessimistic=True)


@pytest.mark.parametrize(("noise", "steps", "delta"), WHOLE)
def test_unsampled_releases_have_the_exact_epsilon_and_never_less(noise, steps, delta):
    exact = exact_epsilon(noise / math.sqrt(steps), delta)
    assert exact <= reported([Gaussian(noise, steps)], delta, Unit.SITE).value <= 1.01 * exact
    assert exact <= stopping([Gaussian(noise, steps)], delta, Unit.SITE).value


@pytest.mark.parametrize("name", HISTORIES)
def test_what_stops_is_never_below_what_is_reported(name):
    history, delta = HISTORIES[name]
    assert stopping(history, delta, Unit.RECORD).value >= reported(history, delta, Unit.RECORD).value


@pytest.mark.parametrize("name", HISTORIES)
def test_the_cross_check_agrees_within_three_percent(name):
    pytest.importorskip("opacus")
    history, delta = HISTORIES[name]
    account = checked(history, delta, Unit.PATIENT)
    assert account.prv is not None
    assert account.prv.value == pytest.approx(account.pld.value, rel=0.03)
    assert account.reported is account.pld


def test_accountants_that_disagree_are_an_error():
    pytest.importorskip("opacus")
    history, delta = HISTORIES["the issue's"]
    wrong = Epsilon(1.4, delta, Unit.RECORD, "a mistake", Accountant.PLD)
    with pytest.raises(PrivacyError, match="disagree by more than 3%"):
        cross_check(history, delta, Unit.RECORD, wrong)


def test_the_figures_of_the_design_come_out():
    history, delta = HISTORIES["the issue's"]
    assert reported(history, delta, Unit.RECORD).value == pytest.approx(1.544, abs=5e-4)
    assert stopping(history, delta, Unit.RECORD).value == pytest.approx(2.009, rel=3e-2)  # of more orders


@pytest.mark.parametrize(("rate", "noise"), [(0.032, 1.0), (0.5, 0.7), (0.001, 4.0), (0.2, 30.0)])
def test_renyi_divergence_is_that_of_dp_accounting_at_every_order(rate, noise):
    accounting_ = pytest.importorskip("dp_accounting")
    rdp = pytest.importorskip("dp_accounting.rdp.rdp_privacy_accountant")
    event = accounting_.PoissonSampledDpEvent(rate, accounting_.GaussianDpEvent(noise))
    theirs = rdp.RdpAccountant(list(ORDERS)).compose(event, 7)
    assert curve([SampledGaussian(rate, noise, 7)]) == pytest.approx(np.asarray(theirs._rdp), rel=1e-6, abs=1e-12)
    for delta in (1e-3, 1e-7):
        ours = epsilons(curve([SampledGaussian(rate, noise, 7)]), delta).min()
        assert ours >= theirs.get_epsilon(delta) * (1 - 1e-6)
        assert ours == pytest.approx(theirs.get_epsilon(delta), rel=1e-6, abs=0.05)  # theirs is 0 for next to nothing


@settings(deadline=None, max_examples=40)
@given(st.floats(0.001, 1), st.floats(0.3, 50), st.integers(1, 1000), st.integers(1, 1000))
def test_a_history_costs_the_same_in_pieces(rate, noise, first, second):
    pieces = [SampledGaussian(rate, noise, first), SampledGaussian(rate, noise, second)]
    assert curve(pieces) == pytest.approx(curve([SampledGaussian(rate, noise, first + second)]), rel=1e-9)
    assert grouped(pieces) == grouped([SampledGaussian(rate, noise, first + second)]) or rate == 1


@settings(deadline=None, max_examples=40)
@given(st.floats(0.01, 1), st.floats(0.5, 20), st.floats(0.2, 10), st.integers(0, 200))
def test_as_many_rounds_fit_as_are_said_to_fit_and_not_one_more(rate, noise, budget, before):
    history, next_ = (
        curve([SampledGaussian(rate, noise, before)] if before else []),
        curve([SampledGaussian(rate, noise)]),
    )
    place = filter_order(history, next_, budget, 1e-5)
    count = repetitions(history, next_, budget, 1e-5, place)
    if count:
        assert epsilons(history + count * next_, 1e-5)[place] <= budget * (1 + 1e-9)
    assert epsilons(history + (count + 1) * next_, 1e-5)[place] > budget * (1 - 1e-9)
    assert all(repetitions(history, next_, budget, 1e-5, other) <= count for other in range(len(ORDERS)))


@pytest.mark.parametrize("name", ["gdp", " GDP ", "moments", "basic"])
def test_accountants_that_understate_or_waste_are_refused_with_the_reason(name):
    with pytest.raises(ConfigError, match="is refused: "):
        accountant_named(name)


def test_an_unknown_accountant_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match="pld, rdp, prv"):
        accountant_named("zcdp")


@pytest.mark.parametrize("epsilon", [1.0, 3.0])
def test_the_textbook_formula_is_refused_from_epsilon_one_on(epsilon):
    with pytest.raises(ConfigError, match="needs epsilon below 1"):
        calibrated_noise(epsilon, 1e-5, by="textbook")


def test_the_textbook_formula_wastes_noise_below_one_and_is_too_small_for_large_epsilon():
    assert calibrated_noise(0.9, 1e-5, by="textbook") > calibrated_noise(0.9, 1e-5)
    assert math.sqrt(2 * math.log(1.25 / 0.01)) / 20 < calibrated_noise(20, 0.01)


@settings(deadline=None, max_examples=40)
@given(st.floats(0.01, 50), st.floats(1e-9, 0.1))
def test_calibrated_noise_spends_what_was_asked_and_not_more(epsilon, delta):
    noise = calibrated_noise(epsilon, delta)
    assert exact_epsilon(noise, delta) <= epsilon
    assert exact_epsilon(noise * 0.999, delta) > epsilon * (1 - 1e-6)


def test_every_epsilon_prints_with_delta_unit_and_mechanism():
    text = str(release_epsilon(2.0, 1e-5, Unit.SITE))
    assert text == "epsilon 1.994 at delta 1e-05 per site (one added or removed; Gaussian; pld)"
    assert str(PublishedEpsilon(1.5, 1e-6, Unit.PATIENT)) == "epsilon 1.5 at delta 1e-06 per patient"


@settings(deadline=None, max_examples=40)
@given(st.floats(1e-9, 1e6))
def test_an_epsilon_is_never_printed_below_what_it_is(epsilon):
    assert epsilon <= float(rounded_up(epsilon)) <= epsilon * 1.0011


def test_nothing_released_is_no_epsilon_at_all():
    assert reported([], 1e-5, Unit.PATIENT).value == 0
    assert stopping([], 1e-5, Unit.PATIENT).value == 0
    assert "nothing released" in str(reported([], 1e-5, Unit.PATIENT))


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "dp_accounting.pld", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedveil\[dp\]'"):
        reported([Gaussian(1.0)], 1e-5, Unit.SITE)


def test_without_opacus_there_is_no_cross_check_and_no_error(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "opacus.accountants", None)
    assert accounting.cross_check([Gaussian(1.0)], 1e-5, Unit.SITE, release_epsilon(1.0, 1e-5, Unit.SITE)) is None


def test_an_updates_noise_protects_each_patient_by_half():
    update = Release(Gaussian(4.0), Unit.SITE)
    assert update.protecting(Unit.SITE) == Gaussian(4.0)
    assert update.protecting(Unit.PATIENT) == update.protecting(Unit.RECORD) == Gaussian(2.0)


@pytest.mark.parametrize(
    ("of", "wanted"), [(Unit.RECORD, Unit.PATIENT), (Unit.PATIENT, Unit.RECORD), (Unit.PATIENT, Unit.SITE)]
)
def test_no_guarantee_is_read_as_one_of_another_unit(of, wanted):
    with pytest.raises(PrivacyError, match=f"says nothing of each {wanted.value}"):
        Release(SampledGaussian(0.1, 1.0), of).protecting(wanted)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SampledGaussian(0.0, 1.0),
        lambda: SampledGaussian(1.1, 1.0),
        lambda: SampledGaussian(0.1, 0.0),
        lambda: SampledGaussian(0.1, math.nan),
        lambda: SampledGaussian(0.1, 1.0, 0),
        lambda: Gaussian(math.inf),
        lambda: Release(SampledGaussian(0.1, 1.0), Unit.SITE),
        lambda: exact_epsilon(0.0, 1e-5),
        lambda: calibrated_noise(0.0, 1e-5),
        lambda: calibrated_noise(1.0, 1e-5, by="other"),
    ],
)
def test_numbers_that_no_mechanism_has_are_refused(make):
    with pytest.raises(ConfigError):
        make()


@pytest.mark.parametrize(("epsilon", "delta"), [(-1, 1e-5), (math.nan, 1e-5), (1, 0), (1, 1)])
def test_an_epsilon_that_cannot_be_is_our_own_mistake(epsilon, delta):
    with pytest.raises(ValueError):
        Epsilon(epsilon, delta, Unit.SITE, "", Accountant.PLD)
    with pytest.raises(ValueError):
        PublishedEpsilon(epsilon, delta, Unit.SITE)


@pytest.mark.parametrize(
    "release", [Release(SampledGaussian(0.1, 1.5, 3), Unit.PATIENT), Release(Gaussian(2.0, 4), Unit.SITE)]
)
def test_a_release_survives_being_written_down(release):
    assert Release.from_json(release.to_json()) == release


def skellam(steps=1, **changes):
    return Skellam(**({"sensitivity_l1": 2.0e5, "sensitivity_l2": 2.0e4, "variance": 4.0e8, "steps": steps} | changes))


def test_fine_skellam_noise_costs_a_little_more_than_gaussian_noise_of_its_variance():
    gaussian = stopping([Gaussian(1.0, 10)], 1e-5, Unit.SITE).value  # sqrt(4e8) / 2e4
    assert gaussian <= stopping([skellam(10)], 1e-5, Unit.SITE).value < 1.01 * gaussian


def test_a_history_with_skellam_noise_is_reported_by_renyi_divergence_and_says_so():
    history = [skellam(2), SampledGaussian(0.1, 2.0), skellam(3)]
    found = reported(history, 1e-5, Unit.SITE)
    assert found.accountant is Accountant.RDP
    assert found.value == stopping(history, 1e-5, Unit.SITE).value
    assert "Skellam in the secure sum + Poisson-sampled Gaussian" in str(found)
    assert checked(history, 1e-5, Unit.SITE).prv is None
    assert grouped(history) == (skellam(5), SampledGaussian(0.1, 2.0))


def test_skellam_noise_for_a_site_protects_each_patient_by_half_and_survives_being_written_down():
    release = Release(skellam(3), Unit.SITE)
    assert release.protecting(Unit.PATIENT).noise_multiplier == release.mechanism.noise_multiplier / 2
    assert Release.from_json(release.to_json()) == release


@pytest.mark.parametrize("changes", [{"variance": 0}, {"sensitivity_l1": 1.0}, {"sensitivity_l2": 0.0}, {"steps": 0}])
def test_skellam_noise_that_cannot_be_is_refused(changes):
    with pytest.raises(ConfigError):
        skellam(**changes)
