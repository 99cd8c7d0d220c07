"""The compiled programs for a guest, made on this machine: a guest would take minutes to compile them.

A compiled set depends on the kernel's headers and on no processor, and what the lab's nodes compile with are the very
headers of the guests' release. With LONG=1 an arm64 guest compiles by itself, and the two are compared.
"""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

from lab import image
from netstack.core.files import write_atomic
from netstack.kernel import programs
from netstack.kernel.loader import LoaderSettings, compiled_set

from .kernel import Kernel

SOURCES = Path(__file__).parents[2] / "files" / "bpf"


def host_set() -> programs.Compiled:
    """The set as this machine compiles it."""
    return compiled_set(LoaderSettings(bpf_source=str(SOURCES), cache=str(image.cache() / "programs")))


def seed(kernel: Kernel) -> None:
    """Keep the set for a guest's kernel too. Does nothing if this machine compiles with headers of another release."""
    headers = Path(f"/lib/modules/{platform.release()}/build").resolve().name.removeprefix("linux-headers-")
    if headers.rpartition("-")[0] != kernel.release.rpartition("-")[0]:
        return
    name = programs.key(SOURCES, kernel.release, importlib.metadata.version("bcc"))
    write_atomic(image.cache() / "programs" / f"{name}.json", host_set().to_json())
