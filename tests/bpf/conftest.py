"""Fixtures of the folder: the compiled set, the wires of one node, and the instrument on them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bpf.judge import wired
from bpf.namespaces import Namespace
from bpf.packet import SETTINGS, Packet
from netstack.kernel.loader import compiled_set
from netstack.kernel.programs import Compiled


@pytest.fixture(scope="session")
def compiled() -> Compiled:
    return compiled_set(SETTINGS)


@pytest.fixture(scope="session")
def wires() -> Iterator[Namespace]:
    with wired(1) as namespace:
        yield namespace


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
