"""A member of the LAN that is no node: controller, clients, router. A network namespace and a name server, the rest is
the machine's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import cgroups, http, network
from .names import SHARE, Names
from .shell import run
from .tls import authority

# $1 = the resolv.conf to see, $2 .. = the command. In a mount namespace that follows the machine's (a private one would
# keep removed namespaces of the lab alive), only this file differs.
WITH_RESOLV_CONF = 'mount --bind "$1" "$(realpath /etc/resolv.conf)" && shift && exec "$@"'


@dataclass(frozen=True, slots=True)
class Host:
    names: Names
    port: network.Port

    @property
    def name(self) -> str:
        return self.port.name

    @property
    def address(self) -> str:
        return self.port.address

    @property
    def mac(self) -> str:
        return self.port.mac

    @property
    def netns(self) -> Path:
        return self.names.netns_path(self.name)

    @property
    def cgroup(self) -> str:
        return f"{self.names.cgroup}/{self.name}"

    def enter(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs argv on this host."""
        resolv_conf = str(self.names.run / "shared/resolv.conf")
        own_mounts = ["unshare", "--mount", "--propagation", "slave", "--"]
        seeing = [*own_mounts, "sh", "-c", WITH_RESOLV_CONF, "sh", resolv_conf, *argv]
        return cgroups.joined(cgroups.members(self.cgroup), network.in_netns(self.netns, seeing))

    def run(
        self, command: str | Sequence[str], *, stdin: str | None = None, check: bool = True, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell line, or an argument list. Raises CommandFailed (if check)."""
        argv = ["sh", "-c", command] if isinstance(command, str) else command
        return run(self.enter(argv), stdin=stdin, check=check, timeout_s=timeout_s)

    def get(
        self,
        url: str,
        *,
        resolve: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 3.0,
        options: tuple[str, ...] = (),
    ) -> http.Response:
        """GET an URL from here; trusts the lab's certificate authority."""
        trusting = ("--cacert", str(authority().certificate), *options)
        return http.get(
            lambda argv: self.run(argv, check=False, timeout_s=timeout_s + 5),
            url,
            resolve=resolve,
            headers=headers,
            timeout_s=timeout_s,
            options=trusting,
        )

    def arp(self, address: str, timeout_s: float = 0.3) -> set[str]:
        """MACs, in small letters, that answer "who has this address?" in time. More than one is a fault."""
        ask = [sys.executable, str(SHARE / "who_has.py"), address, f"{timeout_s:g}"]
        return set(self.run(ask, timeout_s=timeout_s + 10).stdout.split())
