"""Entries of the policy map: what is written, for whom, under which names. What they decide: test_cilium.py."""

from __future__ import annotations

from typing import Any

from instruments.calls import calls
from instruments.cluster import Cluster
from netstack.agent.identities import Identities, Peer
from netstack.agent.policy.accept import read_policy
from netstack.agent.policy.entries import HOST_RULE, Subject, subject
from netstack.agent.policy.peers import Match, Resolver
from netstack.agent.policy.rules import Action, Direction
from netstack.core.ref import Ref
from netstack.core.table import Table
from netstack.kernel import layout

DENY_WIDE = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: one}
spec:
  endpointSelector: {}
  ingressDeny: [{fromEntities: [world], toPorts: [{ports: [{port: "0", protocol: TCP}]}]}]
  ingress: [{fromEntities: [world], toPorts: [{ports: [{port: "80"}]}]}]
"""


def entries(cluster: Cluster) -> dict[Match, tuple[int, str]]:
    """Match -> (action, rule) of the first endpoint."""
    assert cluster.desired is not None
    found = {}
    for raw, value in cluster.table("policy").entries.items():
        key, rule = layout.PolicyKey.unpack(raw), layout.PolicyRule.unpack(value)
        if key.endpoint == 1:
            bits = max(key.bits - layout.POLICY_BITS_PROTO, 0)
            match = Match(key.peer, Direction(key.direction), key.protocol, key.port, bits)
            found[match] = (rule.action, str(cluster.desired.policy.rules[rule.rule]))
    return found


def test_an_allow_inside_a_deny_of_the_same_peer_is_left_out() -> None:
    cluster = Cluster()
    cluster.pod("one/a")
    cluster.put(DENY_WIDE)
    cluster.compile()
    world = layout.IDENTITY_WORLD
    found = {match: entry for match, entry in entries(cluster).items() if match.peer == world}
    name = "CiliumNetworkPolicy one/p: spec."
    assert found == {
        Match(world, Direction.INGRESS, 6): (layout.ACTION_DENY, name + "ingressDeny[0]"),
        Match(world, Direction.INGRESS, 17, 80, 16): (layout.ACTION_ALLOW, name + "ingress[0]"),
        Match(world, Direction.INGRESS, 132, 80, 16): (layout.ACTION_ALLOW, name + "ingress[0]"),
    }


def test_every_port_is_of_what_has_ports() -> None:
    cluster = Cluster()
    cluster.pod("one/a")
    cluster.pod("one/b", node="n2")
    everywhere = {"toPorts": [{"ports": [{"port": "0"}]}]}
    spec = {"endpointSelector": {}, "ingress": [everywhere], "egress": [{"toEntities": ["cluster"]}]}
    metadata = {"name": "p", "namespace": "one"}
    cluster.put({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": metadata, "spec": spec})
    cluster.compile()
    for protocol in ("TCP", "UDP", "SCTP"):
        assert cluster.verdict("one/b", "one/a", 7, protocol) == "ALLOWED"
    assert cluster.verdict("one/b", "one/a", 8, "ICMP") == "DEFAULT_DENY"
    assert cluster.verdict("one/a", "one/b", 8, "ICMP") == "ALLOWED", "a rule that names no ports is for all"


def test_the_hosts_way_in_has_a_name_too() -> None:
    cluster = Cluster()
    cluster.pod("one/a")
    cluster.put(DENY_WIDE)
    cluster.compile()
    host = entries(cluster)[Match(layout.IDENTITY_HOST, Direction.INGRESS)]
    assert host == (layout.ACTION_ALLOW, str(HOST_RULE))


def test_endpoints_of_other_nodes_have_no_entries() -> None:
    cluster = Cluster()
    cluster.pod("one/far", node="n2")
    cluster.put(DENY_WIDE)
    cluster.compile()
    assert cluster.table("policy").entries == {}


def test_rule_numbers_depend_on_names_alone() -> None:
    one, two = Cluster(), Cluster()
    two.put(DENY_WIDE.replace("name: p", "name: a"))
    for cluster in (one, two):
        cluster.pod("one/a")
        cluster.put(DENY_WIDE)
        cluster.compile()
    assert one.desired is not None and two.desired is not None
    names = {ref: number for number, ref in two.desired.policy.rules.items()}
    assert all(names[ref] == number for number, ref in one.desired.policy.rules.items() if ref in names)
    assert any(ref in names for ref in one.desired.policy.rules.values())


def test_covering() -> None:
    everything = Match(1, Direction.INGRESS)
    tcp = Match(1, Direction.INGRESS, 6)
    block = Match(1, Direction.INGRESS, 6, 8000, 10)
    assert everything.covers(tcp) and tcp.covers(block) and block.covers(Match(1, Direction.INGRESS, 6, 8001, 16))
    assert not block.covers(tcp) and not tcp.covers(everything) and not tcp.covers(Match(1, Direction.INGRESS, 17))
    assert not block.covers(Match(1, Direction.INGRESS, 6, 9000, 16))
    assert (everything.bits, tcp.bits, block.bits) == (72, 80, 90)


def to_world(first: int, **more: Any) -> dict[str, Any]:
    """A rule for 800 ports."""
    ports = [{"port": str(port), "protocol": "TCP"} for port in range(first, first + 800)]
    return {"toEntities": ["world"], "toPorts": [{"ports": ports[at : at + 40], **more} for at in range(0, 800, 40)]}


def compiled(**sections: Any) -> tuple[Subject, int]:
    """What a policy comes to, and how many calls that takes."""
    raw = {"endpointSelector": {}, **sections}
    specs = tuple(read_policy(Ref("CiliumNetworkPolicy", "one", "p"), (raw,)))
    world = Peer(layout.IDENTITY_WORLD, "world", entities=frozenset({"world"}))
    resolver, made = Resolver(), list[Subject]()
    resolver.update(Identities((world,), Table("identities"), {}, {}), {}, [])
    called = calls(lambda: made.append(subject(world, specs, resolver, ())))
    return made[0], called


def test_many_denies_beside_many_allows_are_not_compared_one_by_one() -> None:
    """Who may write a policy in some namespace could keep the agent at it for longer than its watchdog waits."""

    made, called = compiled(egress=[to_world(1000)], egressDeny=[to_world(1400)])
    assert called < 200_000
    actions = {match.port: action for match, (action, _) in made.entries.items()}
    assert sorted(actions) == list(range(1000, 2200))
    assert {port for port, action in actions.items() if action is Action.ALLOW} == set(range(1000, 1400))


def test_many_ports_for_questions_beside_many_for_all_are_not_compared_one_by_one() -> None:
    named = {"rules": {"dns": [{"matchName": "a.io"}]}}
    made, called = compiled(egress=[to_world(1000, **named), to_world(1400)])
    assert called < 400_000
    asked = {server.port: {name.text for name in names} for server, names in made.queries.items()}
    assert asked == {port: {"a.io", "*"} if port >= 1400 else {"a.io"} for port in range(1000, 1800)}
