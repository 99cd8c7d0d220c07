"""How deep property tests look: `make unit` is a quick run, `make test` sets DEPTH higher, a soak higher still."""

from __future__ import annotations

import os
from typing import TypeVar

Item = TypeVar("Item")

DEPTH = float(os.environ.get("DEPTH", "1"))
"""How many times the examples of a quick run; below 1 on processors that are interpreted."""

SOAK = "SOAK" in os.environ
"""Whether property tests look for new examples. Else each run has the same, so a change is judged by its own faults."""


def examples(quick: int) -> int:
    """How many, if a quick run has `quick`."""
    return max(1, round(quick * DEPTH))


def thinned(items: list[Item]) -> list[Item]:
    """All of them in a quick run; evenly fewer below."""
    return items[:: max(1, round(1 / DEPTH))]
