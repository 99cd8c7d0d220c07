"""Fixtures of the folder: the compiled set, the wires of one node, and the instrument on them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bpf.namespaces import Namespace
from bpf.packet import NODE_MAC, SETTINGS, Packet
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
