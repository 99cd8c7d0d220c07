"""Network namespaces for the tests of this folder: made with a prefix of this process, gone when the test ends."""

from __future__ import annotations

import itertools
import os
import subprocess
from contextlib import AbstractContextManager

from instruments.netns import inside

_numbers = itertools.count(1)


def ip(*words: str) -> str:
    """ip(8); CalledProcessError with its words when it refuses."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


class Namespace:
    """A network namespace. `with ns.entered():` puts this thread into it."""

    def __init__(self) -> None:
        self.name = f"nstbpf{os.getpid()}-{next(_numbers)}"
        ip("netns", "add", self.name)
        self.path = f"/run/netns/{self.name}"
        self.ip("link", "set", "lo", "up")

    def close(self) -> None:
        ip("netns", "delete", self.name)

    def ip(self, *words: str) -> str:
        return ip("-n", self.name, *words)

    def link(self, name: str, peer: str, other: Namespace | None = None) -> None:
        """A veth pair, both ends up: `name` here, `peer` in `other` (default: here too)."""
        there = other or self
        self.ip("link", "add", name, "type", "veth", "peer", "name", peer, "netns", there.name)
        self.ip("link", "set", name, "up")
        there.ip("link", "set", peer, "up")

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command inside, with this mount namespace's /sys (ip netns exec would hide cgroups and bpffs)."""
        return subprocess.run(["nsenter", f"--net={self.path}", *words], check=check, capture_output=True, text=True)

    def entered(self) -> AbstractContextManager[None]:
        return inside(self.path)
