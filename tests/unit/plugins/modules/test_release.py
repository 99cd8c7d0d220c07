from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.kubelab.netstack.plugins.module_utils import _release
from ansible_collections.kubelab.netstack.plugins.modules import release

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def play(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The module on a root of its own; staging makes the folder and its mark, without pip."""

    python = f"{sys.version_info.major}.{sys.version_info.minor}"

    def stage(module: Any, root: str, name: str) -> None:
        folder = Path(_release.folder(root, name))
        (folder / f"lib/python{python}").mkdir(parents=True)
        (folder / "release").write_text(name)

    monkeypatch.setattr(release, "stage", stage)

    def play(**options: Any) -> dict[str, Any]:
        return run(release, root=str(tmp_path / "netstack"), python=sys.executable, **options)

    return play


STEPS = {
    "create": {"state": "staged", "id": "1-a", "src": "/a.tar.gz"},
    "modify": {"state": "active", "id": "1-a"},
    "delete": {"state": "absent"},
}


def test_the_twelve_steps(play: Run) -> None:
    for step, options in STEPS.items():
        said = [
            play(**options, _ansible_check_mode=True),
            play(**options),
            play(**options, _ansible_check_mode=True),
            play(**options),
        ]
        assert [one["changed"] for one in said] == [True, True, False, False], step
        assert said[0]["diff"] == said[1]["diff"]
        assert said[3]["diff"]["before"] == said[3]["diff"]["after"]


def test_check_mode_walks_from_bare_to_active(play: Run) -> None:
    said = play(**STEPS["modify"], _ansible_check_mode=True)
    assert (said["changed"], said["id"], said["releases"]) == (True, "1-a", ["1-a"])


def test_what_a_staging_left_that_was_cut_off_goes_with_the_next(play: Run, tmp_path: Path) -> None:
    place = tmp_path / "netstack/releases"
    for name in ("1-a", "1-b", "1-c", "1-d"):
        play(state="staged", id=name, src="/x")
        if name != "1-d":
            play(state="active", id=name)
    for name in ("1-a", "1-b", "1-c"):  # `previous` and `current` name the last two
        (place / name / "release").unlink()
    play(state="staged", id="1-e", src="/x", _ansible_check_mode=True)
    assert (place / "1-a").exists()
    play(state="staged", id="1-e", src="/x")
    assert sorted(path.name for path in place.iterdir()) == ["1-b", "1-c", "1-d", "1-e"]


def test_a_release_for_the_python_of_before_is_made_anew(play: Run, tmp_path: Path) -> None:
    for step in ("create", "modify"):
        play(**STEPS[step])
    place = tmp_path / "netstack/releases/1-a"
    (place / f"lib/python{sys.version_info.major}.{sys.version_info.minor}").rename(place / "lib/python3.5")
    assert play(**STEPS["modify"])["msg"] == "release 1-a is not staged on this node; staged: none"
    said = [play(**STEPS[step])["changed"] for step in ("create", "modify", "create")]
    assert said == [True, False, False]


def test_the_command_is_linked_once(play: Run, tmp_path: Path) -> None:
    play(**STEPS["create"])
    command = tmp_path / "netstack-command"
    said = [play(**STEPS["modify"], command=str(command)) for _again in range(2)]
    assert [one["changed"] for one in said] == [True, False]
    assert command.readlink() == tmp_path / "netstack/current/bin/netstack"


def test_going_back(play: Run) -> None:
    for name in ("1-a", "1-b"):
        play(state="staged", id=name, src="/x")
        play(state="active", id=name)
    said = play(state="previous")
    assert (said["changed"], said["id"], said["previous"]) == (True, "1-a", "1-b")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state": "active", "id": "1-a"}, "release 1-a is not staged on this node; staged: none"),
        ({"state": "active", "id": "../../etc"}, "id: '../../etc' is not letters, digits and . + _ - (at most 64)"),
        ({"state": "active"}, "state is active but all of the following are missing: id"),
        ({"state": "staged", "id": "1-a"}, "state is staged but all of the following are missing: src"),
        ({"state": "previous"}, "there is no previous release on this node to go back to"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(play: Run, options: dict[str, Any], message: str) -> None:
    said = play(**options)
    assert said["failed"] is True
    assert said["msg"] == message
