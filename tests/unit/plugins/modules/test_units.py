from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.kubelab.netstack.plugins.modules import units

Run = Callable[..., dict[str, Any]]

# A systemd of one folder: a file a unit that systemd has read; what it holds is the unit's state.
SYSTEMCTL = """#!/bin/bash
cd {folder}
echo "$*" >> calls
verb=$1; shift
while [[ $1 == --* ]]; do shift; done
[[ $verb != daemon-reload ]] || for unit in disk/*; do [[ -e units/${{unit##*/}} ]] || cp "$unit" units/; done
first=yes
for name; do
    read -r active enabled 2>/dev/null < "units/$name" || {{ active=inactive; enabled=; }}
    case $verb in
    show)
        [[ $first ]] || echo
        first=
        [[ -e units/$name ]] && load=loaded || load=not-found
        printf 'LoadState=%s\\nActiveState=%s\\nUnitFileState=%s\\nNeedDaemonReload=no\\n' "$load" "$active" "$enabled"
        continue
        ;;
    start | restart)
        [[ $name != bad* ]] || {{ echo "Job for $name failed." >&2; exit 1; }}
        active=active
        ;;
    stop) active=inactive ;;
    enable) enabled=enabled ;;
    disable) enabled=disabled ;;
    esac
    [[ ! -e units/$name ]] || echo "$active $enabled" > "units/$name"
done
"""


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("units", "disk", "bin"):
        (tmp_path / name).mkdir()
    for command, text in (
        ("systemctl", SYSTEMCTL.format(folder=tmp_path)),
        ("journalctl", '#!/bin/sh\necho "journal of $6"\n'),
    ):
        (tmp_path / "bin" / command).write_text(text)
        (tmp_path / "bin" / command).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    for name in ("a.service", "b.service", "bad.service"):
        (tmp_path / "disk" / name).write_text("inactive disabled\n")
    return tmp_path


def both(state: str, enabled: bool) -> dict[str, Any]:
    return {"units": [{"name": name, "state": state, "enabled": enabled} for name in ("a.service", "b.service")]}


def test_the_twelve_steps(run: Run, systemd: Path) -> None:
    # Nothing deletes a unit: stopping stands in its place.
    for step, options in (
        ("create", both("started", True)),
        ("modify", both("started", False)),
        ("delete", both("stopped", False)),
    ):
        said = [
            run(units, **options, _ansible_check_mode=True),
            run(units, **options),
            run(units, **options, _ansible_check_mode=True),
            run(units, **options),
        ]
        assert [one["changed"] for one in said] == [True, True, False, False], step
        assert said[0]["steps"] == said[1]["steps"]
        assert said[3]["diff"]["before"] == said[3]["diff"]["after"]


def test_check_mode_calls_nothing_that_changes(run: Run, systemd: Path) -> None:
    said = run(units, **both("started", True), _ansible_check_mode=True)
    assert said["steps"] == ["enable --quiet a.service b.service", "start a.service b.service"]
    assert {call.split()[0] for call in (systemd / "calls").read_text().splitlines()} == {"show"}


def test_a_unit_that_fails_tells_its_journal(run: Run, systemd: Path) -> None:
    said = run(units, units=[{"name": "bad.service"}])
    assert said["failed"] is True
    assert said["msg"] == "systemctl start bad.service: Job for bad.service failed.\njournal of bad.service"


def test_what_was_pending_is_settled_when_all_is_well(run: Run, systemd: Path) -> None:
    note = systemd / "a.pending"
    note.write_text("/etc/a")
    run(units, units=[{"name": "a.service"}], settles=str(note), _ansible_check_mode=True)
    run(units, units=[{"name": "a.service"}, {"name": "bad.service"}], settles=str(note))
    assert note.exists()
    for _again in range(2):
        assert "failed" not in run(units, units=[{"name": "a.service"}], settles=str(note))
        assert not note.exists()


def test_no_unit_is_nothing_to_do(run: Run, systemd: Path) -> None:
    said = run(units, units=[])
    assert (said["changed"], said["steps"]) == (False, [])
