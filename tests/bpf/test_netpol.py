"""The published cases of the Kubernetes network-policy suite through the real programs of two nodes: the first packet
of each question goes the whole way from pod to pod, and, if it arrives, so does the answer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from bpf import packet as c
from bpf.judge import MACS, answer, first, install, passed, wired
from bpf.packet import Packet
from instruments.clusters import Raw
from instruments.depth import thinned
from instruments.netpol import CASES, NODE_OF, PODS, load, manifests, modes, node, questions
from netstack.kernel.programs import Compiled

pytestmark = pytest.mark.root
Question = tuple[str, str, str, int]
"""From, to, protocol, port."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the nodes, with a device for each of its pods."""

    number: int
    node: Packet
    devices: dict[str, int]


@pytest.fixture(scope="module")
def sides(compiled: Compiled) -> Iterator[dict[int, Side]]:
    with ExitStack() as stack:
        made = {}
        for number in (1, 2):
            pods = [pod for pod in PODS if NODE_OF[pod[2:]] == number]
            namespace = stack.enter_context(wired(number, len(pods)))
            instrument = Packet(compiled, namespace)
            stack.callback(instrument.close)
            devices = {pod: instrument.device(f"pod{at}") for at, pod in enumerate(pods)}
            made[number] = Side(number, instrument, devices)
        yield made


@pytest.fixture(scope="module")
def source_ports() -> Iterator[int]:
    """One for each step of each case: no flow is known from another."""
    return itertools.count(20000)


def carried(
    sides: Mapping[int, Side], source: str, destination: str, packets: dict[Question, bytes]
) -> dict[Question, bytes]:
    """Those of the packets that arrive: out of the pod's device, by the uplinks if it is to another node, and in."""
    here, there = sides[NODE_OF[source[2:]]], sides[NODE_OF[destination[2:]]]
    door = here.devices[source]
    packets = passed(here.node, "pod_ingress", packets, door, door, (c.POD_MAC, c.HOST_MAC))
    if here is not there:
        between = (MACS[here.number], MACS[there.number])
        packets = passed(here.node, "uplink_egress", packets, here.node.uplink, door, between)
        door = there.node.uplink
        packets = passed(there.node, "uplink_ingress", packets, door, door, between)
    return passed(there.node, "pod_egress", packets, there.devices[destination], door, (c.HOST_MAC, c.POD_MAC))


@pytest.mark.parametrize("case", thinned(CASES), ids=lambda case: case["name"])
def test_the_programs_pass_what_was_published(sides: dict[int, Side], source_ports: Iterator[int], case: Raw) -> None:
    clusters = {number: node(number, modes(case)[0]) for number in sides}
    for step in case["steps"]:
        source_port = next(source_ports)
        for number, cluster in clusters.items():
            load(cluster, manifests(step))
            install(sides[number].node, cluster, sides[number].devices)
        wanted = {tuple(question): connects for *question, connects in questions(step)}
        for source, destination in itertools.permutations(PODS, 2):
            asked = {
                question: first(PODS[source], PODS[destination], protocol, source_port, port)
                for question in wanted
                for protocol, port in [question[2:]]
                if question[:2] == (source, destination)
            }
            arrived = carried(sides, source, destination, asked)
            assert {question: question in arrived for question in asked} == {
                question: wanted[question] for question in asked
            }
            back = {question: answer(packet) for question, packet in arrived.items()}
            assert carried(sides, destination, source, back).keys() == arrived.keys()
