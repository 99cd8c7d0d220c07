"""Files that are either the old text or the new one, never half of it: after a power cut, or after the end of a process
where nobody waits for the disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

STEM_MAX = 220
"""Bytes. A file system takes 255 (ext4's EXT4_NAME_LEN), and who writes the file adds to its name meanwhile."""


def stem(text: str) -> str:
    """What a file's name can begin with: `text`, which is ASCII, or where that is too long its beginning and a hash of
    all of it. A namespace and a name of Kubernetes have 316 characters at most."""
    if len(text) <= STEM_MAX:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:32]
    return f"{text[: STEM_MAX - 33]}~{digest}"  # no name in Kubernetes has a tilde


def write_atomic(path: Path, text: str, *, mode: int = 0o644, durable: bool = True) -> bool:
    """Make `path` hold `text`; True if it held anything else before. The name changes over in one rename.

    Not `durable`: nobody waits for the disk. Then the text outlives its process, but a power cut may leave of it what
    no reader understands, until `settle`."""
    with contextlib.suppress(FileNotFoundError):
        if path.read_bytes() == text.encode("utf-8"):
            return False
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), mode)
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return True


def settle(path: Path) -> None:
    """Wait until the disk holds the file, if it is there."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        os.fsync(file.fileno())
