"""The reading end of the ring, with the real programs at the other end."""

from __future__ import annotations

import asyncio
import os
import select
import struct
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from bpf.namespaces import Namespace
from bpf.packet import HOST_MAC, POD, POD_MAC, Packet
from netstack.kernel import layout as l
from netstack.kernel.bpf import Map
from netstack.kernel.programs import Compiled
from netstack.kernel.ring import Ring

pytestmark = pytest.mark.root


def dup(table: Map) -> Map:
    return Map(os.dup(table.fd), table.name)


@pytest.fixture
def node(compiled: Compiled, wires: Namespace) -> Iterator[Packet]:
    """One of its own, whose ring holds 51 records of 80 bytes."""
    with closing(Packet(compiled, wires)) as made:
        made.maps["events"] = Map.create("events", replace(made.maps["events"].definition, entries=4096))
        yield made


@pytest.fixture
def ring(node: Packet) -> Iterator[Ring]:
    with closing(Ring(dup(node.maps["events"]))) as made:
        yield made


def connect(node: Packet, ports: range) -> None:
    """The first packet of a connection to each port. The checksum is not kept: no program reads it."""
    frame = bytes(Ether(src=POD_MAC, dst=HOST_MAC) / IP(src=POD, dst="203.0.113.9") / TCP(sport=4000, flags="S"))
    frames = (frame[:36] + struct.pack("!H", port) + frame[38:] for port in ports)
    node.send("pod_ingress", frames, node.pod, node.pod)


def ports(ring: Ring) -> list[int]:
    return [l.Event.unpack(record).port for record in ring.read()]


def readable(ring: Ring) -> bool:
    return bool(select.select([ring], [], [], 0)[0])


def test_records_come_once_in_their_order(node: Packet, ring: Ring) -> None:
    assert ports(ring) == [] and not readable(ring)
    connect(node, range(1, 4))
    assert readable(ring)
    assert ports(ring) == [1, 2, 3]
    assert ports(ring) == [] and not readable(ring)
    connect(node, range(4, 5))
    assert ports(ring) == [4]


def test_batches_come_as_the_programs_write(node: Packet, ring: Ring) -> None:
    async def two() -> list[list[int]]:
        batches, seen = ring.batches(pace_s=0.0), []
        for wanted in (range(1, 4), range(4, 6)):
            connect(node, wanted)
            seen.append([l.Event.unpack(record).port for record in await anext(batches)])
        return seen

    assert asyncio.run(two()) == [[1, 2, 3], [4, 5]]


def test_a_record_that_goes_round_the_end_is_whole(node: Packet, ring: Ring) -> None:
    for first in range(0, 200, 20):
        connect(node, range(first, first + 20))
        assert ports(ring) == list(range(first, first + 20))


def test_what_does_not_fit_is_counted_as_lost(node: Packet, ring: Ring) -> None:
    connect(node, range(100))
    kept = ports(ring)
    assert kept == list(range(51))
    (budget,) = node.entries("event_budget").values()
    assert isinstance(budget, l.Budget) and budget.lost == 49
