"""Maps that are too small: what stays, what is said of it, and how a change gets by that has just enough room."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from instruments.cluster import Cluster
from netstack.agent.identities import CHANGING
from netstack.agent.order import is_guard
from netstack.core.address import pack
from netstack.core.table import Op
from netstack.kernel import layout

ALLOWED = "10.244.2.3"


def policy(name: str, ports: Iterable[int]) -> dict[str, Any]:
    listed = [{"port": str(port)} for port in ports]
    groups = [{"ports": listed[at : at + 40]} for at in range(0, len(listed), 40)]
    rule = {"fromEndpoints": [{"matchLabels": {"app": "far"}}], "toPorts": groups}
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name, "namespace": "one"},
        "spec": {"endpointSelector": {}, "ingress": [rule]},
    }


def ranges(name: str, count: int) -> dict[str, Any]:
    spec = {"endpointSelector": {}, "egress": [{"toCIDR": [f"203.0.113.{number}/32" for number in range(count)]}]}
    return policy(name, []) | {"spec": spec}


def started(**sizes: int) -> Cluster:
    """One pod of two that a policy lets ports 80 in, and a service."""
    cluster = Cluster(sizes=sizes)
    cluster.pod("one/a", {"app": "a"})
    cluster.pod("one/far", {"app": "far"}, node="n2", address=ALLOWED)
    cluster.service("one/web", ["10.244.1.3"], clusterIP="10.96.0.1")
    cluster.put(policy("p", [80]))
    assert not cluster.compile().overflows
    return cluster


def large(cluster: Cluster, what: str) -> str:
    """Objects that need more than there is; how the one is called that needs the most."""
    if what == "policy":
        cluster.put(policy("large", range(1000, 1100)))
        return "CiliumNetworkPolicy one/large"
    if what == "identities":
        cluster.put(ranges("wide", 60))
        return "CiliumNetworkPolicy one/wide"
    if what in ("services", "backends"):
        cluster.service("one/small", ["10.244.2.4/n2"], clusterIP="10.96.0.2")
        targets = [f"10.244.2.{number}/n2" for number in range(10, 60)]
        cluster.service("one/big", targets, clusterIP="10.96.0.3", externalIPs=[f"192.0.2.{n}" for n in range(60)])
        return "Service one/big"
    for number in range(50):
        cluster.pod(f"one/p{number}", {"app": "a"})
    return "the pods of this node"


def guards(cluster: Cluster) -> list[bytes]:
    return [key for key in cluster.table("policy").entries if is_guard(key)]


@pytest.mark.parametrize("small", ["policy", "identities", "endpoints", "conntrack", "services", "backends"])
def test_what_does_not_fit_changes_nothing_names_its_object_and_goes_on_when_there_is_room(small: str) -> None:
    cluster = started(**{small: 40})
    group = ("services", "slots", "backends") if small in ("services", "backends") else ("policy", "endpoints")
    before = {name: dict(cluster.table(name).entries) for name in group}
    objects, endpoints = dict(cluster.objects), dict(cluster.endpoints)
    holder = large(cluster, small)
    (overflow,) = cluster.compile().overflows.values()
    assert overflow.startswith(f"map {small} is too small: ")
    assert " entries of 40, " in overflow and f" of them for {holder}; nothing of it was changed" in overflow
    assert overflow.endswith("(the role's agent_settings), and a restart of the node")
    assert f"More: datapath.sizes.{small} in agent.yaml " in overflow
    after = {name: dict(cluster.table(name).entries) for name in group}
    assert {
        name: {key: value for key, value in after[name].items() if key not in guards(cluster)} for name in group
    } == before
    assert cluster.verdict("one/far", "one/a", 80) == "ALLOWED"
    assert cluster.verdict("one/far", "one/a", 1000) == "DEFAULT_DENY"
    cluster.objects, cluster.endpoints = objects, endpoints
    cluster.put(policy("p", [81]))
    cluster.service("one/late", ["10.244.1.3"], clusterIP="10.96.0.9")
    assert not cluster.compile().overflows
    assert cluster.verdict("one/far", "one/a", 81) == "ALLOWED"
    assert cluster.backends("10.96.0.9", 80)


def test_the_other_group_goes_on() -> None:
    cluster = started(policy=40)
    large(cluster, "policy")
    cluster.service("one/late", ["10.244.1.3"], clusterIP="10.96.0.9")
    assert len(cluster.compile().overflows) == 1
    assert cluster.backends("10.96.0.9", 80)


def test_rules_that_fit_but_not_beside_the_ones_they_replace_come_into_force() -> None:
    """By a state in which nothing new begins: no probe passes in it that the old or the new rules deny."""
    cluster = started(policy=200)
    generation = cluster.compile().generation
    cluster.put(policy("p", range(1001, 1100, 2)))
    assert not cluster.compile().overflows
    cluster.put(policy("p", range(2000, 2100, 2)))
    desired = cluster.compile()
    assert not desired.overflows and not desired.between
    assert desired.generation == generation + 2, "known flows are judged by the end alone"
    assert cluster.verdict("one/far", "one/a", 2000) == "ALLOWED"
    assert cluster.verdict("one/far", "one/a", 1001) == "DEFAULT_DENY"


def test_the_node_keeps_its_rules_when_those_of_pods_go_first() -> None:
    cluster = started(policy=230)
    host = policy("unused", [22]) | {"kind": "CiliumClusterwideNetworkPolicy", "metadata": {"name": "node"}}
    host["spec"] = {"nodeSelector": {}} | {key: value for key, value in host["spec"].items() if key == "ingress"}
    cluster.put(host, policy("p", range(1001, 1100, 2)))
    assert not cluster.compile().overflows
    cluster.put(policy("p", range(2000, 2100, 2)))
    steps = []
    before = cluster.before
    while (desired := cluster.recompile(cluster.memory)).between:
        steps.append(desired)
        cluster.before = type(before)(desired.tables, desired.accepted.good)
    (step,) = steps
    kept = list(step.tables["policy"].entries)
    assert kept and all(layout.PolicyKey.unpack(key).endpoint == layout.HOST_ENDPOINT for key in kept)
    cluster.before = before
    assert not cluster.compile().overflows
    assert cluster.verdict("one/far", "one/a", 2000) == "ALLOWED"


BUT_NOT_BAD = policy("p", []) | {
    "spec": {
        "endpointSelector": {},
        "ingress": [{"fromEntities": ["cluster"]}],
        "ingressDeny": [{"fromEndpoints": [{"matchLabels": {"app": "bad"}}]}],
    }
}


def test_rules_stay_for_want_of_room_but_nobody_has_what_they_give_to_who_was_there_before() -> None:
    cluster = started(policy=40)
    near = pack(cluster.pod("one/near", {"app": "far"}))
    cluster.pod("one/stays", {"app": "far"}, node="n2", address="10.244.2.4")
    goes = pack(cluster.pod("one/goes", {"app": "far"}, node="n2", address="10.244.2.5"))
    assert not cluster.compile().overflows
    objects = dict(cluster.objects)
    large(cluster, "policy")
    for name in ("one/far", "one/near"):
        cluster.relabel(name, {"app": "other"})
    for _ in range(2):
        assert cluster.compile().overflows
        assert cluster.verdict("one/far", "one/a", 80) == "POLICY_DENIED"
        assert cluster.verdict("one/near", "one/a", 80) == "POLICY_DENIED"
        assert cluster.verdict("one/stays", "one/a", 80) == "ALLOWED"
    assert not cluster.changes, "what is held is held by the second compile too"
    assert layout.Endpoint.unpack(cluster.table("endpoints").entries[near]).identity == CHANGING
    cluster.delete_pod("one/far")
    cluster.delete_pod("one/goes")
    cluster.compile()
    gone = layout.PrefixKey(128, goes).pack()
    assert layout.Identity.unpack(cluster.table("identities").entries[gone]).identity == CHANGING
    cluster.pod("one/next", {"app": "other"}, node="n2", address=ALLOWED)
    cluster.compile()
    assert cluster.verdict("one/next", "one/a", 80) == "POLICY_DENIED"
    cluster.objects = objects
    assert not cluster.compile().overflows
    assert cluster.verdict("one/far", "one/a", 80) == "ALLOWED"
    assert not guards(cluster)


@pytest.mark.parametrize("small", [{"policy": 40}, {"policy": 40, "identities": 12}, {"identities": 12}])
def test_a_pod_that_comes_while_there_is_no_room_is_not_let_in_for_being_unknown(small: dict[str, int]) -> None:
    cluster = started(**small)
    cluster.put(BUT_NOT_BAD)
    assert not cluster.compile().overflows
    large(cluster, next(iter(small)))
    for number in range(20):
        cluster.pod(f"one/bad{number}", {"app": "bad"}, node="n2", address=f"10.244.2.{number + 10}")
    assert cluster.compile().overflows
    for number in range(20):
        assert cluster.verdict(f"one/bad{number}", "one/a", 80) == "POLICY_DENIED"
    assert cluster.verdict("one/far", "one/a", 80) == "ALLOWED"


def allowing(app: str) -> dict[str, Any]:
    spec = {"endpointSelector": {}, "ingress": [{"fromEndpoints": [{"matchLabels": {"app": app}}]}]}
    return policy("p", []) | {"spec": spec}


def guarded(cluster: Cluster) -> bool:
    puts = [change.value for change in cluster.changes if change.table == "policy" and change.op is Op.PUT]
    return any(layout.PolicyRule.unpack(value).action == layout.ACTION_DENY for value in puts)


def test_a_change_has_room_for_what_is_there_only_while_it_is_written() -> None:
    """Guards, as an address changes its identity together with the rules. No write finds the map full, whatever its
    size: the instrument looks."""
    outcomes = set()
    for size in range(4, 20):
        cluster = Cluster(sizes={"policy": size})
        cluster.pod("one/a", {"app": "a"})
        for name in "bcd":
            cluster.pod(f"one/{name}", {"app": min(name, "c")}, node="n2")
        cluster.put(allowing("c"))
        if cluster.compile().overflows:
            continue
        cluster.relabel("one/c", {"app": "b"})
        cluster.relabel("one/b", {"app": "c"})
        cluster.put(allowing("b"))
        outcomes.add((bool(cluster.compile().overflows), guarded(cluster)))
    assert (False, True) in outcomes
