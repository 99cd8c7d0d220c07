"""Numbers for names."""

from __future__ import annotations

import pytest

from netstack.agent import numbers as module
from netstack.agent.numbers import hashed, numbers


def test_a_number_depends_on_the_name_alone() -> None:
    alone, _ = numbers(["b"])
    together, collisions = numbers(["a", "b", "c"])
    assert together["b"] == alone["b"] == hashed("b")
    assert collisions == []


def test_numbers_stay_in_their_range() -> None:
    found, _ = numbers(map(str, range(500)), base=1 << 30, bits=30)
    assert all(1 << 30 <= number < 2 << 30 for number in found.values())


def test_colliding_names_are_told_apart_and_reported() -> None:
    found, collisions = numbers(map(str, range(200)), bits=8)
    assert len(set(found.values())) == 200
    assert 0 not in found.values()
    assert collisions
    assert numbers(map(str, reversed(range(200))), bits=8) == (found, collisions), "order does not matter"


def test_zero_is_nobodys_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "hashed", lambda name, bits=32: 0 if "\0" not in name else 7)
    assert numbers(["a"]) == ({"a": 7}, [])
