"""The cluster's DNS server is a pod with a policy of its own, which judges the pods that ask, though the proxy asks."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest

from e2e.demo import Home, reaches
from lab.node import Node
from lab.pods import Pod
from lab.shell import wait_until

pytestmark = [pytest.mark.root, pytest.mark.lab]

NAME = "api.github.com"
"""Both askers' policies allow it."""
PATIENCE_S = 30.0
LET_IN, KEPT_OUT = "openclaw", "scout"
PROTOCOLS = ("UDP", "TCP")
POLICY: dict[str, Any] = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "who-may-ask", "namespace": "kube-system"},
    "spec": {
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
        "policyTypes": ["Ingress"],
        "ingress": [
            {
                "from": [
                    {
                        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "openclaw"}},
                        "podSelector": {"matchLabels": {"app": LET_IN}},
                    }
                ],
                "ports": [{"port": 53, "protocol": protocol} for protocol in PROTOCOLS],
            }
        ],
    },
}
TEXT = "NetworkPolicy kube-system/who-may-ask"


@dataclass(frozen=True, slots=True)
class Askers:
    """The cluster's DNS server and its node; pods on that node and on another one, by their label."""

    node: Node
    server: Pod
    pods: dict[str, list[Pod]]

    def names(self, label: str) -> set[str]:
        return {f"{pod.namespace}/{pod.name}" for pod in self.pods[label]}

    def addresses(self, label: str) -> set[str]:
        return {pod.address for pod in self.pods[label]}


@pytest.fixture
def askers(home: Home) -> Iterator[Askers]:
    lab = home.lab
    node = lab.node(home.assistant_node)
    elsewhere = next(one for one in lab.nodes if one is not node)
    pods = {
        label: [
            lab.pod(where.name, "openclaw", f"{label}-{place}", {"app": label})
            for where, place in ((node, "near"), (elsewhere, "far"))
        ]
        for label in (LET_IN, KEPT_OUT)
    }
    yield Askers(node, lab.find_pod("kube-system", f"coredns-{node.name}"), pods)
    for pod in (*pods[LET_IN], *pods[KEPT_OUT]):
        pod.delete()
    if lab.api.get("NetworkPolicy", "kube-system", "who-may-ask") is not None:
        lab.delete("NetworkPolicy", "kube-system", "who-may-ask")


def look_up(pod: Pod, protocol: str) -> bool:
    """Whether one question to the cluster's DNS is answered."""
    way = "+tcp" if protocol == "TCP" else "+notcp"
    return pod.exec(["dig", "+time=1", "+tries=1", way, NAME]).returncode == 0


def answered(askers: Askers, label: str) -> list[bool]:
    return [look_up(pod, protocol) for pod, protocol in product(askers.pods[label], PROTOCOLS)]


def in_force(node: Node) -> bool:
    return TEXT in str(json.loads(node.run("netstack status --json").stdout)["policies"])


def judged(askers: Askers, since: float) -> dict[tuple[str, str, str], set[str]]:
    """By who asked (pod, kind) and how: what the server's policy said."""
    pod = f"{askers.server.namespace}/{askers.server.name}"
    said = askers.node.run(f"netstack observe --json --last 500 --pod {pod} --port 53").stdout
    found: dict[tuple[str, str, str], set[str]] = {}
    for flow in map(json.loads, said.splitlines()):
        if flow["direction"] == "ingress" and flow["time"] > since:
            who = flow["source"]["pod"], flow["entity"], flow["protocol"]
            why = flow["rule"] or f"no rule of {', '.join(flow['policies'])}"
            found.setdefault(who, set()).add(f"{flow['verdict']}: {why}")
    return found


def test_the_policy_of_the_dns_server_judges_the_pod_that_asks(home: Home, askers: Askers) -> None:
    lab = home.lab
    assert all(answered(askers, KEPT_OUT))

    lab.apply(POLICY)
    wait_until(lambda: in_force(askers.node), f"{TEXT} to be in force", PATIENCE_S)
    since = time.time()
    with lab.capture(askers.server, f"dst host {askers.server.address} and dst port 53") as wire:
        assert all(answered(askers, LET_IN))
        assert not any(answered(askers, KEPT_OUT))
    for pod in askers.pods[LET_IN]:
        reaches(pod, f"https://{NAME}/")
    assert {line.split()[2].rpartition(".")[0] for line in wire.lines()} == askers.addresses(LET_IN)
    assert judged(askers, since) == {
        (name, "pod", protocol): {verdict}
        for label, verdict in (
            (LET_IN, f"FORWARDED: {TEXT}: spec.ingress[0]"),
            (KEPT_OUT, f"DEFAULT_DENY: no rule of {TEXT}"),
        )
        for name, protocol in product(askers.names(label), PROTOCOLS)
    }

    lab.delete("NetworkPolicy", "kube-system", "who-may-ask")
    wait_until(lambda: not in_force(askers.node), f"{TEXT} to be gone", PATIENCE_S)
    assert all(answered(askers, LET_IN) + answered(askers, KEPT_OUT))
