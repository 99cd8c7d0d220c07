"""The cgroups of a lab: one tree in the unified hierarchy, mirrored in those v1 hierarchies that nspawn looks at.

A process of the lab never leaves the lab's tree, so one write to `cgroup.kill` ends all of them, however they were
started and whoever started them. On a machine with cgroup v2 alone there are no mirrors.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from .shell import run, wait_until

# systemd-nspawn makes its payload's cgroup in these, when they are mounted (v1 or hybrid machines).
MIRRORED = ("systemd", "memory", "pids")

# $1.. = cgroup.procs files, then "--", then the command.
JOIN = 'while [ "$1" != -- ]; do echo $$ > "$1"; shift; done; shift; exec "$@"'

# $1 = log file, $2 .. = the command, whose process id is printed. It does not hold our outputs open.
DETACH = 'log=$1; shift; setsid "$@" </dev/null >>"$log" 2>&1 & echo $!'


@functools.cache
def unified() -> Path:
    """The mount point of the machine's cgroup v2 hierarchy."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    raise FileNotFoundError("no cgroup2 hierarchy is mounted on this machine")


@functools.cache
def hierarchies() -> tuple[Path, ...]:
    """The unified hierarchy first."""
    mirrors = (Path("/sys/fs/cgroup") / name for name in MIRRORED)
    return (unified(), *(path for path in mirrors if (path / "cgroup.procs").exists() and path != unified()))


def create(name: str) -> None:
    for root in hierarchies():
        (root / name).mkdir(parents=True, exist_ok=True)


def joined(procs: Sequence[Path], argv: Sequence[str]) -> list[str]:
    """A command line that first moves itself into the cgroups of these cgroup.procs files, then becomes argv."""
    return ["sh", "-c", JOIN, "sh", *map(str, procs), "--", *argv]


def members(name: str) -> list[Path]:
    """The cgroup.procs files of one of our cgroups, one a hierarchy."""
    return [root / name / "cgroup.procs" for root in hierarchies()]


def kill(name: str) -> None:
    """End every process of the tree at once (SIGKILL by the kernel), and wait until they are gone."""
    tree = unified() / name
    if not tree.exists():
        return
    (tree / "cgroup.kill").write_text("1")
    wait_until(lambda: "populated 0" in (tree / "cgroup.events").read_text(), f"the end of all processes in {tree}")


def remove(name: str) -> None:
    """Remove the tree, which must hold no process any more, from every hierarchy."""
    for root in hierarchies():
        tree = root / name
        for folder, _, _ in os.walk(tree, topdown=False):
            wait_until(lambda folder=folder: _rmdir(folder), f"an empty cgroup {folder}")  # type: ignore[misc]


def _rmdir(folder: str) -> bool:
    """False while a killed process is not reaped yet (EBUSY)."""
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def freeze(name: str, frozen: bool) -> None:
    """Stop every process of the tree where it stands, or let it go on; returns when it is so."""
    tree = unified() / name
    (tree / "cgroup.freeze").write_text("1" if frozen else "0")
    wanted = f"frozen {int(frozen)}"
    wait_until(lambda: wanted in (tree / "cgroup.events").read_text(), f"{wanted} in {tree}")


def frozen(name: str) -> bool:
    """Whether the processes of the tree are stopped; False if there is no such tree."""
    try:
        return "frozen 1" in (unified() / name / "cgroup.events").read_text()
    except (FileNotFoundError, OSError):
        return False


def spawn(
    argv: Sequence[str], *, cgroup: str, log: Path, netns: Path | None = None, env: Mapping[str, str] | None = None
) -> int:
    """Start a process of the lab that outlives its starter, both outputs appended to the log file. Returns its id."""
    create(cgroup)
    if netns is not None:
        argv = ["nsenter", f"--net={netns}", "--", *argv]
    return int(run(joined(members(cgroup), ["sh", "-c", DETACH, "sh", str(log), *argv]), env=env).stdout)
