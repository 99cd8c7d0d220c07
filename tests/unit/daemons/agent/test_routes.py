"""Routes between nodes."""

from __future__ import annotations

import pytest

from netstack.agent.routes import PROXY_ROUTE, PROXY_ROUTE_V6, PROXY_RULE, Wanted, compile_routes, contradictions
from netstack.core.address import Prefix, pack
from netstack.core.ref import Ref
from netstack.source.models import Meta, Node

HERE, THERE, OURS, THEIRS = "192.168.86.21", "192.168.86.22", "10.244.1.0/24", "10.244.2.0/24"


def node(name: str, addresses: list[str], cidrs: list[str]) -> Node:
    return Node(Meta(Ref("Node", "", name)), tuple(map(pack, addresses)), tuple(map(Prefix.parse, cidrs)), False)


def test_every_other_nodes_pods_are_reached_by_its_address() -> None:
    nodes = [node("n1", ["192.168.86.21"], ["10.244.1.0/24"]), node("n2", ["192.168.86.22"], ["10.244.2.0/24"])]
    assert compile_routes(nodes, "n1", []) == {
        PROXY_ROUTE,
        Wanted(Prefix.parse("10.244.2.0/24"), "uplink", pack("192.168.86.22")),
    }


def test_each_family_by_an_address_of_its_own() -> None:
    both = node("n2", ["192.168.86.22", "fd00::22"], ["10.244.2.0/24", "fd00:2::/64"])
    only4 = node("n3", ["192.168.86.23"], ["fd00:3::/64"])
    wanted = compile_routes([both, only4], "n1", [])
    assert Wanted(Prefix.parse("fd00:2::/64"), "uplink", pack("fd00::22")) in wanted
    assert len(wanted) == 3


def test_the_clusters_ranges_are_refused_where_nobody_has_them() -> None:
    assert Wanted(Prefix.parse("10.96.0.0/12"), "") in compile_routes([], "n1", [Prefix.parse("10.96.0.0/12")])


def test_the_proxys_mark_leads_here() -> None:
    assert (PROXY_RULE.mark, PROXY_RULE.mask, PROXY_RULE.table) == (0x53000000, 0xFF000000, PROXY_ROUTE.table)
    assert PROXY_ROUTE.device == "lo"


def test_the_proxys_mark_leads_here_for_ipv6_where_the_cluster_has_it() -> None:
    four, six = Prefix.parse("10.244.0.0/16"), Prefix.parse("fd00:244::/48")
    assert PROXY_ROUTE_V6 not in compile_routes([], "n1", iter([four]))
    assert {PROXY_ROUTE, PROXY_ROUTE_V6, Wanted(six, "")} <= compile_routes([], "n1", iter([four, six]))


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([node("n1", [HERE], [OURS]), node("n2", [THERE], [THEIRS])], []),
        ([node("n1", [HERE, "fd00::21"], [OURS, "fd00:1::/64"])], []),
        ([node("n1", [HERE], ["10.244.1.0/23"]), node("n2", [], [])], []),
        ([node("n1", [], []), node("n2", [THERE], [THEIRS])], []),
        (
            [node("n1", [THERE, HERE], [THEIRS])],
            [
                f"Node n1 has the address {THERE}, but this node goes by {HERE}",
                f"Node n1 has the pod range {THEIRS}, but this node gives addresses of {OURS} to its pods",
            ],
        ),
        (
            [node("n1.lan", [HERE], [OURS])],
            [
                f"Node n1.lan has this node's address {HERE}, but this node is called n1",
                f"Node n1.lan has the pod range {OURS}, but this node gives addresses of {OURS} to its pods",
            ],
        ),
        (
            [node("n1", [HERE], [OURS]), node("n2", [THERE], [OURS])],
            [f"Node n2 has the pod range {OURS}, but this node gives addresses of {OURS} to its pods"],
        ),
    ],
)
def test_what_nodes_and_settings_say_otherwise_of_one_another(nodes: list[Node], said: list[str]) -> None:
    assert list(contradictions(nodes, "n1", [pack(HERE)], [Prefix.parse(OURS)])) == said
