# Copyright (c) 2026, The netstack developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Folders, files and links of a node, many at once.

What is wanted is a list of `Entry`, in the order in which it is made. `look` sees what is there, `differs` decides,
`make` writes: a file under another name, flushed to the disk, then renamed over the old one. Whatever happens in
between, power cuts included, a path holds one whole content, and a secret never has an open mode.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shutil
import stat
import tempfile
from dataclasses import dataclass

FOLDER, FILE, LINK, ABSENT = "folder", "file", "link", "absent"
OTHER = "pipe, socket or device"
"""Never wanted, and nothing that could be read to its end."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a path shall be. `content` belongs to a file, `target` to a link; `mode`, `owner`, `group` to the others."""

    kind: str
    path: str
    content: bytes = b""
    target: str = ""
    mode: int | None = None
    owner: str | None = None
    group: str | None = None
    secret: bool = False
    validate: str | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """What a path is. A folder's link counts as the folder, as it does for whoever uses it."""

    kind: str
    content: bytes = b""
    target: str = ""
    mode: int = 0
    owner: int = 0
    group: int = 0


def look(path: str, *, read: bool = True) -> Seen:
    """What is there. `read`: with the content of a file."""
    try:
        here = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return Seen(ABSENT)
    if stat.S_ISLNK(here.st_mode):
        target = os.readlink(path)
        if not os.path.isdir(path):
            return Seen(LINK, target=target)
        here = os.stat(path)
        return Seen(FOLDER, b"", target, stat.S_IMODE(here.st_mode), here.st_uid, here.st_gid)
    facts = stat.S_IMODE(here.st_mode), here.st_uid, here.st_gid
    if stat.S_ISDIR(here.st_mode):
        return Seen(FOLDER, b"", "", *facts)
    if not stat.S_ISREG(here.st_mode):
        return Seen(OTHER, b"", "", *facts)
    if not read:
        return Seen(FILE, b"", "", *facts)
    with open(path, "rb") as file:
        return Seen(FILE, file.read(), "", *facts)


def owner_id(name: str | None) -> int:
    """-1, as chown(2) takes it, for nobody in particular. Raises KeyError."""
    return -1 if name is None else pwd.getpwnam(name).pw_uid


def group_id(name: str | None) -> int:
    return -1 if name is None else grp.getgrnam(name).gr_gid


def differs(entry: Entry, seen: Seen) -> bool:
    if entry.kind == ABSENT:
        return seen.kind != ABSENT
    if entry.kind == LINK:
        return seen.target != entry.target
    if seen.kind != entry.kind or seen.content != entry.content:
        return True
    if entry.mode is not None and entry.mode != seen.mode:
        return True
    try:
        owner, group = owner_id(entry.owner), group_id(entry.group)
    except KeyError:  # an earlier task would have made it
        return True
    return owner not in (-1, seen.owner) or group not in (-1, seen.group)


def make(entry: Entry) -> None:
    """Make the path what the entry says. Raises OSError; KeyError for an owner or group that does not exist."""
    if entry.kind == ABSENT:
        remove(entry.path)
    elif entry.kind == FOLDER:
        os.makedirs(entry.path, exist_ok=True)
        own(entry.path, entry)
    elif entry.kind == LINK:
        fresh = f"{entry.path}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)
        os.symlink(entry.target, fresh)
        os.replace(fresh, entry.path)
    else:
        write(entry)


def own(path: str, entry: Entry) -> None:
    os.chown(path, owner_id(entry.owner), group_id(entry.group))
    if entry.mode is not None:
        os.chmod(path, entry.mode)  # last: chown(2) clears the bits for set-user-ID and set-group-ID


def write(entry: Entry) -> None:
    folder, name = os.path.split(entry.path)
    descriptor, fresh = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(entry.content)
            file.flush()
            own(fresh, entry)
            os.fsync(file.fileno())
        os.replace(fresh, entry.path)
    except BaseException:
        os.unlink(fresh)
        raise


def remove(path: str) -> None:
    """It may have gone meanwhile, with its folder or by who shares that."""
    with contextlib.suppress(FileNotFoundError):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)


def shown(entry: Entry, seen: Seen) -> dict[str, str]:
    """The difference, for --diff."""
    return {
        "before_header": entry.path,
        "before": text(seen.kind, seen.content, seen.target, seen.mode, entry.secret),
        "after_header": entry.path,
        "after": text(entry.kind, entry.content, entry.target, entry.mode, entry.secret),
    }


def text(kind: str, content: bytes, target: str, mode: int | None, secret: bool) -> str:
    if kind == ABSENT:
        return ""
    if kind == LINK:
        return f"-> {target}\n"
    body = "(secret)\n" if secret else content.decode(errors="replace")
    return body if mode is None else f"mode {mode:04o}\n{body}"
