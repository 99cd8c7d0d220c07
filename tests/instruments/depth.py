"""How deep property tests look: `make unit` takes a glance, pytest by itself a look, `make test` more, a soak most."""

from __future__ import annotations

import os
from typing import TypeVar

Item = TypeVar("Item")

DEPTH = float(os.environ.get("DEPTH", "1"))
"""How many times the examples of a look; below 1 where one is waited for, and on processors that are interpreted."""

SOAK = "SOAK" in os.environ
"""Whether property tests look for new examples. Else each run has the same, so a change is judged by its own faults."""


def examples(usual: int) -> int:
    """How many, if a look has `usual`."""
    return max(1, round(usual * DEPTH))


def thinned(items: list[Item]) -> list[Item]:
    """All of them in a look; evenly fewer below."""
    return items[:: max(1, round(1 / DEPTH))]
