"""results.json, which is committed, and the table that people read.

One run seldom measures everything, so each result carries the commit and the date of its own run; `date`, `machine` and
`commit` at the top are those of the last run. A commit ends in "+" if what was measured differed from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.estimate import Estimate, counts
from bench.figures import Figure

DIGITS = 5
Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """Which run, on what."""

    date: str
    machine: str
    commit: str


def significant(number: float | None) -> float | None:
    """Rounded to DIGITS significant digits."""
    return None if number is None else float(f"{number:.{DIGITS}g}")


def result(figure: Figure, found: Estimate, run: Run) -> Result:
    """`counts`: whether the ratio is known well enough, by its figures as they are written here; None without one."""
    ratio, spread = significant(found.ratio), significant(found.half_width)
    return {
        "figure": figure.name,
        "value": significant(found.value),
        "unit": figure.unit,
        "against": figure.against or None,
        "ratio": ratio,
        "n": found.n,
        "median": significant(found.median),
        "p95": significant(found.p95),
        "half_width": spread,
        "counts": None if ratio is None else counts(ratio, spread, figure.target),
        "commit": run.commit,
        "date": run.date,
    }


def merged(old: Mapping[str, Any], run: Run, results: Iterable[Result], known: Iterable[str]) -> dict[str, Any]:
    """The file's content after a run: its results in place of older ones of the same figures, the rest as it was.

    In the order of `known`; what is no figure any more is left out.
    """
    by_name = {one["figure"]: one for one in (*old.get("results", ()), *results)}
    return {
        "date": run.date,
        "machine": run.machine,
        "commit": run.commit,
        "results": [by_name[name] for name in known if name in by_name],
    }


def load(path: Path) -> dict[str, Any]:
    """The file's content; {} if there is none yet."""
    if not path.exists():
        return {}
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data


def dump(data: Mapping[str, Any]) -> str:
    """One line a result, so that a change of one figure is a change of one line."""
    lines = ",\n".join(f"    {json.dumps(one)}" for one in data["results"])
    head = {name: value for name, value in data.items() if name != "results"}
    text = json.dumps(head, indent=2).removesuffix("\n}")
    return f'{text},\n  "results": [\n{lines}\n  ]\n}}\n'


def verdict(one: Result) -> str:
    """A mark for a ratio that is not known well enough, else "" """
    if one["counts"] is not False:
        return ""
    why = "too few rounds" if one["half_width"] is None else "half-width above a third of the margin"
    return f"does not count: {why}"


def table(results: Iterable[Result], figures: Mapping[str, Figure]) -> str:
    """Columns by widest cell; numbers to the right."""
    rows = [("figure", "value", "unit", "ratio", "+/-", "n", "median", "p95", "against", "")]
    for one in results:
        figure = figures[one["figure"]]
        shown = (_number(one[name]) for name in ("ratio", "half_width", "n", "median", "p95"))
        ratio, spread, n, median, tail = shown
        row = (figure.name, _number(one["value"]), figure.unit, ratio, spread, n, median, tail, figure.against)
        rows.append((*row, verdict(one)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    left = {0, 2, 8, 9}
    lines = (
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
    return "\n".join(lines)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
