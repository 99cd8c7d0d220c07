"""A switch port that carries one VLAN with its tag: what a board whose uplink is a VLAN interface is plugged into.

This machine may lack VLAN interfaces, so the port tags and untags by itself, with two programs of four instructions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import network
from lab.names import Names
from lab.shell import run
from netstack.kernel.bpf import SCHED_CLS, Program

ETH_P_8021Q = 0x8100
PUSH, POP = 18, 19  # helpers skb_vlan_push(skb, protocol, tag), skb_vlan_pop(skb)
END = bytes.fromhex("b7000000000000009500000000000000")  # return TC_ACT_OK


def _set(register: int, value: int) -> bytes:
    return bytes((0xB7, register, 0, 0)) + value.to_bytes(4, "little")


def _call(helper: int) -> bytes:
    return bytes((0x85, 0, 0, 0)) + helper.to_bytes(4, "little")


@contextmanager
def tagged(names: Names, link: str, vlan: int) -> Iterator[None]:
    """What leaves the bridge by this port has the tag, and what comes in loses one."""
    protocol = int.from_bytes(ETH_P_8021Q.to_bytes(2, "big"), "little")  # as it lies in memory
    programs = {
        "egress": _set(2, protocol) + _set(3, vlan) + _call(PUSH) + END,
        "ingress": _call(POP) + END,
    }
    lan, pins = names.netns_path(network.LAN), names.run / "bpf"
    pins.mkdir()
    run(["mount", "-t", "bpf", "bpf", str(pins)])
    try:
        run(network.in_netns(lan, ["tc", "qdisc", "add", "dev", link, "clsact"]))
        for direction, instructions in programs.items():
            pin = pins / direction
            with Program.load(f"vlan_{direction}", SCHED_CLS, instructions) as program:
                program.pin(pin)
            attach = ["tc", "filter", "add", "dev", link, direction, "bpf", "da", "object-pinned", str(pin)]
            run(network.in_netns(lan, attach))
        yield
        run(network.in_netns(lan, ["tc", "qdisc", "del", "dev", link, "clsact"]))
    finally:
        run(["umount", str(pins)])
        Path(pins).rmdir()
