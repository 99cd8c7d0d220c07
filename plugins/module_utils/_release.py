# Copyright (c) 2026, The netstack developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The releases on a node's disk.

    ROOT/releases/ID/           a virtual environment, made in its place (its scripts name their interpreter by path)
    ROOT/releases/ID/release    holds ID; written last, so a folder without it is a staging that was cut off
    ROOT/current  -> releases/ID
    ROOT/previous -> releases/ID of the switch before

An environment is of one version of Python. When the system gets another (Debian 12 becomes 13), nothing in it can be
imported any more: it is no release from then on, and is made anew.

A switch is one rename(2) of a symbolic link over another: at every instant `current` names one whole release.
`previous` is written first; a power cut in between leaves both links at the same release, which is harmless.

Every state is computed as a `Layout` before anything is touched, in check mode as well; only `apply` writes.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from typing import Any

MARK = "release"
VERSION = "import sys; print('%d.%d' % sys.version_info[:2])"


class ReleaseError(Exception):
    """The state that was asked for cannot be reached from what is there."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What is on the disk: whole releases, oldest first; the two links; `there`, whether ROOT is one of ours at all."""

    releases: tuple[str, ...]
    current: str | None
    previous: str | None
    there: bool = True

    def shown(self) -> dict[str, object]:
        return {"releases": sorted(self.releases), "current": self.current, "previous": self.previous}


def python_version(module: Any) -> str:
    """Of the interpreter that a release is made from, as its folders name it: 3.11."""
    words = [module.params["python"], "-I", "-S", "-c", VERSION]
    return str(module.run_command(words, check_rc=True)[1]).strip()


def folder(root: str, release: str) -> str:
    return os.path.join(root, "releases", release)


def _age(root: str, release: str) -> float:
    return os.stat(os.path.join(folder(root, release), MARK)).st_mtime


def _target(root: str, link: str) -> str | None:
    try:
        return os.path.basename(os.readlink(os.path.join(root, link)))
    except OSError:
        return None


def _whole(root: str, name: str, python: str) -> bool:
    place = folder(root, name)
    return os.path.exists(os.path.join(place, MARK)) and os.path.isdir(os.path.join(place, "lib", f"python{python}"))


def read(root: str, python: str) -> Layout:
    """The layout now, of what runs with this version of Python."""
    try:
        names = os.listdir(os.path.join(root, "releases"))
    except OSError:
        names = []
    whole = [name for name in names if _whole(root, name, python)]
    whole.sort(key=lambda name: _age(root, name))
    return Layout(
        tuple(whole), _target(root, "current"), _target(root, "previous"), os.path.isdir(os.path.join(root, "releases"))
    )


def clear(root: str, layout: Layout) -> None:
    """Remove what stagings left that were cut off, by a full disk for one, and what was made for another version of
    Python, but nothing that a link names."""
    place = os.path.join(root, "releases")
    for name in os.listdir(place) if layout.there else ():
        if name not in (*layout.releases, layout.current, layout.previous):
            shutil.rmtree(os.path.join(place, name), ignore_errors=True)


def prune(layout: Layout, keep: int) -> Layout:
    """Forget the oldest releases beyond `keep`, but never the current one, nor the one to go back to, nor those that
    were staged after the current one: they wait for an upgrade."""
    if layout.current is None:
        return layout
    older = layout.releases[: layout.releases.index(layout.current)]
    spare = [release for release in older if release != layout.previous]
    gone = set(spare[: max(0, len(layout.releases) - keep)])
    return replace(layout, releases=tuple(release for release in layout.releases if release not in gone))


def staged(now: Layout, release: str) -> Layout:
    if release in now.releases:
        return now
    return replace(now, releases=(*now.releases, release), there=True)


def active(now: Layout, release: str, keep: int, assume_staged: bool) -> Layout:
    """`assume_staged`: check mode, where the task that stages has changed nothing either."""
    if release not in now.releases:
        if not assume_staged:
            there = ", ".join(now.releases) or "none"
            raise ReleaseError(f"release {release} is not staged on this node; staged: {there}")
        now = staged(now, release)
    if now.current == release:
        return prune(now, keep)
    return prune(replace(now, current=release, previous=now.current), keep)


def switched_back(now: Layout) -> Layout:
    if now.previous is None or now.previous not in now.releases:
        raise ReleaseError("there is no previous release on this node to go back to")
    return replace(now, current=now.previous, previous=now.current)


def absent(now: Layout, release: str | None) -> Layout:
    """Without a release: everything goes."""
    if release is None:
        return Layout((), None, None, there=False)
    if release == now.current:
        raise ReleaseError(f"release {release} is the current one; switch to another one first")
    previous = None if now.previous == release else now.previous
    return replace(now, releases=tuple(one for one in now.releases if one != release), previous=previous)


def _point(root: str, link: str, release: str | None) -> None:
    path = os.path.join(root, link)
    if release is None:
        if os.path.lexists(path):
            os.unlink(path)
        return
    fresh = f"{path}.new"
    if os.path.lexists(fresh):
        os.unlink(fresh)
    os.symlink(os.path.join("releases", release), fresh)
    os.replace(fresh, path)


def apply(root: str, before: Layout, after: Layout) -> None:
    """Make the disk equal to `after`, whose releases are all there already: links first, then what is not wanted."""
    if not after.there:
        shutil.rmtree(root)
        return
    for link, old, new in (("previous", before.previous, after.previous), ("current", before.current, after.current)):
        if old != new:
            _point(root, link, new)
    for release in set(before.releases) - set(after.releases):
        # Without its mark it is no release any more, whatever happens to the rest of the removal.
        os.unlink(os.path.join(folder(root, release), MARK))
        shutil.rmtree(folder(root, release))
