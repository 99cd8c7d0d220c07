"""What pytest left of a run in the guest (its JUnit file)."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Report:
    """Names are "file::test"; `failed` and `skipped` have the reason as their value."""

    passed: frozenset[str]
    failed: dict[str, str]
    skipped: dict[str, str]
    seconds: float

    @property
    def files(self) -> set[str]:
        return {name.partition("::")[0] for name in (*self.passed, *self.failed, *self.skipped)}


def read(path: Path) -> Report:
    """OSError or ParseError if pytest did not come to its end."""
    passed: set[str] = set()
    failed: dict[str, str] = {}
    skipped: dict[str, str] = {}
    root = ElementTree.parse(path).getroot()
    for case in root.iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}.py::{case.get('name')}"
        ends = {child.tag: child.text or child.get("message") or "" for child in case}
        if "skipped" in ends:
            skipped[name] = ends["skipped"]
        elif "failure" in ends or "error" in ends:
            failed[name] = ends.get("failure", "") + ends.get("error", "")
        else:
            passed.add(name)
    seconds = sum(float(suite.get("time", "0")) for suite in root.iter("testsuite"))
    return Report(frozenset(passed), failed, skipped, seconds)
