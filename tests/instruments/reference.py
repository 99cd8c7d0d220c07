"""A naive reading of network policies, straight from the manifests: what the compiled tables must agree with.

    world = World(manifests, node="n1")
    world.judge("default/web", "ingress", "default/client", "TCP", 80)      # "allowed" or "denied"

Imports nothing of netstack (import-linter checks it) and shares none of its ideas: no identities, no ranges in tables,
no ports as prefixes. Every question walks all policies, rules and peers as they are written. Written from the
definitions: the Kubernetes API (NetworkPolicySpec), Cilium v1.17 pkg/policy/api and its "Policy Rules" pages.
tests/unit/test_netpol.py holds it against the published cases of the Kubernetes network-policy suite.

What is read: NetworkPolicy in full; CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy but names and layer 7.
Who is asked about: a pod as "namespace/name", anything else as an address. A port of ICMP is the message's type.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any

Raw = dict[str, Any]

NAMESPACE = "io.kubernetes.pod.namespace"
NAMESPACE_LABEL = "io.cilium.k8s.namespace.labels."
DERIVED = (
    NAMESPACE,
    NAMESPACE_LABEL,
    "io.cilium.k8s.policy.serviceaccount",
    "io.cilium.k8s.policy.cluster",
    "netstack.io/ingress",
)
"""No pod can give itself labels that begin so."""
KEPT = (
    ("ingress", "TCP", 22, ""),
    ("ingress", "TCP", 6443, ""),
    ("ingress", "TCP", 10250, "kube-apiserver"),
    ("ingress", "UDP", 68, ""),
    ("ingress", "UDP", 546, ""),
    ("egress", "TCP", 6443, ""),
    ("egress", "UDP", 67, ""),
    ("egress", "UDP", 547, ""),
)
"""What no policy cuts a node off from: (direction, protocol, port, the entity that the peer must be or "")."""
FAMILIES = {"ICMP": "IPv4", "ICMPv6": "IPv6"}
ECHO_REQUEST = {"ICMP": 8, "ICMPv6": 128}


class World:
    """A cluster as its manifests say it is, seen from `node`. `ranges_match`: of "pods" and "nodes" those that address
    ranges in policies mean too; by default ranges mean what is outside the cluster."""

    def __init__(self, manifests: Iterable[Raw], node: str, ranges_match: Iterable[str] = ()) -> None:
        self.manifests = list(manifests)
        self.node = node
        self.ranges_match = set(ranges_match)

    def connects(self, source: str, destination: str, protocol: str, port: int) -> bool:
        """Whether the sender's policies and the receiver's both let the first packet pass."""
        out = self.judge(source, "egress", destination, protocol, port) if source in self.pods else "allowed"
        into = self.judge(destination, "ingress", source, protocol, port) if destination in self.pods else "allowed"
        return (out, into) == ("allowed", "allowed")

    def judge(self, pod: str, direction: str, peer: str, protocol: str, port: int) -> str:
        """What the policies that select `pod` say of a flow that it receives from or sends to `peer`: any rule that
        denies wins; else one that allows; else it is denied if any policy isolates the pod in that direction."""
        peer = self._owner(peer)
        if direction == "ingress" and "host" in self._kinds(peer):  # a node reaches its own pods
            return "allowed"
        packet = (peer, pod if direction == "ingress" else peer, protocol, port)
        return self._said(
            direction, packet, lambda policy, spec: "nodeSelector" not in spec and self._selected(policy, spec, pod)
        )

    def judge_node(self, direction: str, peer: str, protocol: str, port: int) -> str:
        """The same of the node itself and the policies that select nodes."""
        peer = self._owner(peer)
        for way, its, number, entity in KEPT:
            if (way, its, number) == (direction, protocol, port) and (not entity or entity in self._kinds(peer)):
                return "allowed"
        (labels,) = (n["metadata"].get("labels") for n in self._kind("Node") if n["metadata"]["name"] == self.node)
        return self._said(
            direction,
            (peer, peer, protocol, port),
            lambda _, spec: "nodeSelector" in spec and matches(spec["nodeSelector"], labels or {}),
        )

    def _said(self, direction: str, packet: Packet, selects: Callable[[Raw, Raw], bool]) -> str:
        isolated = allowed = False
        for policy in self._kind(*READERS):
            reader = READERS[policy["kind"]]
            for spec in [policy["spec"]] if policy.get("spec") is not None else policy["specs"]:
                if not selects(policy, spec):
                    continue
                isolates, allows, denies = reader(self, policy, spec, direction, packet)
                if denies:
                    return "denied"
                isolated |= isolates
                allowed |= allows
        return "allowed" if allowed or not isolated else "denied"

    # who is there ----------------------------------------------------------------------------------------------------

    def _kind(self, *kinds: str) -> Iterator[Raw]:
        return (item for item in self.manifests if item["kind"] in kinds)

    @cached_property
    def pods(self) -> dict[str, Raw]:
        """Those with a network of their own that have not ended."""
        return {
            f"{pod['metadata']['namespace']}/{pod['metadata']['name']}": pod
            for pod in self._kind("Pod")
            if not pod["spec"].get("hostNetwork") and pod["status"].get("phase") not in ("Succeeded", "Failed")
        }

    @cached_property
    def _holders(self) -> dict[str, str]:
        return {self._address(name): name for name in self.pods}

    @cached_property
    def _namespaces(self) -> dict[str, dict[str, str]]:
        return {item["metadata"]["name"]: item["metadata"].get("labels") or {} for item in self._kind("Namespace")}

    @cached_property
    def _node_of(self) -> dict[str, str]:
        """Address -> node."""
        return {
            entry["address"]: node["metadata"]["name"]
            for node in self._kind("Node")
            for entry in node["status"]["addresses"]
            if entry["type"] == "InternalIP"
        }

    @cached_property
    def _api_servers(self) -> set[str]:
        return set(self._endpoints("default", "kubernetes"))

    def _owner(self, peer: str) -> str:
        return peer if peer in self.pods else self._holders.get(peer, peer)

    def _address(self, name: str) -> str:
        return str(self.pods[name]["status"]["podIPs"][0]["ip"])

    def _endpoints(self, namespace: str, service: str) -> Iterator[str]:
        """The addresses behind a Service."""
        for item in self._kind("EndpointSlice"):
            labels = item["metadata"].get("labels") or {}
            if (item["metadata"]["namespace"], labels.get("kubernetes.io/service-name")) == (namespace, service):
                yield from (address for entry in item["endpoints"] for address in entry["addresses"])

    def _kinds(self, peer: str) -> set[str]:
        """The entities that a peer is."""
        if peer in self.pods:
            return {"cluster"}
        node = self._node_of.get(peer)
        same = {address for address, owner in self._node_of.items() if owner == node} if node else {peer}
        api = {"kube-apiserver"} if same & self._api_servers else set()
        if node:
            return {"host" if node == self.node else "remote-node", "cluster"} | api
        for item in self._kind("Node"):
            for cidr in item["spec"].get("podCIDRs") or [item["spec"].get("podCIDR")]:
                if cidr and inside(peer, cidr):
                    return {"unmanaged", "cluster"}
        cluster = {"cluster"} if api else set()  # an API server is of the cluster wherever it is
        return {"world", f"world-ipv{ipaddress.ip_address(peer).version}"} | api | cluster

    def _labels(self, pod: str) -> dict[str, str]:
        """A pod's labels as Cilium's selectors see them."""
        manifest, namespace = self.pods[pod], pod.split("/")[0]
        own = manifest["metadata"].get("labels") or {}
        labels = {key: value for key, value in own.items() if not key.startswith(DERIVED)}
        labels[NAMESPACE] = namespace
        labels["io.cilium.k8s.policy.cluster"] = "default"
        if manifest["spec"].get("serviceAccountName"):
            labels["io.cilium.k8s.policy.serviceaccount"] = manifest["spec"]["serviceAccountName"]
        return labels | {NAMESPACE_LABEL + key: value for key, value in self._namespace_labels(namespace).items()}

    def _namespace_labels(self, namespace: str) -> dict[str, str]:
        return self._namespaces.get(namespace, {}) | {"kubernetes.io/metadata.name": namespace}

    def _selected(self, policy: Raw, spec: Raw, pod: str) -> bool:
        namespace = policy["metadata"].get("namespace")
        if policy["kind"] != "CiliumClusterwideNetworkPolicy" and pod.split("/")[0] != namespace:
            return False
        return matches(spec.get("endpointSelector") or spec.get("podSelector") or {}, self._labels(pod))

    # NetworkPolicy ---------------------------------------------------------------------------------------------------

    def _kubernetes(self, policy: Raw, spec: Raw, direction: str, packet: Packet) -> tuple[bool, bool, bool]:
        types = spec.get("policyTypes") or ["Ingress"] + ["Egress"] * bool(spec.get("egress"))
        if direction.capitalize() not in types:
            return False, False, False
        side = "from" if direction == "ingress" else "to"
        for rule in spec.get(direction) or []:
            peers, ports = rule.get(side) or [], rule.get("ports") or []
            if peers and not any(self._kubernetes_peer(policy, item, packet[0]) for item in peers):
                continue
            if not ports or any(self._port({"protocol": "TCP"} | item, packet) for item in ports):
                return True, True, False
        return True, False, False

    def _kubernetes_peer(self, policy: Raw, item: Raw, peer: str) -> bool:
        if "ipBlock" in item:
            return self._in_block(item["ipBlock"], peer)
        if peer not in self.pods:
            return False
        namespace = peer.split("/")[0]
        if item.get("namespaceSelector") is not None:
            if not matches(item["namespaceSelector"], self._namespace_labels(namespace)):
                return False
        elif namespace != policy["metadata"]["namespace"]:
            return False
        return matches(item.get("podSelector") or {}, self.pods[peer]["metadata"].get("labels") or {})

    # Cilium's --------------------------------------------------------------------------------------------------------

    def _cilium(self, policy: Raw, spec: Raw, direction: str, packet: Packet) -> tuple[bool, bool, bool]:
        allow, deny = spec.get(direction) or [], spec.get(f"{direction}Deny") or []
        isolates = (spec.get("enableDefaultDeny") or {}).get(direction, bool(allow or deny))
        side = "from" if direction == "ingress" else "to"
        lacks = any(self._lacks(policy, rule.get(f"{side}Requires"), packet[0]) for rule in [*allow, *deny])
        denies = lacks or any(self._applies(policy, rule, side, packet, denies=True) for rule in deny)
        return isolates, any(self._applies(policy, rule, side, packet, denies=False) for rule in allow), denies

    def _lacks(self, policy: Raw, required: list[Raw] | None, peer: str) -> bool:
        """A pod that does not meet a requirement is denied, whatever else allows it; one not known yet too."""
        if self._unknown(peer):
            return bool(required)
        return peer in self.pods and not all(self._is_endpoint(policy, item, peer) for item in required or [])

    def _unknown(self, peer: str) -> bool:
        """Perhaps it is a pod whose object has not come yet: what denies any pod denies it."""
        return "unmanaged" in self._kinds(peer)

    def _applies(self, policy: Raw, rule: Raw, side: str, packet: Packet, *, denies: bool) -> bool:
        groups, icmps = rule.get("toPorts") or [], rule.get("icmps")
        fields = [f"{side}{name}" for name in ("Endpoints", "Entities", "CIDR", "CIDRSet", "Services")]
        named = [name for name in fields if rule.get(name) is not None]
        if not named and not groups and not icmps:
            return False
        if named and not any(
            self._cilium_peer(policy, name[len(side) :], rule[name], packet[0], denies) for name in named
        ):
            return False
        if icmps:
            return any(is_message(field, packet) for item in icmps for field in item["fields"])
        ports = [item for group in groups for item in group["ports"]]
        return not groups or any(self._port({"protocol": "ANY"} | item, packet) for item in ports)

    def _cilium_peer(self, policy: Raw, field: str, items: list[Any], peer: str, denies: bool) -> bool:
        match field:
            case "Endpoints" | "Services" if denies and items and self._unknown(peer):
                return True
            case "Endpoints":
                return peer in self.pods and any(self._is_endpoint(policy, item, peer) for item in items)
            case "Entities":
                return "all" in items or bool(self._kinds(peer) & set(items))
            case "CIDR":
                return any(self._in_block({"cidr": item}, peer) for item in items)
            case "CIDRSet":
                return any(self._in_set(item, peer, denies) for item in items)
            case _:
                return any(self._behind(policy, item, peer, denies) for item in items)

    def _is_endpoint(self, policy: Raw, selector: Raw, pod: str) -> bool:
        keys = [bare(key) for key in selector.get("matchLabels") or {}]
        keys += [bare(item["key"]) for item in selector.get("matchExpressions") or []]
        namespace = policy["metadata"].get("namespace")
        elsewhere = namespace and pod.split("/")[0] != namespace
        if elsewhere and not any(key == NAMESPACE or key.startswith(NAMESPACE_LABEL) for key in keys):
            return False
        return matches(selector, self._labels(pod))

    def _in_set(self, item: Raw, peer: str, denies: bool) -> bool:
        """`cidr`, or the ranges of CiliumCIDRGroups. A deny of a group that is not there denies everybody."""
        if "cidr" in item:
            return self._in_block(item, peer)
        groups = list(self._kind("CiliumCIDRGroup"))
        if "cidrGroupRef" in item:
            groups = [group for group in groups if group["metadata"]["name"] == item["cidrGroupRef"]]
            if not groups:
                return denies
        else:
            wanted = item["cidrGroupSelector"]
            groups = [group for group in groups if matches(wanted, group["metadata"].get("labels") or {})]
        cidrs = [cidr for group in groups for cidr in group["spec"]["externalCIDRs"]]
        return any(self._in_block({"cidr": cidr, "except": item.get("except")}, peer) for cidr in cidrs)

    def _behind(self, policy: Raw, item: Raw, peer: str, denies: bool) -> bool:
        """Whether the peer is behind the Services that are meant: one of the pods that they select, or, where they
        select none, one of their addresses. A deny of a Service that is not there denies everybody."""
        wanted = item.get("k8sService") or item["k8sServiceSelector"]
        namespace = wanted.get("namespace") or policy["metadata"].get("namespace")
        services = [s for s in self._kind("Service") if namespace in (None, s["metadata"]["namespace"])]
        if "k8sService" in item:
            services = [s for s in services if s["metadata"]["name"] == wanted["serviceName"]]
            if not services:
                return denies
        else:
            services = [s for s in services if matches(wanted["selector"], s["metadata"].get("labels") or {})]
        for service in services:
            place, selector = service["metadata"]["namespace"], service["spec"].get("selector")
            if selector:
                own = self.pods[peer]["metadata"].get("labels") or {} if peer in self.pods else {}
                if peer.split("/")[0] == place and peer in self.pods and selector.items() <= own.items():
                    return True
            elif any(self._in_block({"cidr": a}, peer) for a in self._endpoints(place, service["metadata"]["name"])):
                return True
        return False

    # both ------------------------------------------------------------------------------------------------------------

    def _in_block(self, block: Raw, peer: str) -> bool:
        kinds = self._kinds(peer)
        if "world" not in kinds:
            is_node = kinds & {"host", "remote-node"}
            if ("nodes" if is_node else "pods") not in self.ranges_match:
                return False
        address = self._address(peer) if peer in self.pods else peer
        return inside(address, block["cidr"]) and not any(inside(address, hole) for hole in block.get("except") or [])

    def _port(self, item: Raw, packet: Packet) -> bool:
        _, owner, protocol, port = packet
        wanted = str(item.get("port", "0"))
        if item["protocol"] not in ("ANY", protocol) or protocol in ECHO_REQUEST:
            return False
        if wanted == "0":
            return True
        if wanted.isdigit():
            return int(wanted) <= port <= int(item.get("endPort") or wanted)
        spec = self.pods[owner]["spec"] if owner in self.pods else {"containers": []}
        sidecars = (item for item in spec.get("initContainers") or [] if item.get("restartPolicy") == "Always")
        return any(
            (entry.get("name"), entry.get("protocol", "TCP"), entry["containerPort"])
            == (wanted.lower(), protocol, port)
            for container in (*spec["containers"], *sidecars)
            for entry in container.get("ports") or []
        )


Packet = tuple[str, str, str, int]
"""(peer, whose names of ports count, protocol, port)"""
READERS = {
    "NetworkPolicy": World._kubernetes,
    "CiliumNetworkPolicy": World._cilium,
    "CiliumClusterwideNetworkPolicy": World._cilium,
}
"""Each: (whether the spec isolates in this direction, whether a rule allows the packet, whether one denies it)."""


def is_message(field: Raw, packet: Packet) -> bool:
    """Only a request starts a flow; what answers one or reports about one belongs to it."""
    _, _, protocol, port = packet
    if FAMILIES.get(protocol) != field.get("family", "IPv4"):
        return False
    return port == ECHO_REQUEST[protocol] and str(field["type"]) in ("EchoRequest", str(port))


def inside(address: str, cidr: str) -> bool:
    return ipaddress.ip_address(address) in ipaddress.ip_network(cidr, strict=False)


def bare(key: str) -> str:
    """A label's key without its source."""
    return key.removeprefix("k8s:").removeprefix("any:")


def matches(selector: Raw, labels: dict[str, str]) -> bool:
    """meta/v1 LabelSelector: all of it must hold; an empty one always does."""
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(bare(key)) != value:
            return False
    for item in selector.get("matchExpressions") or []:
        key, operator, values = bare(item["key"]), item["operator"], item.get("values") or []
        if operator == "In" and labels.get(key) not in values:
            return False
        if operator == "NotIn" and labels.get(key) in values:
            return False
        if operator == "Exists" and key not in labels:
            return False
        if operator == "DoesNotExist" and key in labels:
            return False
    return True
