from __future__ import annotations

import pytest
from ansible_collections.kubelab.netstack.plugins.module_utils import _units
from ansible_collections.kubelab.netstack.plugins.module_utils._units import Seen, Step, Wanted

RUNNING = Seen(True, "active", "enabled", False)
STOPPED = Seen(True, "inactive", "disabled", False)
UNKNOWN = Seen(False, "inactive", "", False)
SHOWN = """LoadState=loaded
ActiveState=active
UnitFileState=enabled
NeedDaemonReload=yes

LoadState=not-found
ActiveState=inactive
UnitFileState=
NeedDaemonReload=no
"""


def calls(wanted: list[Wanted], seen: dict[str, Seen]) -> list[str]:
    return [" ".join((*step.words, *step.units)) for step in _units.steps(wanted, seen)]


def test_systemctl_tells_a_paragraph_a_unit() -> None:
    assert _units.parse(["a", "b"], SHOWN) == {"a": Seen(True, "active", "enabled", True), "b": UNKNOWN}
    with pytest.raises(ValueError, match="shorter"):
        _units.parse(["a", "b", "c"], SHOWN)


@pytest.mark.parametrize("active", ["active", "activating", "reloading"])
def test_a_unit_that_runs_or_is_about_to_is_left_alone(active: str) -> None:
    assert calls([Wanted("a")], {"a": Seen(True, active, "enabled", False)}) == []


def test_a_unit_without_an_install_section_is_not_enabled() -> None:
    assert calls([Wanted("a")], {"a": Seen(True, "active", "static", False)}) == []


def test_units_of_one_kind_of_change_are_one_call() -> None:
    wanted = [Wanted("a"), Wanted("b"), Wanted("c", block=False)]
    seen = dict.fromkeys("abc", STOPPED)
    assert calls(wanted, seen) == ["enable --quiet a b c", "start --no-block c", "start a b"]


def test_what_goes_goes_before_what_comes() -> None:
    wanted = [Wanted("ours"), Wanted("theirs", "stopped", enabled=False)]
    seen = {"ours": STOPPED, "theirs": RUNNING}
    assert calls(wanted, seen) == ["stop theirs", "disable --quiet theirs", "enable --quiet ours", "start ours"]


def test_a_unit_that_does_not_exist_is_stopped_already() -> None:
    assert calls([Wanted("a", "stopped", enabled=False)], {"a": UNKNOWN}) == []


def test_a_failed_unit_is_forgiven_first() -> None:
    failed = Seen(True, "failed", "enabled", False)
    assert _units.steps([Wanted("a")], {"a": failed}) == [
        Step(("reset-failed",), ("a",), changes=False),
        Step(("start",), ("a",)),
    ]


def test_a_restart_always_is_a_change() -> None:
    assert calls([Wanted("a", "restarted")], {"a": RUNNING}) == ["restart a"]


@pytest.mark.parametrize(
    ("wanted", "seen", "shown"),
    [
        (Wanted("a"), UNKNOWN, "active, enabled"),
        (Wanted("a"), RUNNING, "active, enabled"),
        (Wanted("a"), Seen(True, "activating", "static", False), "activating, static"),
        (Wanted("a", "stopped", enabled=False), RUNNING, "inactive, disabled"),
        (Wanted("a", "stopped", enabled=False), UNKNOWN, "inactive, not there"),
        (Wanted("a", "restarted"), RUNNING, "active, anew, enabled"),
    ],
)
def test_what_it_will_be_is_shown(wanted: Wanted, seen: Seen, shown: str) -> None:
    assert _units.after(wanted, seen) == shown
