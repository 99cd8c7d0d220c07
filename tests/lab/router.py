"""The home router, and the internet behind it.

One namespace plays both: its eth0 is the LAN's gateway and name server 192.168.86.1, and the addresses of the internet
lie on its loopback, where one process (share/answer.py) serves real TLS for every name below. There is no NAT, so a
server says which address a request left the LAN's nodes with; and there is no route to pod networks, so a packet that
leaves a node with a pod's address gets no answer, as with any home router.

A second name server, FOREIGN_DNS, answers every name there is: the one that a pod with stolen data would ask.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import cgroups, network
from .host import Host
from .names import SHARE
from .objects import write_if_changed
from .shell import run, wait_until
from .tls import certificate

# Documentation addresses (RFC 5737), but not 192.0.2.0/24, which some programs refuse to route.
ATTACKER = "198.51.100.66"
FOREIGN_DNS = "203.0.113.53"
INTERNET: dict[str, tuple[str, ...]] = {
    "api.anthropic.com": ("203.0.113.10",),
    "discord.com": ("203.0.113.20", "203.0.113.21"),
    "gateway.discord.gg": ("203.0.113.22",),
    "api.github.com": ("203.0.113.30",),
    "github.com": ("203.0.113.31",),
    "api.search.brave.com": ("203.0.113.40",),
    # a name that must not be reached, on the address of one that may: the price of shared front ends
    "shared.example.net": ("203.0.113.30",),
    "www.example.org": ("203.0.113.80",),
    "evil.example.com": (ATTACKER,),
    "exfiltrate.evil.example.com": (ATTACKER,),
    "dns.example.net": (FOREIGN_DNS,),
}
HOME_DOMAIN = "home.lab"
HOME_INGRESS = "192.168.86.18"  # where the router sends *.home.lab

HTTP_PORTS, HTTPS_PORTS, TCP_PORTS, UDP_PORTS = (80, 8080), (443, 8443), (7, 9000), (7, 443, 9000)
TTL_S = 60

DNSMASQ = (
    *("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=root"),
    *("--no-hosts", "--no-resolv", "--bind-interfaces"),
)


@dataclass(frozen=True, slots=True)
class Router(Host):
    @property
    def hosts(self) -> Path:
        """The hosts file of both name servers; they read it again when it changes."""
        return self.names.run / "router/names/hosts"

    def start(self) -> None:
        self.hosts.parent.mkdir(parents=True)
        self._write_hosts([(address, name) for name, addresses in INTERNET.items() for address in addresses])
        everyone = sorted({address for addresses in INTERNET.values() for address in addresses})
        network.ip([f"addr add {address}/32 dev lo" for address in everyone], self.names.netns(self.name))
        ttl = [f"--local-ttl={TTL_S}", f"--hostsdir={self.hosts.parent}"]
        home = [f"--address=/{HOME_DOMAIN}/{HOME_INGRESS}"]
        self._spawn("dns", [*DNSMASQ, *ttl, f"--listen-address={self.address}", *home, "--address=/#/"])
        self._spawn("dns-foreign", [*DNSMASQ, *ttl, f"--listen-address={FOREIGN_DNS}", f"--address=/#/{ATTACKER}"])
        pair = certificate([*INTERNET, "*.example.com", "*.example.net", "*.example.org", f"*.{HOME_DOMAIN}"])
        ports = {"--http": HTTP_PORTS, "--https": HTTPS_PORTS, "--tcp": TCP_PORTS, "--udp": UDP_PORTS}
        listening = [word for flag, numbers in ports.items() for word in (flag, *map(str, numbers))]
        keys = ["--cert", str(pair.certificate), "--key", str(pair.key)]
        self._spawn("internet", [sys.executable, str(SHARE / "answer.py"), "--name", "internet", *listening, *keys])

    def wait_started(self) -> None:
        """Wait until the router's servers, the slowest of which is the internet, accept connections."""
        probe = network.in_netns(self.netns, ["ss", "-Hltn", "( sport = :9000 or sport = :53 )"])
        wait_until(lambda: len(run(probe).stdout.splitlines()) == 3, "the router's servers to listen")

    def serve(self, name: str, addresses: Sequence[str]) -> None:
        """Let a name resolve to these addresses from now on (none: the name is gone), with the router and the foreign
        name server. Certificates cover *.example.com, *.example.net and *.example.org."""
        known = [line.split() for line in self.hosts.read_text().splitlines()]
        kept = [(address, other) for address, other in known if other != name]
        self._write_hosts([*kept, *((address, name) for address in addresses)])
        present = run(["ip", "-n", self.names.netns(self.name), "-o", "addr", "show", "dev", "lo"]).stdout
        missing = [address for address in addresses if f" {address}/32 " not in present]
        network.ip([f"addr add {address}/32 dev lo" for address in missing], self.names.netns(self.name))

        def served() -> bool:
            said = self.run(["dig", "+short", "+tries=1", "+time=1", f"@{self.address}", name], check=False).stdout
            return set(said.split()) == set(addresses)

        wait_until(served, f"the router to serve {name}")

    def _write_hosts(self, names: Sequence[tuple[str, str]]) -> None:
        write_if_changed(self.hosts, "".join(f"{address} {name}\n" for address, name in names))

    def _spawn(self, name: str, argv: Sequence[str]) -> None:
        cgroups.spawn(argv, cgroup=self.cgroup, netns=self.netns, log=self.hosts.parents[1] / f"{name}.log")
