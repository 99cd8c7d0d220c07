"""What samples say, and how sure that is. Pure; the same samples give the same answer.

Intervals are bootstrapped (Efron 1979): resample with replacement, look at the spread of the statistic. Nothing is
assumed of the distribution, and it works alike for medians, tails and ratios.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

RESAMPLES = 2000
LEAST = 5
"""Samples, below which resampling says nothing of spread."""
SHARE = 1 / 3
"""Of its margin, that a ratio's half-width may take and the ratio still counts."""

Statistic = Callable[[Sequence[float]], float]


def quantile(samples: Sequence[float], share: float) -> float:
    """Linear between the two nearest of the ordered samples. ValueError if there are none."""
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def p50(samples: Sequence[float]) -> float:
    return quantile(samples, 0.5)


def p95(samples: Sequence[float]) -> float:
    return quantile(samples, 0.95)


def p99(samples: Sequence[float]) -> float:
    return quantile(samples, 0.99)


STATISTICS: dict[str, Statistic] = {"median": p50, "p95": p95, "p99": p99, "mean": statistics.fmean}


@dataclass(frozen=True, slots=True)
class Estimate:
    """`half_width` is of the ratio where there is one, else of the value; None where samples are too few to tell."""

    value: float
    ratio: float | None
    n: int
    median: float
    p95: float
    half_width: float | None


def half_width(draws: Sequence[float]) -> float:
    """Half of the 95 % percentile interval."""
    return (quantile(draws, 0.975) - quantile(draws, 0.025)) / 2


def estimate(
    samples: Sequence[float],
    against: Sequence[float] | None = None,
    *,
    statistic: str = "median",
    paired: bool = True,
) -> Estimate:
    """`against`: what the peer gave. paired: sample i of both is of the same round, and each round has its ratio; else
    the ratio is that of the two statistics. ValueError without samples, or if pairs are not whole."""
    of = STATISTICS[statistic]
    draw = random.Random(len(samples))
    ratio, spread = None, None
    if against is None:
        if len(samples) >= LEAST:
            spread = half_width([of(draw.choices(samples, k=len(samples))) for _ in range(RESAMPLES)])
    elif paired:
        if len(samples) != len(against):
            raise ValueError(f"{len(samples)} rounds against {len(against)}")
        ratios = [ours / theirs for ours, theirs in zip(samples, against, strict=True)]
        ratio = of(ratios)
        if len(ratios) >= LEAST:
            spread = half_width([of(draw.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES)])
    else:
        ratio = of(samples) / of(against)
        if min(len(samples), len(against)) >= LEAST:
            draws = [
                of(draw.choices(samples, k=len(samples))) / of(draw.choices(against, k=len(against)))
                for _ in range(RESAMPLES)
            ]
            spread = half_width(draws)
    return Estimate(of(samples), ratio, len(samples), p50(samples), p95(samples), spread)


def counts(ratio: float, spread: float | None, target: float | None = None) -> bool:
    """Whether a ratio is known well enough to be claimed: see SHARE. `target`: what it is held against, else 1."""
    margin = abs(ratio - (1.0 if target is None else target))
    return spread is not None and spread <= margin * SHARE
