"""A rate is estimated from transfers that are large enough to tell it."""

import pytest

from fsl.errors import ConfigError
from fsl.inference.planning import RateEstimator

MEGABYTE = 1_000_000


def test_a_steady_rate_is_found_by_either_average():
    for average in ("ewma", "harmonic"):
        estimator = RateEstimator(average)
        for _ in range(3):
            assert estimator.observe(MEGABYTE, 0.5)
        assert estimator.mbit == pytest.approx(16)


def test_ewma_keeps_a_share_of_what_it_knew():
    estimator = RateEstimator(weight=0.25)
    estimator.observe(MEGABYTE, 1.0)
    estimator.observe(MEGABYTE, 0.25)
    assert estimator.mbit == pytest.approx(8 + 0.25 * (32 - 8))


def test_the_harmonic_mean_is_that_of_all_bytes_over_all_seconds_and_forgets():
    estimator = RateEstimator("harmonic", last=2)
    for seconds in (9.0, 1.0, 0.25):
        estimator.observe(MEGABYTE, seconds)
    assert estimator.mbit == pytest.approx(2 * 8 / 1.25)


@pytest.mark.parametrize(("size", "seconds"), [(4095, 1.0), (MEGABYTE, 0.0009), (0, 1.0), (MEGABYTE, 0.0)])
def test_what_is_too_small_to_tell_is_passed_over(size, seconds):
    estimator = RateEstimator(initial_mbit=5.0)
    assert not estimator.observe(size, seconds)
    assert estimator.mbit == 5.0
    assert RateEstimator().mbit is None


def test_what_is_just_large_and_slow_enough_counts():
    assert RateEstimator().observe(4096, 0.001)
    estimator = RateEstimator(least_seconds=0.0)
    assert not estimator.observe(MEGABYTE, 0.0)
    assert estimator.observe(MEGABYTE, 1e-9)


def test_an_initial_rate_of_zero_is_known_and_averaged():
    estimator = RateEstimator(weight=0.25, initial_mbit=0.0)
    estimator.observe(MEGABYTE, 1.0)
    assert estimator.mbit == pytest.approx(0.25 * 8)


def test_what_cannot_be_is_refused():
    for options in ({"weight": 0}, {"last": 0}, {"least_bytes": 0}, {"least_seconds": -1}, {"initial_mbit": -1}):
        with pytest.raises(ConfigError, match=f"{next(iter(options))}="):
            RateEstimator(**options)
    with pytest.raises(ConfigError, match="average='mean': allowed are ewma, harmonic"):
        RateEstimator("mean")
    for observed in ((-1, 1.0), (MEGABYTE, float("nan")), (float("inf"), 1.0)):
        with pytest.raises(ConfigError, match="size="):
            RateEstimator().observe(*observed)
