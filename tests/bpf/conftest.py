"""Fixtures of the folder: the compiled set, the wires of one node, and the instrument on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf.namespaces import Namespace
from bpf.packet import NODE, NODE_MAC, OTHER_NODE, OTHER_NODE_MAC, SETTINGS, Packet
from netstack.kernel.loader import compiled_set
from netstack.kernel.programs import Compiled


@pytest.fixture(scope="session")
def compiled() -> Compiled:
    return compiled_set(SETTINGS)


@pytest.fixture(scope="session")
def wires() -> Iterator[Namespace]:
    """A namespace with the devices of one node. Nothing is sent on them."""
    namespace = Namespace()
    try:
        for name in ("uplink", "pod", "neighbour"):
            namespace.link(name, f"{name}-peer")
        namespace.ip("link", "set", "uplink", "address", NODE_MAC)  # by which a frame is this host's or another's
        with namespace.entered():
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
        for node, other, pods in ((NODE, OTHER_NODE, "10.244.2.0/24"), ("fd00::21", "fd00::22", "fd00:2::/64")):
            namespace.ip("addr", "add", f"{node}/{24 if '.' in node else 64}", "dev", "uplink")
            namespace.ip("neigh", "add", other, "lladdr", OTHER_NODE_MAC, "dev", "uplink")
            namespace.ip("route", "add", pods, "via", other)
        namespace.ip("addr", "add", "192.168.86.121/32", "dev", "lo")  # one more that no table knows
        yield namespace
    finally:
        namespace.close()


@pytest.fixture(scope="session")
def instrument(compiled: Compiled, wires: Namespace) -> Iterator[Packet]:
    made = Packet(compiled, wires)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def node(instrument: Packet) -> Packet:
    """The instrument with tables as they were at first: making it anew for each test is most of a test's time."""
    instrument.reset()
    return instrument
