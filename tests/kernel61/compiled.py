"""The compiled programs for a guest, made on this machine: a guest would take minutes to compile them.

A compiled set depends on the kernel's headers, and what the lab's nodes compile with are headers of the guests' series:
what Debian counts behind it (6.1.0-57) changes nothing that programs see. On the processor it should not depend, yet
LLVM for arm64 puts some instructions in another order. So with LONG=1 an arm64 guest compiles by itself, and the Packet
tests run on what it made.
"""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

from instruments import question
from lab import image
from netstack.core.files import write_atomic
from netstack.kernel import programs
from netstack.kernel.loader import LoaderSettings, compiled_set

from .kernel import Kernel

SOURCES = Path(__file__).parents[2] / "files" / "bpf"


def host_set() -> programs.Compiled:
    """The set as this machine compiles it."""
    return compiled_set(LoaderSettings(bpf_source=str(SOURCES), cache=str(image.cache() / "programs")))


def seed(kernel: Kernel, made: programs.Compiled | None = None) -> None:
    """Keep a set for a guest's kernel: `made`, or this machine's, if it compiles with headers of the same series. The
    question check, where one does for every kernel, is compiled here too."""
    question.compiled()
    headers = Path(f"/lib/modules/{platform.release()}/build").resolve().name.removeprefix("linux-headers-")
    if made is None and headers.partition("-")[0] != kernel.release.partition("-")[0]:
        return
    name = programs.key(SOURCES, kernel.release, importlib.metadata.version("bcc"))
    write_atomic(image.cache() / "programs" / f"{name}.json", (made or host_set()).to_json())
