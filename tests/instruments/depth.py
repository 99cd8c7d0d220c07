"""How deep property tests look: `make unit` takes seconds, `make test` sets DEPTH higher, a soak higher still."""

from __future__ import annotations

import os

DEPTH = int(os.environ.get("DEPTH", "1"))
"""How many times the examples of a quick run."""
