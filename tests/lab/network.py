"""The LAN: a bridge in a namespace of its own, and ports on it.

A port is a namespace whose `eth0` is plugged into the bridge; the bridge's end is called `p-<name>` and lies in the
LAN's namespace, where cables are pulled, packets lost and captured. Nothing of it touches the machine's own network:
each veth pair is born across two namespaces of the lab.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from .names import Names
from .shell import run

LAN = "lan"
BRIDGE = "br0"
NETWORK = "192.168.86.0/24"
GATEWAY = "192.168.86.1"


@dataclass(frozen=True, slots=True)
class Port:
    """A member of the LAN. Its MAC is made from its address, so that a node keeps its MAC over a power cut."""

    name: str
    address: str
    gateway: str | None = GATEWAY

    @property
    def mac(self) -> str:
        return "02:00:" + ":".join(f"{byte:02x}" for byte in IPv4Address(self.address).packed)

    @property
    def link(self) -> str:
        """The bridge's end of the cable."""
        return f"p-{self.name}"


def ip(commands: Sequence[str], netns: str | None = None) -> None:
    """Run `ip` commands in one process, in a namespace by name or the machine's own."""
    where = ["-n", netns] if netns else []
    run(["ip", *where, "-batch", "-"], stdin="\n".join(commands) + "\n")


def in_netns(path: Path, argv: Sequence[str]) -> list[str]:
    """The command line in another network namespace; /sys and mounts stay, unlike with `ip netns exec`."""
    return ["nsenter", f"--net={path}", "--", *argv]


def make_lan(names: Names) -> None:
    lan = names.netns(LAN)
    ip([f"netns add {lan}"])
    ip(["link set lo up", f"link add {BRIDGE} type bridge forward_delay 0 mcast_snooping 0"], lan)
    # A switch: frames pass no IP filter. IPv6 off, or the bridge itself would speak on the LAN.
    settings = ["net.ipv6.conf.all.disable_ipv6=1"]
    if Path("/proc/sys/net/bridge").exists():
        settings.append("net.bridge.bridge-nf-call-iptables=0")
    run(in_netns(names.netns_path(LAN), ["sysctl", "-q", *settings]))
    ip([f"link set {BRIDGE} up"], lan)


def plug(names: Names, port: Port) -> None:
    """Make the port's namespace, and its cable to the bridge."""
    lan, own = names.netns(LAN), names.netns(port.name)
    ip([f"netns add {own}"])
    ip(
        [
            f"link add {port.link} type veth peer name eth0 address {port.mac} netns {own}",
            f"link set {port.link} master {BRIDGE} up",
        ],
        lan,
    )
    commands = [
        "link set lo up",
        f"addr add {port.address}/{NETWORK.partition('/')[2]} brd + dev eth0",
        "link set eth0 up",
    ]
    if port.gateway:
        commands.append(f"route add default via {port.gateway}")
    ip(commands, own)


def unplug(names: Names, port: Port) -> None:
    """Remove the cable and the namespace, in whatever state they are."""
    run(["ip", "-n", names.netns(LAN), "link", "del", port.link], check=False)
    if names.netns_path(port.name).exists():
        ip([f"netns del {names.netns(port.name)}"])


def namespaces(names: Names) -> list[str]:
    """Names of the namespaces that exist for this lab."""
    return sorted(path.name for path in Path("/run/netns").glob(f"{names.prefix}-*"))
