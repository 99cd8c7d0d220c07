from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.kubelab.netstack.plugins.module_utils import _release
from ansible_collections.kubelab.netstack.plugins.module_utils._release import Layout, ReleaseError


def stage(root: Path, *releases: str, python: str = "3.11") -> None:
    for age, release in enumerate(releases):
        folder = root / "releases" / release
        (folder / "lib" / f"python{python}").mkdir(parents=True)
        (folder / "release").write_text(f"{release}\n")
        os.utime(folder / "release", (age, age))


def test_the_first_switch_has_nothing_to_go_back_to() -> None:
    after = _release.active(Layout(("a",), None, None), "a", 3, False)
    assert after == Layout(("a",), "a", None)
    with pytest.raises(ReleaseError, match="no previous release"):
        _release.switched_back(after)


def test_a_switch_remembers_and_switching_back_swaps() -> None:
    after = _release.active(Layout(("a", "b"), "a", None), "b", 3, False)
    assert after == Layout(("a", "b"), "b", "a")
    assert _release.switched_back(after) == Layout(("a", "b"), "a", "b")


def test_what_is_not_staged_is_switched_to_in_check_mode_only() -> None:
    now = Layout(("a",), "a", None)
    with pytest.raises(ReleaseError, match="release b is not staged on this node; staged: a"):
        _release.active(now, "b", 3, assume_staged=False)
    assert _release.active(now, "b", 3, assume_staged=True).current == "b"


def test_old_releases_go_but_never_the_current_previous_or_a_newer_one() -> None:
    now = Layout(("a", "b", "c", "d"), "c", "a")
    assert _release.prune(now, 3).releases == ("a", "c", "d")
    assert _release.prune(now, 1).releases == ("a", "c", "d")


def test_a_release_that_waits_for_an_upgrade_stays() -> None:
    now = Layout(("a", "b", "c"), "a", None)
    assert _release.prune(now, 1) == now


def test_the_current_release_cannot_be_removed_alone() -> None:
    now = Layout(("a", "b"), "b", "a")
    with pytest.raises(ReleaseError, match="release b is the current one"):
        _release.absent(now, "b")
    assert _release.absent(now, "a") == Layout(("b",), "b", None)
    assert _release.absent(now, None) == Layout((), None, None, there=False)


def test_the_disk_becomes_what_was_decided(tmp_path: Path) -> None:
    stage(tmp_path, "a", "b", "c")
    root = str(tmp_path)
    for wanted in ("a", "b", "c"):
        before = _release.read(root, "3.11")
        after = _release.active(before, wanted, 2, False)
        _release.apply(root, before, after)
        assert _release.read(root, "3.11") == after
    assert _release.read(root, "3.11") == Layout(("b", "c"), "c", "b")
    assert os.readlink(tmp_path / "current") == "releases/c"
    before = _release.read(root, "3.11")
    _release.apply(root, before, _release.absent(before, None))
    assert not tmp_path.exists()


def test_a_staging_that_was_cut_off_is_no_release(tmp_path: Path) -> None:
    stage(tmp_path, "a")
    (tmp_path / "releases/b").mkdir()
    assert _release.read(str(tmp_path), "3.11").releases == ("a",)


def test_a_release_for_the_python_of_before_is_none(tmp_path: Path) -> None:
    """As when the distribution was upgraded: nothing in it can be imported any more. It is made anew, where it is."""
    stage(tmp_path, "a", "b")
    (tmp_path / "current").symlink_to("releases/b")
    (tmp_path / "previous").symlink_to("releases/a")
    now = _release.read(str(tmp_path), "3.13")
    assert now == Layout((), "b", "a")
    with pytest.raises(ReleaseError, match="no previous release"):
        _release.switched_back(now)
    assert _release.active(_release.staged(now, "b"), "b", 3, False) == Layout(("b",), "b", "a")


def test_a_folder_that_is_not_ours_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("")
    assert _release.read(str(tmp_path), "3.11") == Layout((), None, None, there=False)
