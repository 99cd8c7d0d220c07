"""Maglev's table."""

from __future__ import annotations

from collections import Counter

import pytest

from netstack.agent.maglev import SIZES, order, size


@pytest.mark.parametrize(("backends", "slots"), [(0, 0), (1, 1), (2, 67), (4, 67), (5, 251), (15, 251), (16, 1021)])
def test_size(backends: int, slots: int) -> None:
    assert size(backends) == slots


def test_sizes_are_primes() -> None:
    assert all(all(n % d for d in range(2, int(n**0.5) + 1)) for n in SIZES[1:])


@pytest.mark.parametrize("count", [2, 3, 7, 20])
def test_shares_differ_by_one_slot(count: int) -> None:
    shares = Counter(order(tuple(f"10.0.0.{n} 80" for n in range(count))))
    assert max(shares.values()) - min(shares.values()) <= 1
    assert len(shares) == count


def test_a_backend_that_leaves_moves_few_slots_of_the_others() -> None:
    names = tuple(f"10.0.0.{n} 80" for n in range(10))
    before, after = order(names), order(names[:-1])
    kept = [(a, b) for a, b in zip(before, after, strict=True) if a != 9]
    assert sum(a != b for a, b in kept) / len(kept) < 0.25


def test_few_backends() -> None:
    assert order(()) == ()
    assert order(("one",)) == (0,)
    assert size(10**6) == SIZES[-1]
