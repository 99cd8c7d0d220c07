"""Files that are either the old text or the new one, never half of it: after a power cut, or after the end of a process
where nobody waits for the disk."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


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
