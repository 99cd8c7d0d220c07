"""Failures of the LAN, a call each. (Failures of a node are methods of the node: node.py.)"""

from __future__ import annotations

from pathlib import Path

from . import network
from .names import Names
from .shell import run


def cable(names: Names, port: network.Port, plugged: bool) -> None:
    """Pull the cable, or plug it in: the other end sees its carrier go or come, as on metal."""
    network.ip([f"link set {port.link} {'up' if plugged else 'down'}"], names.netns(network.LAN))


def loss(names: Names, port: network.Port, percent: int) -> None:
    """Lose this share of the frames on one cable, in each direction by itself; 0 mends it.

    nftables in the bridge, because this kernel has no netem. Every frame of a port is forwarded by the bridge, which
    has no address of its own, so the forward hook sees them all.
    """
    if not 0 <= percent <= 100:
        raise ValueError(f"loss of {percent} %")
    table = f"bridge loss-{port.name}"
    rules = [f"add table {table}", f"delete table {table}"]
    if percent:
        rules.append(f"add table {table}")
        rules.append(f"add chain {table} forward {{ type filter hook forward priority 0; }}")
        for end in ("iifname", "oifname"):
            rules.append(f'add rule {table} forward {end} "{port.link}" numgen random mod 100 < {percent} drop')
    lan = names.netns_path(network.LAN)
    run(network.in_netns(lan, ["nft", "-f", "-"]), stdin="\n".join(rules) + "\n")


def link(names: Names, port: network.Port) -> tuple[Path, str]:
    """Where to capture what passes a port's cable: namespace and device."""
    return names.netns_path(network.LAN), port.link
