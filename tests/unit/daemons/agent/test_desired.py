"""The whole compile: random clusters against the naive reading, transitions, generations, overflow."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instruments import clusters
from instruments.cluster import Cluster, Maps, check_between
from instruments.clusters import Raw
from instruments.depth import examples
from instruments.reference import World
from netstack.agent.desired import Memory
from netstack.agent.identities import RANGES_MATCH
from netstack.agent.order import plan
from netstack.core.table import Table
from netstack.kernel import layout

modes = st.sets(st.sampled_from(RANGES_MATCH)).map(frozenset)


def node(ranges_match: frozenset[str]) -> Cluster:
    cluster = Cluster()
    cluster.place = replace(cluster.place, ranges_match=ranges_match)
    return cluster


def put(cluster: Cluster, manifests: list[Raw]) -> World:
    """The drawn world into the cluster, over what was there; and as the reference sees it."""
    for ref in [ref for ref in cluster.objects if ref.kind.endswith("Policy")]:
        del cluster.objects[ref]
    cluster.put(*manifests)
    for name in clusters.OWN:
        cluster.attach(name)
    return World(manifests, "n1", cluster.place.ranges_match)


def agree(cluster: Cluster, world: World) -> None:
    for pod, direction, peer in itertools.product(clusters.OWN, ("egress", "ingress"), clusters.PEERS):
        for protocol, port in clusters.PACKETS if peer != pod else ():
            wanted = world.judge(pod, direction, peer, protocol, port)
            got = cluster.one_way(pod, direction, peer, port, protocol)
            assert got == wanted, f"{direction} of {pod}, {peer} {port}/{protocol}: tables {got}, reference {wanted}"


@settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(clusters.worlds(), modes)
def test_the_tables_allow_exactly_what_the_objects_say(manifests: list[Raw], ranges_match: frozenset[str]) -> None:
    cluster = node(ranges_match)
    world = put(cluster, manifests)
    desired = cluster.compile()
    assert not desired.accepted.refused and not cluster.broken
    agree(cluster, world)


@settings(max_examples=examples(15), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(clusters.worlds(for_nodes=False), clusters.worlds(for_nodes=False), modes)
def test_no_state_between_two_worlds_opens_or_breaks_anything(
    first: list[Raw], second: list[Raw], ranges_match: frozenset[str]
) -> None:
    cluster = node(ranges_match)
    put(cluster, first)
    cluster.compile()
    world = put(cluster, second)
    cluster.compile()
    agree(cluster, world)


def test_the_generation_grows_only_when_verdicts_may_change() -> None:
    cluster = Cluster()
    cluster.pod("one/a", {"app": "a"})
    assert cluster.compile().generation == 1
    cluster.service("one/web", ["10.244.1.3"], clusterIP="10.96.0.1")
    assert cluster.compile().generation == 1
    cluster.pod("one/b", {"app": "b"})
    assert cluster.compile().generation == 2


def test_a_change_that_was_broken_off_anywhere_ends_in_another_generation() -> None:
    """Else flows that the change denies would go on: an agent that was killed has told nobody to judge them again."""
    cluster = Cluster()
    cluster.pod("one/a", {"app": "a"})
    cluster.pod("one/b", {"app": "b"}, node="n2")
    spec = {"endpointSelector": {}, "ingress": [{"fromEndpoints": [{"matchLabels": {"app": "b"}}]}]}
    policy: Raw = {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy"}
    policy |= {"metadata": {"name": "p", "namespace": "one"}}
    cluster.put(policy | {"spec": spec})
    before = cluster.compile()
    cluster.put(policy | {"spec": spec | {"ingress": [{}]}})
    cluster.relabel("one/b", {"app": "c"})
    after = cluster.compile()
    changes = plan(before.tables, after.tables)
    policies = [number for number, change in enumerate(changes) if change.table in ("policy", "identities")]
    assert len(policies) > 1
    for written in range(policies[0] + 1, len(changes)):
        maps = Maps(before.tables)
        for change in changes[:written]:
            maps.apply(change)
        torn = {name: Table(name, entries) for name, entries in maps.tables.items()}
        cluster.before = replace(cluster.before, tables=torn)
        repaired = cluster.recompile(Memory())
        assert repaired.generation == before.generation + 1, f"after {written} of {len(changes)} writes"
        check_between(torn, repaired.tables)
        assert repaired.tables == after.tables


def test_config_says_who_the_node_is() -> None:
    cluster = Cluster()
    cluster.compile()
    config = layout.Config.unpack(cluster.table("config").entries[layout.Number(0).pack()])
    assert (config.node4[12:], config.pod_net4[12:], config.pod_net4_bits) == (
        b"\xc0\xa8V\x15",
        b"\x0a\xf4\x01\x00",
        120,
    )
    assert (config.uplink, config.node6) == (2, bytes(16))


def test_a_policy_that_the_source_cannot_read_denies_its_namespace() -> None:
    cluster = Cluster()
    cluster.pod("one/a")
    cluster.pod("two/b")
    cluster.put(
        {
            "apiVersion": "cilium.io/v9",
            "kind": "CiliumNetworkPolicy",
            "metadata": {"name": "p", "namespace": "one"},
            "spec": {"endpointSelector": {"matchLabels": {"app": "z"}}},
        }
    )
    desired = cluster.compile()
    assert cluster.one_way("one/a", "egress", "8.8.8.8", 80) == "denied"
    assert cluster.one_way("two/b", "egress", "8.8.8.8", 80) == "allowed"
    (refusal,) = desired.accepted.refused.values()
    assert str(refusal) == (
        "CiliumNetworkPolicy one/p: apiVersion: cilium.io/v9 is not served; known: cilium.io/v2; "
        "the pods that it selects deny instead"
    )
