"""The published cases of the Kubernetes network-policy suite (netpol.yaml), as objects and questions for whoever
judges: in each mode, step by step, on both nodes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from instruments import clusters
from instruments.cluster import Cluster
from instruments.clusters import Raw
from netstack.core.address import Prefix, pack

CASES: list[Raw] = yaml.safe_load((Path(__file__).with_suffix(".yaml")).read_text())
NODE_OF = {"a": 1, "b": 2, "c": 1}
"""Pods of one node and of two."""
PODS = {
    f"{namespace}/{pod}": f"10.244.{NODE_OF[pod]}.{10 * (1 + 'xyz'.index(namespace)) + 'abc'.index(pod)}"
    for namespace, pod in itertools.product("xyz", "abc")
}
PORTS = [
    {"name": f"serve-{port}-{protocol.lower()}", "containerPort": port, "protocol": protocol}
    for port, protocol in itertools.product((80, 81), ("TCP", "UDP", "SCTP"))
]


def manifests(step: Raw) -> list[Raw]:
    """The suite's cluster with a step's policies and labels."""
    more = step.get("labels") or {}
    pods = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name[2:], "namespace": name[0], "labels": {"pod": name[2:]} | more.get(name, {})},
            "spec": {"nodeName": f"n{NODE_OF[name[2:]]}", "containers": [{"name": "main", "ports": PORTS}]},
            "status": {"phase": "Running", "podIPs": [{"ip": address}]},
        }
        for name, address in PODS.items()
    ]
    namespaces = [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": {"ns": name} | more.get(name, {})},
        }
        for name in "xyz"
    ]
    policies = [
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": f"p{number}", "namespace": namespace},
            "spec": filled(spec),
        }
        for number, (namespace, spec) in enumerate(step["policies"])
    ]
    return [clusters.node(1), clusters.node(2), *namespaces, *pods, *policies]


def filled(value: Any) -> Any:
    """`{x/b}` is that pod's address."""
    if isinstance(value, dict):
        return {key: filled(item) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item) for item in value]
    return PODS[value[1:4]] + value[5:] if str(value).startswith("{") else value


def expected(lines: list[str], source: str, destination: str) -> bool:
    for line in lines:
        who, _, whom = line.removeprefix("no ").partition(" > ")
        if fnmatch(source, who) and fnmatch(destination, whom):
            return not line.startswith("no ")
    return True


def questions(step: Raw) -> list[tuple[str, str, str, int, bool]]:
    """(from, to, protocol, port, whether it connects): all that the step's tables say."""
    found = []
    for probe, lines in step["expect"].items():
        port, _, protocol = probe.partition("/")
        for source, destination in itertools.permutations(PODS, 2):
            found.append((source, destination, protocol, int(port), expected(lines, source, destination)))
    return found


def modes(case: Raw) -> list[frozenset[str]]:
    return [frozenset({"pods"})] if case.get("ranges") else [frozenset(), frozenset({"pods", "nodes"})]


def node(number: int, ranges_match: frozenset[str]) -> Cluster:
    cluster = Cluster()
    cluster.place = replace(
        cluster.place,
        node=f"n{number}",
        addresses=(pack(f"192.168.86.2{number}"),),
        pod_cidrs=(Prefix.parse(f"10.244.{number}.0/24"),),
        ranges_match=ranges_match,
    )
    return cluster


def load(cluster: Cluster, objects: list[Raw]) -> None:
    """These objects and no others, in force on the cluster's node."""
    cluster.objects.clear()
    cluster.put(*objects)
    for name in PODS:
        if f"n{NODE_OF[name[2:]]}" == cluster.place.node:
            cluster.attach(name)
    assert not cluster.compile().accepted.refused
