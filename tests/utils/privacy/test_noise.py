import os
import pickle

import numpy as np
import pytest
from fedveil.utils.privacy.noise import NoiseSource, SystemNoise
from scipy import stats

COUNT = 200_000


def test_gaussians_have_the_law_of_gaussians():
    drawn = SystemNoise().standard_normal(COUNT)
    assert drawn.dtype == np.float64
    assert stats.kstest(drawn, "norm").pvalue > 1e-6
    observed, _ = np.histogram(drawn, stats.norm.ppf(np.linspace(0, 1, 101)))
    assert stats.chisquare(observed).pvalue > 1e-6  # a hundred equally likely bins
    assert abs(stats.kurtosis(drawn)) < 0.07


def test_squares_of_many_gaussians_add_up_to_chi_square():
    squares = np.square(SystemNoise().standard_normal(COUNT)).reshape(-1, 20).sum(1)
    assert stats.kstest(squares, "chi2", args=(20,)).pvalue > 1e-6


def test_neighbouring_draws_and_the_pairs_of_box_and_muller_do_not_depend_on_each_other():
    drawn = SystemNoise().standard_normal(COUNT)
    for lag in (1, 2, 1 << 12, 1 << 13, 1 << 14):
        assert abs(np.corrcoef(drawn[:-lag], drawn[lag:])[0, 1]) < 5 / np.sqrt(COUNT - lag)
        assert abs(np.corrcoef(drawn[:-lag] ** 2, drawn[lag:] ** 2)[0, 1]) < 5 / np.sqrt(COUNT - lag)


def test_uniforms_are_uniform_of_53_bits_and_never_1():
    drawn = SystemNoise().random(COUNT)
    assert stats.kstest(drawn, "uniform").pvalue > 1e-6
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert np.array_equal(drawn * 2.0**53, np.rint(drawn * 2.0**53))
    assert len(np.unique(drawn)) > COUNT - 5


def test_no_two_sources_and_no_two_calls_give_the_same():
    one, other = SystemNoise(), SystemNoise()
    drawn = [one.standard_normal(100), one.standard_normal(100), other.standard_normal(100), one.random(100)]
    assert len({float(values[0]) for values in drawn}) == 4


def test_any_number_of_draws_can_be_asked_for():
    source = SystemNoise()
    for size in (0, 1, 7, (1 << 13) - 1, (1 << 13) + 1, 1 << 15, 100_003):
        assert source.standard_normal(size).shape == source.random(size).shape == (size,)
        assert np.isfinite(source.standard_normal(size)).all()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_does_not_repeat_its_parents_noise():
    source = SystemNoise()
    source.standard_normal(10)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, source.standard_normal(1).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reading, 8)
    os.close(reading)
    os.close(writing)
    assert len(theirs) == 8
    assert theirs != source.standard_normal(1).tobytes()


def test_its_key_cannot_be_written_down():
    with pytest.raises(TypeError):
        pickle.dumps(SystemNoise())
    assert "key" not in repr(SystemNoise()).lower()


def test_numpys_generators_are_sources_too():
    source: NoiseSource = np.random.default_rng(0)
    assert source.standard_normal(3).dtype == source.random(3).dtype == np.float64
