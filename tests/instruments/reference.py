"""A naive reading of network policies, straight from the objects: what the compiled tables must agree with.

Imports nothing of netstack and shares none of its ideas (no identities, no prefixes, no tables): every question walks
all policies, rules and peers as they are written. Names of pods are "namespace/name"; any other peer is an address.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Any

OWN_NODE = "n1"
NAMESPACE = "io.kubernetes.pod.namespace"
NAMESPACE_LABEL = "io.cilium.k8s.namespace.labels."
Raw = dict[str, Any]


@dataclass
class World:
    """`pods`: name -> {labels, ports: [(name, protocol, number)]}; `nodes`: name -> (address, PodCIDR)."""

    pods: dict[str, Raw] = field(default_factory=dict)
    namespaces: dict[str, dict[str, str]] = field(default_factory=dict)
    nodes: dict[str, tuple[str, str]] = field(default_factory=dict)
    policies: list[Raw] = field(default_factory=list)

    def judge(self, pod: str, direction: str, peer: str, protocol: str, port: int) -> str:
        """ "allowed" or "denied": what the policies that select `pod` say of a packet from or to `peer`."""
        enforced = False
        allowed = direction == "ingress" and peer == self.nodes[OWN_NODE][0]  # a node reaches its own pods
        for policy in self.policies:
            cilium = policy["apiVersion"].startswith("cilium")
            for spec in [policy["spec"]]:
                if not self._selects(policy, spec, pod):
                    continue
                if cilium:
                    allow, deny = spec.get(direction) or [], spec.get(f"{direction}Deny") or []
                    enforced |= (spec.get("enableDefaultDeny") or {}).get(direction, bool(allow or deny))
                    if any(self._cilium(policy, rule, direction, pod, peer, protocol, port) for rule in deny):
                        return "denied"
                    allowed |= any(self._cilium(policy, rule, direction, pod, peer, protocol, port) for rule in allow)
                else:
                    types = spec.get("policyTypes") or ["Ingress"] + ["Egress"] * bool(spec.get("egress"))
                    if direction.capitalize() not in types:
                        continue
                    enforced = True
                    rules = spec.get(direction) or []
                    allowed |= any(
                        self._kubernetes(policy, rule, direction, pod, peer, protocol, port) for rule in rules
                    )
        return "allowed" if allowed or not enforced else "denied"

    # selectors -------------------------------------------------------------------------------------------------------

    def labels(self, pod: str) -> dict[str, str]:
        namespace = pod.split("/")[0]
        own = dict(self.pods[pod]["labels"])
        own[NAMESPACE] = namespace
        for key, value in {"kubernetes.io/metadata.name": namespace, **self.namespaces.get(namespace, {})}.items():
            own[NAMESPACE_LABEL + key] = value
        return own

    def _selects(self, policy: Raw, spec: Raw, pod: str) -> bool:
        selector = spec.get("endpointSelector", spec.get("podSelector"))
        clusterwide = policy["kind"] == "CiliumClusterwideNetworkPolicy"
        if not clusterwide and pod.split("/")[0] != policy["metadata"]["namespace"]:
            return False
        return matches(selector or {}, self.labels(pod))

    # rules -----------------------------------------------------------------------------------------------------------

    def _cilium(self, policy: Raw, rule: Raw, direction: str, pod: str, peer: str, protocol: str, port: int) -> bool:
        side = "from" if direction == "ingress" else "to"
        ports = [item for group in rule.get("toPorts") or [] for item in group["ports"]]
        has_peers = any(f"{side}{kind}" in rule for kind in ("Endpoints", "Entities", "CIDR", "CIDRSet"))
        if not has_peers and not ports:
            return False
        if has_peers and not self._cilium_peer(policy, rule, side, peer):
            return False
        owner = pod if direction == "ingress" else peer
        return not ports or any(self._port(item, "ANY", owner, protocol, port) for item in ports)

    def _cilium_peer(self, policy: Raw, rule: Raw, side: str, peer: str) -> bool:
        for selector in rule.get(f"{side}Endpoints") or []:
            if peer not in self.pods:
                continue
            keys = [*(selector.get("matchLabels") or {}), *(e["key"] for e in selector.get("matchExpressions") or [])]
            names_namespace = any(key == NAMESPACE or key.startswith(NAMESPACE_LABEL) for key in keys)
            same = peer.split("/")[0] == policy["metadata"].get("namespace")
            anywhere = policy["kind"] == "CiliumClusterwideNetworkPolicy" or names_namespace
            if (anywhere or same) and matches(selector, self.labels(peer)):
                return True
        if any(self._entity(entity, peer) for entity in rule.get(f"{side}Entities") or []):
            return True
        blocks = [{"cidr": cidr} for cidr in rule.get(f"{side}CIDR") or []] + list(rule.get(f"{side}CIDRSet") or [])
        return any(self._block(block, peer) for block in blocks)

    def _entity(self, entity: str, peer: str) -> bool:
        kind = self._kind(peer)
        if entity == "cluster":
            return kind != "world"
        return entity == "all" or entity == kind

    def _kind(self, peer: str) -> str:
        if peer in self.pods:
            return "pod"
        for name, (address, cidr) in self.nodes.items():
            if peer == address:
                return "host" if name == OWN_NODE else "remote-node"
            if ipaddress.ip_address(peer) in ipaddress.ip_network(cidr):
                return "unmanaged"
        return "world"

    def _block(self, block: Raw, peer: str) -> bool:
        if self._kind(peer) != "world":
            return False
        inside = ipaddress.ip_address(peer) in ipaddress.ip_network(block["cidr"])
        return inside and not any(
            ipaddress.ip_address(peer) in ipaddress.ip_network(hole) for hole in block.get("except") or []
        )

    def _kubernetes(
        self, policy: Raw, rule: Raw, direction: str, pod: str, peer: str, protocol: str, port: int
    ) -> bool:
        peers = rule.get("from" if direction == "ingress" else "to") or []
        if peers and not any(self._kubernetes_peer(policy, item, peer) for item in peers):
            return False
        ports = rule.get("ports") or []
        owner = pod if direction == "ingress" else peer
        return not ports or any(self._port(item, "TCP", owner, protocol, port) for item in ports)

    def _kubernetes_peer(self, policy: Raw, item: Raw, peer: str) -> bool:
        if "ipBlock" in item:
            return self._block(item["ipBlock"], peer)
        if peer not in self.pods:
            return False
        namespace = peer.split("/")[0]
        if "namespaceSelector" in item:
            labels = {"kubernetes.io/metadata.name": namespace, **self.namespaces.get(namespace, {})}
            if not matches(item["namespaceSelector"] or {}, labels):
                return False
        elif namespace != policy["metadata"]["namespace"]:
            return False
        return matches(item.get("podSelector") or {}, self.labels(peer))

    def _port(self, item: Raw, default: str, owner: str, protocol: str, port: int) -> bool:
        wanted = item.get("protocol", default)
        if wanted not in ("ANY", protocol):
            return False
        if "port" not in item:
            return True
        if str(item["port"]) == "0":
            return True
        if protocol not in ("TCP", "UDP", "SCTP"):
            return False
        if not str(item["port"]).isdigit():
            named = self.pods[owner]["ports"] if owner in self.pods else []
            return any((name, proto, number) == (item["port"], protocol, port) for name, proto, number in named)
        return int(item["port"]) <= port <= int(item.get("endPort") or item["port"])


def matches(selector: Raw, labels: dict[str, str]) -> bool:
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for item in selector.get("matchExpressions") or []:
        key, operator, values = item["key"], item["operator"], item.get("values") or []
        if operator == "In" and labels.get(key) not in values:
            return False
        if operator == "NotIn" and labels.get(key) in values:
            return False
        if operator == "Exists" and key not in labels:
            return False
        if operator == "DoesNotExist" and key in labels:
            return False
    return True
