"""What a change opens and denies: exactly the pairs and ports about which the two readings differ."""

from __future__ import annotations

import itertools
from pathlib import Path

import yaml
from hypothesis import HealthCheck, given, settings

from instruments import clusters
from instruments.clusters import PODS, Raw
from instruments.depth import DEPTH
from instruments.reference import World
from netstack.agent.effect import of_ranges
from netstack.source.directory import DirectorySource
from netstack.source.parse import parse, reference
from netstack.source.snapshot import Snapshot

NODES = {f"node n{number}": f"192.168.86.2{number}" for number in (1, 2, 3)}
NODE_OF = PODS | {name: name.removeprefix("node ") for name in NODES}
SOME = [("TCP", 80), ("TCP", 443), ("TCP", 8080), ("UDP", 53), ("UDP", 443), ("SCTP", 80), ("ICMP", 8)]
RANGE_POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: one}
spec:
  podSelector: {}
  egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [192.168.86.22/32]}}], ports: [{port: 80, endPort: 90}]}]
  policyTypes: [Egress]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: q, namespace: two}
spec: {endpointSelector: {}, egressDeny: [{toCIDR: [10.244.2.0/24]}], enableDefaultDeny: {egress: false}}
"""


def snapshot(manifests: list[Raw]) -> Snapshot:
    found = {reference(item): parse(item) for item in manifests}
    return Snapshot({ref: item for ref, item in found.items() if item is not None})


def plain(policies: str) -> list[Raw]:
    pods = [clusters.pod(name, {}, [], "default") for name in PODS]
    return [*map(clusters.node, (1, 2, 3)), *pods, *yaml.safe_load_all(policies)]


def test_every_pair_with_ports_and_the_rule() -> None:
    lines = sorted(f"[{effect.meant}] {effect}" for effect in of_ranges(snapshot(plain(RANGE_POLICY))))
    rule, deny = "NetworkPolicy one/p: spec.egress[0]", "CiliumNetworkPolicy two/q: spec.egressDeny[0]"
    assert lines == sorted(
        [
            *(
                f"[pods] opens {source} -> {to} ({clusters.ADDRESSES[to]}) TCP 80-90, by {rule}"
                for source in ("one/a", "one/c")
                for to in PODS
                if to != source
            ),
            *(
                f"[nodes] opens {source} -> node n{n} (192.168.86.2{n}) TCP 80-90, by {rule}"
                for source in ("one/a", "one/c")
                for n in (1, 3)
            ),
            *(
                f"[pods] denies {source} -> {to} ({clusters.ADDRESSES[to]}) {protocol}, by {deny}"
                for source, to in (("two/b", "one/c"), ("two/b", "two/d"), ("two/d", "one/c"))
                for protocol in ("TCP", "UDP", "SCTP", "ICMP")
            ),
        ]
    )


def test_without_ranges_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert list(of_ranges(Snapshot())) == []
    policy = {"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}
    metadata = {"name": "p", "namespace": "one"}
    more = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": policy}
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all([*plain(RANGE_POLICY)[:-2], more]))
    assert list(of_ranges(DirectorySource(tmp_path).snapshot())) == []


@settings(max_examples=25 * DEPTH, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(clusters.worlds())
def test_it_is_the_difference_of_the_two_naive_readings(manifests: list[Raw]) -> None:
    found = {
        (effect.source.name, effect.destination.name, protocol, port): effect.opens
        for effect in of_ranges(snapshot(manifests))
        for protocol, port in SOME
        if effect.protocol == protocol and port in effect.ports
    }
    wanted = {}
    for source, destination in itertools.permutations([*PODS, *NODES], 2):
        for protocol, port in SOME:
            was, will = (connects(manifests, mode, source, destination, protocol, port) for mode in ((), BOTH))
            if was != will:
                wanted[source, destination, protocol, port] = will
    assert found == wanted


BOTH = ("pods", "nodes")


def connects(
    manifests: list[Raw], mode: tuple[str, ...], source: str, destination: str, protocol: str, port: int
) -> bool:
    """As each end's own node sees it."""
    a, b = NODES.get(source, source), NODES.get(destination, destination)
    out = into = "allowed"
    here = NODE_OF[source] == NODE_OF[destination]
    if source in NODES and not here:
        out = World(manifests, NODE_OF[source], mode).judge_node("egress", b, protocol, port)
    if destination in NODES:
        into = World(manifests, NODE_OF[destination], mode).judge_node("ingress", a, protocol, port)
    if source in PODS:
        out = World(manifests, PODS[source], mode).judge(source, "egress", b, protocol, port)
    if destination in PODS:
        into = World(manifests, PODS[destination], mode).judge(destination, "ingress", a, protocol, port)
    return (out, into) == ("allowed", "allowed")
