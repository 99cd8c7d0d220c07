"""What the statistics say of samples whose answer is known."""

from __future__ import annotations

import random

import pytest

from bench.estimate import counts, estimate, half_width, p50, p95, p99, quantile


def test_quantiles_lie_between_the_nearest_samples() -> None:
    assert quantile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert quantile([1.0, 2.0], 0.0) == 1.0
    assert quantile([1.0, 2.0], 1.0) == 2.0
    assert p50([7.0]) == p95([7.0]) == p99([7.0]) == 7.0
    assert p95([float(n) for n in range(101)]) == pytest.approx(95)


def test_no_samples_say_nothing() -> None:
    with pytest.raises(ValueError, match="no samples"):
        quantile([], 0.5)


def test_the_half_width_is_half_of_what_holds_95_of_100_draws() -> None:
    assert half_width([float(n) for n in range(1001)]) == pytest.approx(475)


def test_a_ratio_is_taken_round_by_round_so_drift_does_not_touch_it() -> None:
    drift = [100.0, 130.0, 70.0, 160.0, 90.0]
    found = estimate([0.97 * rate for rate in drift], drift)
    assert found.ratio == pytest.approx(0.97)
    assert found.half_width == pytest.approx(0)
    assert found.n == 5
    assert found.value == found.median == pytest.approx(97)


def test_without_pairs_the_ratio_is_that_of_the_statistics() -> None:
    found = estimate([300.0, 310.0, 320.0, 305.0, 315.0], [600.0, 620.0] * 3, paired=False)
    assert found.ratio == pytest.approx(310 / 610)
    assert found.half_width is not None and found.half_width > 0


def test_pairs_must_be_whole() -> None:
    with pytest.raises(ValueError, match="2 rounds against 1"):
        estimate([1.0, 2.0], [1.0])


def test_a_few_samples_have_no_half_width() -> None:
    assert estimate([41.7]).half_width is None
    assert estimate([1.0, 1.1], [2.0, 2.1]).half_width is None
    assert estimate([1.0, 1.1, 1.2, 1.0], [2.0] * 9, paired=False).half_width is None


def test_the_value_is_the_statistic_that_the_figure_names() -> None:
    samples = [float(n) for n in range(1, 101)]
    assert estimate(samples, statistic="p95").value == p95(samples)
    assert estimate(samples, statistic="mean").value == 50.5
    assert estimate(samples, statistic="p95").median == 50.5


def test_the_interval_holds_the_truth_about_19_times_of_20() -> None:
    """Of a ratio that is 0.97 by construction, with noise of 5 % in each round."""
    draw = random.Random(7)
    hits = 0
    for _ in range(40):
        base = [draw.uniform(80, 120) for _ in range(30)]
        ours = [rate * draw.gauss(0.97, 0.05) for rate in base]
        found = estimate(ours, base)
        assert found.ratio is not None and found.half_width is not None
        hits += abs(found.ratio - 0.97) <= found.half_width
    assert hits >= 34


def test_the_same_samples_give_the_same_answer() -> None:
    samples = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0]
    assert estimate(samples, samples[::-1]) == estimate(samples, samples[::-1])


@pytest.mark.parametrize(
    ("ratio", "spread", "target", "holds"),
    [
        (0.91, 0.0299, None, True),  # margin 0.09
        (0.91, 0.031, None, False),
        (1.12, 0.0399, None, True),
        (0.91, 0.03, 0.95, False),  # margin 0.04
        (0.5, None, None, False),  # one round
    ],
)
def test_a_ratio_counts_up_to_a_third_of_its_margin(
    ratio: float, spread: float | None, target: float | None, holds: bool
) -> None:
    assert counts(ratio, spread, target) is holds
