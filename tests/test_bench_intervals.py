"""Intervals against textbook values, and against what they promise: to hold the truth 95 times in a hundred."""

import numpy as np
import pytest

from reflect_core.bench.intervals import mean_of_differences, mean_of_shares, wilson


def test_wilson():
    # 8 of 10 by the formula in Newcombe (1998), method 3: 0.490 to 0.943; 0 of 20: 0 to 0.161.
    assert np.allclose(wilson(8, 10), (0.4902, 0.9433), atol=1e-4)
    assert wilson(0, 20) == (0.0, pytest.approx(0.1611, abs=1e-4)) and wilson(20, 20)[1] == 1.0
    assert wilson(0, 0) == (0.0, 1.0)


def test_of_one_group_the_mean_is_its_share():
    assert mean_of_shares([[1.0] * 8 + [0.0] * 2]) == pytest.approx(wilson(8, 10))


def test_bonett_and_price():
    # Of 40 prompts 10 won and 2 lost: p12 = 11/42, p21 = 3/42, by their formula.
    clusters = [(1.0,)] * 10 + [(-1.0,)] * 2 + [(0.0,)] * 28
    middle, half = 8 / 42, 1.959964 * np.sqrt((14 / 42 - (8 / 42) ** 2) / 42)
    assert mean_of_differences([clusters]) == pytest.approx((middle - half, middle + half))


def test_nothing_is_ever_certain():
    """What a bootstrap says of sixty successes, or of sixty prompts without a difference."""
    for low, high in (mean_of_shares([[1.0] * 60] * 7), mean_of_shares([[0.0]] * 7),
                      mean_of_differences([[(0.0,)] * 60]), mean_of_differences([[(1.0,)]])):
        assert high - low > 0.01 and -1 <= low <= high <= 1


def test_pairs_of_one_prompt_are_not_independent():
    alone = [(float(i % 2),) for i in range(100)]
    together = [(float(i % 2),) * 2 for i in range(50)]
    narrow, wide = (high - low for low, high in (mean_of_differences([alone]), mean_of_differences([together])))
    assert wide == pytest.approx(narrow * np.sqrt(2), rel=0.03)


@pytest.mark.parametrize("shares", [(0.5,) * 7, (1.0, 0.98, 0.95, 0.97, 0.9, 0.85, 0.5), (0.05, 0.02, 0.1)])
def test_the_mean_of_shares_is_held_as_often_as_promised(shares):
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        low, high = mean_of_shares([(rng.random(60) < share).astype(float).tolist() for share in shares])
        held += low <= np.mean(shares) <= high
    assert held >= 935


@pytest.mark.parametrize("won, lost", [(0.3, 0.02), (0.05, 0.05), (0.6, 0.0), (0.9, 0.01), (0.01, 0.0)])
@pytest.mark.parametrize("groups", [1, 7])
def test_the_difference_is_held_as_often_as_promised(won, lost, groups):
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(1000):
        drawn = rng.random((groups, 60))
        differences = (drawn < won).astype(float) - (drawn > 1 - lost)
        low, high = mean_of_differences([[(d,) for d in group] for group in differences.tolist()])
        held += low <= won - lost <= high
    assert held >= 930
