"""The main job, whole: what `make demo` shows holds, on a lab of its own."""

from __future__ import annotations

import pytest

from e2e.demo import Home

pytestmark = [pytest.mark.root, pytest.mark.lab]


def test_every_claim_of_the_demo_holds(performance: tuple[Home, list[str]]) -> None:
    _, failed = performance
    assert failed == []
