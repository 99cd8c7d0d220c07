"""The published cases of the Kubernetes network-policy suite (instruments/netpol.yaml): the naive reading says what
they say, and so do the tables of the nodes that the pods are on. (The programs over these tables: bpf/test_netpol.py.)
"""

from __future__ import annotations

import itertools

import pytest

from instruments.clusters import Raw
from instruments.netpol import CASES, NODE_OF, load, manifests, modes, node, questions
from instruments.reference import World


def test_all_published_cases_are_here() -> None:
    assert len(CASES) == len({case["name"] for case in CASES}) == 45
    connecting = [wanted for case in CASES for step in case["steps"] for *_, wanted in questions(step)]
    assert connecting.count(False) > 500 and connecting.count(True) > 2500


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_naive_reading_says_what_was_published(case: Raw) -> None:
    for mode, step in itertools.product(modes(case), case["steps"]):
        world = World(manifests(step), "n1", mode)
        for source, destination, protocol, port, wanted in questions(step):
            assert world.connects(source, destination, protocol, port) == wanted, f"{source} > {destination} {port}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_nodes_tables_say_what_was_published(case: Raw) -> None:
    for mode in modes(case):
        nodes = [node(number, mode) for number in (1, 2)]
        for step in case["steps"]:
            for cluster in nodes:
                load(cluster, manifests(step))
            for source, destination, protocol, port, wanted in questions(step):
                sender, receiver = nodes[NODE_OF[source[2:]] - 1], nodes[NODE_OF[destination[2:]] - 1]
                out = sender.one_way(source, "egress", destination, port, protocol)
                into = receiver.one_way(destination, "ingress", source, port, protocol)
                assert ((out, into) == ("allowed", "allowed")) == wanted, f"{source} > {destination} {port}/{protocol}"
