# Copyright (c) 2026, The netstack developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""systemd units, several at once: what they are, and the few calls of systemctl that bring them where they shall be.

Units of one call are one transaction: systemd itself orders their starts and stops by their After= and Before=, which
no loop over the units could do better.
"""

from __future__ import annotations

from dataclasses import dataclass

STARTED, STOPPED, RESTARTED = "started", "stopped", "restarted"
PROPERTIES = ("LoadState", "ActiveState", "UnitFileState", "NeedDaemonReload")
# Being started is as good: systemd goes on with it. Waiting for its end is not a change either.
RUNNING = ("active", "activating", "reloading", "refreshing")


@dataclass(frozen=True, slots=True)
class Wanted:
    """`block`: wait until systemd has done it."""

    name: str
    state: str = STARTED
    enabled: bool = True
    block: bool = True


@dataclass(frozen=True, slots=True)
class Seen:
    """`there`: systemd knows the unit. `stale`: its file was changed since systemd read it."""

    there: bool
    active: str
    enabled: str
    stale: bool

    @property
    def shown(self) -> str:
        return f"{self.active}, {self.enabled or 'not there'}"


@dataclass(frozen=True, slots=True)
class Step:
    """One call of systemctl. `changes`: whether it counts as a change."""

    words: tuple[str, ...]
    units: tuple[str, ...]
    changes: bool = True


def parse(names: list[str], output: str) -> dict[str, Seen]:
    """What `systemctl show --property=... NAMES` said: a paragraph a unit, in the order asked. Raises ValueError."""
    seen = {}
    paragraphs = output.strip().split("\n\n")
    for name, paragraph in zip(names, paragraphs, strict=True):
        facts = dict(line.partition("=")[::2] for line in paragraph.splitlines())
        there = facts["LoadState"] != "not-found"
        seen[name] = Seen(there, facts["ActiveState"], facts["UnitFileState"], facts["NeedDaemonReload"] == "yes")
    return seen


def steps(wanted: list[Wanted], seen: dict[str, Seen]) -> list[Step]:
    """What to do, in order: first what goes, then what comes; what is not waited for before what is."""

    def call(words: str, those: list[Wanted], changes: bool = True) -> Step:
        return Step(tuple(words.split()), tuple(one.name for one in those), changes)

    stop = [one for one in wanted if one.state == STOPPED and seen[one.name].active in RUNNING]
    disable = [one for one in wanted if not one.enabled and seen[one.name].enabled.startswith("enabled")]
    enable = [one for one in wanted if one.enabled and seen[one.name].enabled in ("", "disabled")]
    failed = [one for one in wanted if one.state != STOPPED and seen[one.name].active == "failed"]
    start = [one for one in wanted if one.state == STARTED and seen[one.name].active not in RUNNING]
    restart = [one for one in wanted if one.state == RESTARTED]
    every = [
        call("stop", stop),
        call("disable --quiet", disable),
        call("enable --quiet", enable),
        call("reset-failed", failed, changes=False),  # else systemd may refuse: it was started too often
        call("restart --no-block", [one for one in restart if not one.block]),
        call("restart", [one for one in restart if one.block]),
        call("start --no-block", [one for one in start if not one.block]),
        call("start", [one for one in start if one.block]),
    ]
    return [step for step in every if step.units]


def after(one: Wanted, seen: Seen) -> str:
    """What the unit is shown as, once it is where it shall be."""
    active = {STOPPED: "inactive", STARTED: "active", RESTARTED: "active, anew"}[one.state]
    if one.state != RESTARTED and (seen.active in RUNNING) == (one.state == STARTED):
        active = seen.active
    enabled = seen.enabled
    if one.enabled and enabled in ("", "disabled"):
        enabled = "enabled"
    if not one.enabled and enabled.startswith("enabled"):
        enabled = "disabled"
    return f"{active}, {enabled or 'not there'}"
