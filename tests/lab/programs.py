"""Compiled eBPF programs outlive the lab: a board compiles once in its life, and a lab's node has a short one.

A node's netstack-loader keeps what it compiled in /var/cache/netstack/programs, named by all that it depends on. New
nodes get what earlier ones left; `rm -r <cache>/programs` shows a board's first start again.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .image import cache

PROGRAMS = "var/cache/netstack/programs"


def seed(root: Path) -> None:
    """Give a new node's disk what is kept."""
    _copy_new(cache() / "programs", root / PROGRAMS)


def keep(nodes: Path) -> None:
    """Keep what the nodes of a lab compiled; `nodes` holds their folders."""
    for upper in nodes.glob("*/upper"):
        _copy_new(upper / PROGRAMS, cache() / "programs")


def _copy_new(source: Path, target: Path) -> None:
    for path in source.glob("*.json"):
        if not (target / path.name).exists():
            target.mkdir(parents=True, exist_ok=True)
            unfinished = target / f".{path.name}.{os.getpid()}"
            shutil.copyfile(path, unfinished)
            unfinished.rename(target / path.name)
