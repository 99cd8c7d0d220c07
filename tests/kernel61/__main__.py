"""`python -m kernel61`: makes what guests of arm64 boot from, if it is missing."""

from __future__ import annotations

from . import tree

tree.build()
