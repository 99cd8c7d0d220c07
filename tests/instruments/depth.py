"""How deep property tests look: `make unit` is a quick run, `make test` sets DEPTH higher, a soak higher still."""

from __future__ import annotations

import os

DEPTH = float(os.environ.get("DEPTH", "1"))
"""How many times the examples of a quick run; below 1 on processors that are interpreted."""


def examples(quick: int) -> int:
    """How many, if a quick run has `quick`."""
    return max(1, round(quick * DEPTH))
