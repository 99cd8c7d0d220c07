"""What a Compiler remembers. Cluster compares every compile with one that remembers nothing."""

from __future__ import annotations

import random

import pytest
import yaml

from instruments.cluster import Cluster
from instruments.depth import examples
from netstack.agent.policy import tables

APPS, NAMESPACES = ("a", "b", "c"), ("one", "two")
SPECS = (
    "{endpointSelector: {matchLabels: {app: %s}}, ingress: [{fromEndpoints: [{matchLabels: {app: %s}}]}]}",
    "{endpointSelector: {matchLabels: {app: %s}}, egress: [{toEndpoints: [{matchLabels: {app: %s}}], "
    "toPorts: [{ports: [{port: web}]}]}]}",
    "{endpointSelector: {matchLabels: {app: %s}}, egress: [{toFQDNs: [{matchName: %s.io}]}, {toCIDR: [9.9.9.0/24]}]}",
    "{endpointSelector: {matchLabels: {app: %s}}, egressDeny: [{toCIDR: [9.9.0.0/16]}], egress: [{toServices: "
    "[{k8sService: {serviceName: %s}}]}]}",
    "{endpointSelector: {matchLabels: {app: %s}}, ingress: [{fromRequires: [{matchLabels: {app: %s}}]}, {}], "
    "egress: [{nonsense: 1}]}",
)


class History:
    """A cluster in which something changes, again and again."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.cluster = Cluster()
        self.pods: list[str] = []
        self.policies: list[str] = []

    def step(self) -> None:
        usual, rare = (self.pod, self.policy), (self.gone, self.relabel, self.drop, self.service)
        self.chance.choice((*usual, *usual, *rare))()
        self.cluster.compile()

    def pod(self) -> None:
        name = f"{self.chance.choice(NAMESPACES)}/pod{len(self.pods)}-{self.chance.random()}"
        self.pods.append(name)
        ports = [("web", "TCP", self.chance.choice((80, 8080)))]
        self.cluster.pod(name, {"app": self.chance.choice(APPS)}, node=self.chance.choice(("n1", "n2")), ports=ports)

    def gone(self) -> None:
        if self.pods:
            self.cluster.delete_pod(self.pods.pop(self.chance.randrange(len(self.pods))))

    def relabel(self) -> None:
        if self.pods:
            self.cluster.relabel(self.chance.choice(self.pods), {"app": self.chance.choice(APPS)})

    def policy(self) -> None:
        name, namespace = self.chance.choice("pqr"), self.chance.choice(NAMESPACES)
        if f"{namespace}/{name}" not in self.policies:
            self.policies.append(f"{namespace}/{name}")
        spec = self.chance.choice(SPECS) % (self.chance.choice(APPS), self.chance.choice(APPS))
        meta = {"name": name, "namespace": namespace}
        self.cluster.put(
            {
                "apiVersion": "cilium.io/v2",
                "kind": "CiliumNetworkPolicy",
                "metadata": meta,
                "spec": yaml.safe_load(spec),
            }
        )

    def drop(self) -> None:
        if self.policies:
            self.cluster.remove("CiliumNetworkPolicy", self.policies.pop(self.chance.randrange(len(self.policies))))

    def service(self) -> None:
        name = f"{self.chance.choice(NAMESPACES)}/{self.chance.choice(APPS)}"
        self.cluster.service(name, [], selector={"app": self.chance.choice(APPS)})


@pytest.mark.parametrize("seed", range(examples(3)))
def test_no_history_shows_in_the_tables(seed: int) -> None:
    history = History(seed)
    for _ in range(40):
        history.step()


def test_what_did_not_change_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    for app in APPS:
        cluster.pod(f"one/{app}", {"app": app})
        cluster.put(
            {
                "apiVersion": "cilium.io/v2",
                "kind": "CiliumNetworkPolicy",
                "metadata": {"name": app, "namespace": "one"},
                "spec": yaml.safe_load(SPECS[0] % (app, "a")),
            }
        )
    cluster.compile()
    made = []
    real = tables.subject
    monkeypatch.setattr(tables, "subject", lambda peer, *rest: made.append(peer.labels["app"]) or real(peer, *rest))
    memory = cluster.memory
    assert cluster.recompile(memory) == cluster.desired and made == []
    cluster.pod("one/more", {"app": "a"}, ports=[("new", "TCP", 1)])  # whom all three policies name
    cluster.recompile(memory)
    assert sorted(made) == ["a", "a", "b", "c"]
    made.clear()
    cluster.pod("one/other", {"app": "d"}, node="n2")
    cluster.recompile(memory)
    assert made == []


def test_a_rule_whose_number_changes_is_packed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    cluster.pod("one/a", {"app": "a"})
    put = {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": {"name": "p", "namespace": "one"}}
    cluster.put(put | {"spec": yaml.safe_load(SPECS[0] % ("a", "a"))})
    cluster.compile()
    real = tables.numbers

    def shifted(names: object, **options: int) -> object:
        ids, collisions = real(names, **options)  # type: ignore[arg-type]
        return {name: number ^ 1 for name, number in ids.items()}, collisions

    monkeypatch.setattr(tables, "numbers", shifted)
    cluster.put(put | {"metadata": {"name": "q", "namespace": "one"}, "spec": yaml.safe_load(SPECS[2] % ("a", "x"))})
    cluster.compile()
