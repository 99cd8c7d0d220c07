"""What a change opens and denies: exactly the pairs and ports about which the two readings differ."""

from __future__ import annotations

import itertools
from pathlib import Path

import yaml
from hypothesis import HealthCheck, given, settings

from instruments import clusters
from instruments.clusters import PODS, Raw
from instruments.depth import examples
from instruments.reference import World
from netstack.agent.desired import Memory, Place
from netstack.agent.effect import WORLD, Effect, State, of_change, of_ranges, parties
from netstack.agent.policy.accept import READERS
from netstack.core.ref import Ref
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


@settings(max_examples=examples(25), deadline=None, suppress_health_check=[HealthCheck.too_slow])
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


def changed(before: list[Raw], after: list[Raw], policy: Ref, alike: Place | None = None) -> list[Effect]:
    alike = alike or Place("", (), ())
    everyone = parties(snapshot(after), alike.ingress_services)
    memory = Memory()
    was, will = (State(snapshot(manifests), everyone, alike, memory=memory) for manifests in (before, after))
    return list(of_change(was, will, everyone, policy))


DENY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: one}
spec: {podSelector: {}, policyTypes: [Ingress, Egress], egress: [{to: [{podSelector: {}}], ports: [{port: 80}]}]}
"""


def test_a_policy_denies_what_it_does_not_allow_and_is_named_for_it() -> None:
    found = changed(plain(""), plain(DENY), Ref("NetworkPolicy", "one", "p"))
    lines = sorted(str(effect) for effect in found if effect.protocol == "TCP" and effect.source.name == "one/a")
    by = "by NetworkPolicy one/p"
    assert lines == sorted(
        [
            f"denies one/a -> one/c (10.244.2.12) TCP, {by}",
            f"denies one/a -> two/b (10.244.1.11) TCP, {by}",
            f"denies one/a -> two/d (10.244.2.130) TCP, {by}",
            f"denies one/a -> world (0.0.0.0) TCP, {by}",
            *(f"denies one/a -> node n{n} (192.168.86.2{n}) TCP, {by}" for n in (1, 2, 3)),
        ]
    ), "one/c's own ingress denies what one/a's egress allows"
    came = {effect.source.name for effect in found if effect.destination.name == "one/a"}
    assert came == {"one/c", "two/b", "two/d", "node n2", "node n3", "world"}, "its own node reaches it"
    assert not any("two/" in effect.source.name and "two/" in effect.destination.name for effect in found)


def test_taking_it_away_opens_the_same() -> None:
    policy = Ref("NetworkPolicy", "one", "p")
    there, back = changed(plain(""), plain(DENY), policy), changed(plain(DENY), plain(""), policy)
    assert [(e.source, e.destination, e.protocol, e.ports) for e in there] == [
        (e.source, e.destination, e.protocol, e.ports) for e in back
    ]
    assert {effect.opens for effect in back} == {True}


def test_on_trial_it_opens_and_denies_nothing() -> None:
    tried = DENY.replace("name: p,", "name: p, annotations: {netstack.kubelab.io/audit: 'true'},")
    policy = Ref("NetworkPolicy", "one", "p")
    assert changed(plain(""), plain(tried), policy) == []
    manifests, everyone = snapshot(plain(tried)), parties(snapshot(plain(tried)))
    now, enforced = (State(manifests, everyone, Place("", (), ()), {}, refs) for refs in ((), (policy,)))
    assert list(of_change(now, enforced, everyone, policy)) == changed(plain(""), plain(DENY), policy)
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "one", "annotations": {}}}
    namespace["metadata"] = {"name": "one", "annotations": {"netstack.kubelab.io/audit": "true"}}
    assert changed([*plain(""), namespace], [*plain(DENY), namespace], policy) == []


def test_the_ingress_of_each_node_is_one_of_the_ends() -> None:
    service = Ref("Service", "web", "ingress")
    piece = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "ingress-1",
            "namespace": "web",
            "labels": {
                "kubernetes.io/service-name": "ingress",
                "endpointslice.kubernetes.io/managed-by": "netstack-ingress",
            },
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.244.2.2"], "nodeName": "n2"}],
    }
    objects = [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "ingress", "namespace": "web"},
            "spec": {"selector": {"app": "nginx"}},
        },
        piece,
    ]
    place = Place("", (), (), ingress_services=(service,))
    policy = Ref("NetworkPolicy", "one", "p")
    found = changed([*plain(""), *objects], [*plain(DENY), *objects], policy, place)
    assert any(e.source.name == "web/netstack-ingress of n2" and e.destination.name == "one/a" for e in found)
    own = DENY.replace("namespace: one", "namespace: web").replace(
        "podSelector: {},", "podSelector: {matchLabels: {app: nginx}},"
    )
    found = changed([*plain(""), *objects], [*plain(own), *objects], Ref("NetworkPolicy", "web", "p"), place)
    assert any(e.source.name == "web/netstack-ingress of n2" and e.destination.name == "one/a" for e in found)


NODE_POLICY = """
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: p}
spec: {nodeSelector: {matchExpressions: [{key: any, operator: DoesNotExist}]}, ingress: [{fromEntities: [world]}]}
"""


def test_a_policy_for_nodes_is_about_them() -> None:
    policy = Ref("CiliumClusterwideNetworkPolicy", "", "p")
    found = [effect for effect in changed(plain(""), plain(NODE_POLICY), policy) if effect.protocol == "TCP"]
    assert {effect.destination.name for effect in found} == set(NODES)
    assert "node n1" in {effect.source.name for effect in found} and not any(effect.opens for effect in found)
    assert not any(port in effect.ports for effect in found for port in (22, 6443)), "nobody is locked out"


@settings(max_examples=examples(25), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(clusters.worlds())
def test_a_change_is_the_difference_of_the_two_naive_readings(manifests: list[Raw]) -> None:
    policies = [item for item in manifests if item["kind"] in READERS]
    for policy in {reference(item): item for item in (*policies[:1], *policies[-1:])}.values():
        without = [item for item in manifests if item is not policy]
        found = {
            (effect.source.name, effect.destination.name, protocol, port): effect.opens
            for effect in changed(without, manifests, reference(policy))
            for protocol, port in SOME
            if effect.protocol == protocol
            and port in effect.ports
            and not {effect.source, effect.destination} & {*WORLD}
        }
        assert found == differences(without, manifests)


def differences(before: list[Raw], after: list[Raw]) -> dict[tuple[str, str, str, int], bool]:
    wanted = {}
    for source, destination in itertools.permutations([*PODS, *NODES], 2):
        for protocol, port in SOME:
            was, will = (connects(manifests, (), source, destination, protocol, port) for manifests in (before, after))
            if was != will:
                wanted[source, destination, protocol, port] = will
    return wanted


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
