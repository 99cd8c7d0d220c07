"""On what, and of what, a run is."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path

from bench.results import Run

ROOT = Path(__file__).parents[2]
MEASURED = ("daemons", "files", "roles", "plugins", "playbooks", "tests")
"""Paths whose changes a commit does not describe (results and samples aside)."""


def run() -> Run:
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Run(now, describe(), commit())


def describe() -> str:
    """Processor, cores, memory, kernel."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = next((line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")), "")
    gigabytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    cores = len(os.sched_getaffinity(0))
    return f"{model or platform.machine()}, {cores} cores, {gigabytes:.0f} GiB, Linux {platform.release()}"


def commit() -> str:
    """The commit's first 12 digits; with "+" if the tree differs from it where it matters."""
    said = _git("rev-parse", "--short=12", "HEAD").strip()
    changed = _git("status", "--porcelain", "--", *MEASURED, ":!tests/bench/results.json").strip()
    return f"{said}+" if changed else said


def load() -> float:
    """Runnable processes, averaged over the last minute."""
    return os.getloadavg()[0]


def _git(*words: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *words], check=True, capture_output=True, text=True).stdout
