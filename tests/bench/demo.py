"""How long the product takes from nothing to everything shown."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

from bench.figures import Area, Figure, Measured, Settings
from e2e import demo
from lab import Lab

FIGURES = (
    Figure(
        "demo.warm_seconds",
        "s",
        "`make demo` with everything cached: three nodes booted, site.yml, the manifests of a home, every claim shown",
    ),
)


def measure(wanted: frozenset[str], settings: Settings) -> Iterator[Measured]:
    """The first performance fills the caches and does not count."""
    performances = [perform(settings.raw) for _ in range(settings.repeats + 1)]
    yield Measured("demo.warm_seconds", performances[1:])


def perform(folder: Path) -> float:
    """Seconds of one performance. RuntimeError names the claims that did not hold: then its time means nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "demo.log").open("w") as log, redirect_stdout(log):
        began = time.monotonic()
        with Lab("benchdemo") as lab:
            _, failed = demo.perform(lab)
            seconds = time.monotonic() - began
    if failed:
        raise RuntimeError(f"claims of the demo did not hold ({folder / 'demo.log'}): {'; '.join(failed)}")
    return seconds


AREA = Area(FIGURES, measure)
