"""What a figure is, and what an area of figures must offer. Names are stable: issues, README and results use them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

RAW = Path(__file__).with_name("raw")


BESIDE = ("direct", "no policy", "dnsdist", "unbound", "bare")
"""What is run beside netstack for a ratio, and is no figure of its own."""


@dataclass(frozen=True, slots=True)
class Figure:
    name: str
    unit: str
    meaning: str
    """One sentence: what was done, and what the number counts."""
    against: str = ""
    """What the ratio is to: the name of another figure, or one of BESIDE; "" = there is no ratio."""
    target: float | None = None
    """What the ratio is held against, or the value where there is no ratio; None = nothing is promised."""
    statistic: str = "median"
    """Of the samples, that is the value (estimate.STATISTICS)."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The samples of one figure and, where it has a ratio, those of what it is against."""

    figure: str
    samples: Sequence[float]
    against: Sequence[float] | None = None
    paired: bool = True


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is done. The defaults are those of the figures that are published."""

    rounds: int = 30
    """Interleaved rounds of each load."""
    repeats: int = 5
    """How often the slow ones are repeated: demo, the API's first lists, its minutes of rest."""
    seconds: float = 1.0
    """Length of one load in one round."""
    cuts: int = 20
    """Power cuts."""
    idle_seconds: float = 600.0
    """How long idle daemons are watched."""
    say: Callable[[str], None] = field(default=print)
    raw: Path = RAW
    """Folder of the samples."""


Measure = Callable[[frozenset[str], Settings], Iterator[Measured]]
"""(names that are wanted, settings) -> their samples, as they become known."""


@dataclass(frozen=True, slots=True)
class Area:
    figures: tuple[Figure, ...]
    measure: Measure


class Unknown(Exception):
    """No figure has this name or prefix."""


def chosen(figures: Iterable[Figure], only: str) -> frozenset[str]:
    """Names that `only` selects: "" all of them; else each of its comma-separated parts is a name or the start of one,
    up to a dot. Raises Unknown for a part that selects nothing."""
    names = [figure.name for figure in figures]
    if not only:
        return frozenset(names)
    found: set[str] = set()
    for part in filter(None, only.split(",")):
        matching = {name for name in names if name == part or name.startswith(f"{part}.")}
        if not matching:
            raise Unknown(f"{part}: no figure is called so or begins so; `ONLY=list` shows them")
        found |= matching
    return frozenset(found)
