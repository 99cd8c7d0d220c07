"""Random clusters: manifests of nodes, pods, services and policies, drawn by hypothesis. Small, so that things meet.

`worlds` draws all objects; node `n1` is the one whose tables are compiled. PEERS and PACKETS are what to ask about.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

Raw = dict[str, Any]

PODS = {"one/a": "n1", "two/b": "n1", "one/c": "n2", "two/d": "n2"}
ADDRESSES = {"one/a": "10.244.1.10", "two/b": "10.244.1.11", "one/c": "10.244.2.12", "two/d": "10.244.2.130"}
OWN = tuple(name for name, node in PODS.items() if node == "n1")
PEERS = (
    *PODS,
    *("192.168.86.21", "192.168.86.22", "192.168.86.23"),  # the nodes; the last is the API server's
    *("10.244.1.200", "10.244.2.200"),  # nobody's, inside PodCIDRs
    *("192.168.86.50", "192.168.86.99", "10.0.1.1", "10.1.2.3", "8.8.8.8", "2001:db8::8", "2001:db9::8"),
)
PACKETS = (("TCP", 80), ("TCP", 443), ("UDP", 53), ("TCP", 8080), ("SCTP", 80), ("UDP", 443), ("ICMP", 8))

label_sets = st.fixed_dictionaries({}, optional={"app": st.sampled_from("ab"), "tier": st.sampled_from("xy")})
expressions = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {"key": st.sampled_from(["app", "tier"]), "operator": st.sampled_from(["Exists", "DoesNotExist"])}
        ),
        st.fixed_dictionaries(
            {
                "key": st.sampled_from(["app", "tier"]),
                "operator": st.sampled_from(["In", "NotIn"]),
                "values": st.lists(st.sampled_from("abxy"), min_size=1, max_size=2, unique=True),
            }
        ),
    ),
    max_size=1,
)
selectors = st.fixed_dictionaries({}, optional={"matchLabels": label_sets, "matchExpressions": expressions})
endpoint_peers = st.one_of(
    selectors,
    st.builds(
        lambda prefix, namespace: {"matchLabels": {f"{prefix}io.kubernetes.pod.namespace": namespace}},
        st.sampled_from(["", "k8s:"]),
        st.sampled_from(["one", "two"]),
    ),
    st.just({"matchLabels": {"io.cilium.k8s.namespace.labels.team": "red"}}),
    st.just({"matchExpressions": [{"key": "io.kubernetes.pod.namespace", "operator": "Exists"}]}),
    st.just({"matchLabels": {"io.cilium.k8s.policy.serviceaccount": "robot"}}),
)
WIDE = [
    *("10.0.0.0/8", "10.244.0.0/16", "10.244.2.0/24", "10.244.2.128/25", "0.0.0.0/0", "10.0.1.0/24", "192.168.86.0/24"),
    *("::/0", "2001:db8::/32", "::/64"),
]
SINGLE = "8.8.8.8/32 192.168.86.22/32 192.168.86.21/32 10.244.2.12/32 10.244.1.10/32 192.168.86.50/32".split()  # noqa: SIM905
HOLES = {
    "10.0.0.0/8": ["10.1.0.0/16", "10.244.2.0/24", "10.244.1.10/32", "10.244.0.0/16"],
    "10.244.0.0/16": ["10.244.1.0/24", "10.244.2.12/32", "10.244.2.192/26"],
    "192.168.86.0/24": ["192.168.86.22/32", "192.168.86.20/30", "192.168.86.50/32"],
    "0.0.0.0/0": ["10.0.0.0/9", "8.8.8.8/32", "192.168.0.0/16", "10.128.0.0/9"],
    "::/0": ["2001:db8::/32", "2001:db8::8/128"],
}
blocks = st.one_of(
    st.sampled_from([*WIDE, *SINGLE]).map(lambda cidr: {"cidr": cidr}),
    st.sampled_from(sorted(HOLES)).flatmap(
        lambda cidr: st.lists(st.sampled_from(HOLES[cidr]), min_size=1, max_size=2, unique=True).map(
            lambda holes: {"cidr": cidr, "except": holes}
        )
    ),
)
group_sets = st.one_of(
    st.fixed_dictionaries(
        {"cidrGroupRef": st.sampled_from(["home", "gone"])}, optional={"except": st.just(["10.1.2.0/24"])}
    ),
    st.fixed_dictionaries({"cidrGroupSelector": st.sampled_from([{}, {"matchLabels": {"kind": "lan"}}])}),
)
entities = st.lists(
    st.sampled_from(
        [
            *("all", "world", "world-ipv4", "world-ipv6", "cluster", "host", "remote-node", "kube-apiserver"),
            *("unmanaged", "init", "ingress", "health", "none"),
        ]
    ),
    min_size=1,
    max_size=2,
)
services = st.one_of(
    st.builds(
        lambda name, namespace: {"k8sService": {"serviceName": name, "namespace": namespace}},
        st.sampled_from(["web", "far", "gone"]),
        st.sampled_from(["one", "two"]),
    ),
    st.builds(
        lambda labels, more: {"k8sServiceSelector": {"selector": labels} | more},
        st.sampled_from([{}, {"matchLabels": {"role": "front"}}]),
        st.sampled_from([{}, {"namespace": "two"}]),
    ),
)
icmp_fields = st.fixed_dictionaries({"type": st.sampled_from([8, "EchoRequest"])}, optional={"family": st.just("IPv4")})


def port_lists(protocols: list[str], more: list[Raw]) -> st.SearchStrategy[list[Raw]]:
    chosen = {"protocol": st.sampled_from(protocols)}
    one = st.one_of(
        st.fixed_dictionaries({"port": st.sampled_from(["80", "443", "53", "web", "dns"])}, optional=chosen),
        st.fixed_dictionaries({"port": st.just("50"), "endPort": st.sampled_from([79, 80, 500])}, optional=chosen),
        *map(st.just, more),
    )
    return st.lists(one, min_size=1, max_size=2)


CILIUM_PORTS = port_lists(["TCP", "UDP", "SCTP", "ANY"], [{"port": "0"}, {"port": "0", "protocol": "UDP"}])
KUBERNETES_PORTS = port_lists(["TCP", "UDP", "SCTP"], [{"protocol": "SCTP"}, {}]).map(
    lambda ports: [item | ({"port": int(item["port"])} if item.get("port", "x").isdigit() else {}) for item in ports]
)


NODE_PORTS = CILIUM_PORTS.map(
    lambda ports: [item | {"port": {"web": "22", "dns": "10250"}.get(item["port"], item["port"])} for item in ports]
)
"""Without names, which nodes' ports do not have."""


@st.composite
def cilium_rules(draw: st.DrawFn, side: str, ports: st.SearchStrategy[list[Raw]] = CILIUM_PORTS) -> Raw:
    kinds: list[tuple[str, st.SearchStrategy[list[Any]] | None]] = [
        ("Endpoints", st.lists(endpoint_peers, max_size=2)),
        ("Entities", entities),
        ("CIDR", st.lists(st.sampled_from([*WIDE, *SINGLE]), max_size=2)),
        ("CIDRSet", st.lists(st.one_of(blocks, group_sets), max_size=2)),
        ("", None),
    ]
    if side == "to":
        kinds.append(("Services", st.lists(services, min_size=1, max_size=2)))
    kind, values = draw(st.sampled_from(kinds))
    rule: Raw = {f"{side}{kind}": draw(values)} if values is not None else {}
    if draw(st.integers(0, 5)) == 0:
        rule[f"{side}Requires"] = draw(st.lists(selectors, min_size=1, max_size=2))
    what = draw(st.sampled_from(["", "ports", "ports", "icmps"]))
    if what == "ports":
        rule["toPorts"] = [{"ports": draw(ports)}]
    elif what == "icmps":
        rule["icmps"] = [{"fields": draw(st.lists(icmp_fields, min_size=1, max_size=1))}]
    return rule


PODS_SUBJECT: dict[str, st.SearchStrategy[Raw]] = {"endpointSelector": selectors}
NODES_SUBJECT: dict[str, st.SearchStrategy[Raw]] = {
    "nodeSelector": st.sampled_from([{}, {"matchLabels": {"role": "board"}}, {"matchLabels": {"role": "other"}}])
}


@st.composite
def cilium_specs(
    draw: st.DrawFn,
    subject: dict[str, st.SearchStrategy[Raw]] = PODS_SUBJECT,
    ports: st.SearchStrategy[list[Raw]] = CILIUM_PORTS,
) -> Raw:
    sections = {
        name: st.lists(cilium_rules("from" if name.startswith("in") else "to", ports), max_size=2)
        for name in ("ingress", "ingressDeny", "egress", "egressDeny")
    }
    spec: Raw = draw(st.fixed_dictionaries(subject, optional=sections))
    if draw(st.integers(0, 4)) == 0:
        spec["enableDefaultDeny"] = {draw(st.sampled_from(["ingress", "egress"])): draw(st.booleans())}
    return spec


@st.composite
def cilium_policies(draw: st.DrawFn) -> Raw:
    kind = draw(st.sampled_from(["CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy"]))
    metadata = {"name": draw(st.sampled_from("pqr"))}
    if kind == "CiliumNetworkPolicy":
        metadata["namespace"] = draw(st.sampled_from(["one", "two"]))
    several = draw(st.integers(0, 4)) == 0
    content = {"specs": draw(st.lists(cilium_specs(), min_size=2, max_size=2))} if several else {}
    content = content or {"spec": draw(cilium_specs())}
    return {"apiVersion": "cilium.io/v2", "kind": kind, "metadata": metadata} | content


@st.composite
def node_policies(draw: st.DrawFn) -> Raw:
    spec = draw(cilium_specs(NODES_SUBJECT, NODE_PORTS))
    metadata = {"name": draw(st.sampled_from("no"))}
    return {"apiVersion": "cilium.io/v2", "kind": "CiliumClusterwideNetworkPolicy", "metadata": metadata, "spec": spec}


@st.composite
def kubernetes_policies(draw: st.DrawFn) -> Raw:
    namespace_selectors = st.sampled_from(
        [
            {},
            {"matchLabels": {"team": "red"}},
            {"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["one"]}]},
        ]
    )
    peer = st.one_of(
        st.fixed_dictionaries({"podSelector": selectors}, optional={"namespaceSelector": namespace_selectors}),
        st.fixed_dictionaries({"namespaceSelector": namespace_selectors}),
        st.fixed_dictionaries({"ipBlock": blocks}),
    )

    def rules(side: str) -> st.SearchStrategy[list[Raw]]:
        optional = {side: st.lists(peer, max_size=2), "ports": KUBERNETES_PORTS}
        return st.lists(st.fixed_dictionaries({}, optional=optional), max_size=2)

    types = st.sampled_from([["Ingress"], ["Egress"], ["Ingress", "Egress"]])
    optional = {"ingress": rules("from"), "egress": rules("to"), "policyTypes": types}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": draw(st.sampled_from("pqr")), "namespace": draw(st.sampled_from(["one", "two"]))},
        "spec": draw(st.fixed_dictionaries({"podSelector": selectors}, optional=optional)),
    }


def pod(name: str, labels: dict[str, str], ports: list[Raw], account: str) -> Raw:
    namespace, _, short = name.partition("/")
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": short, "namespace": namespace, "labels": labels},
        "spec": {
            "nodeName": PODS[name],
            "serviceAccountName": account,
            "containers": [{"name": "main", "ports": ports}],
        },
        "status": {"phase": "Running", "podIPs": [{"ip": ADDRESSES[name]}]},
    }


def node(number: int) -> Raw:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": f"n{number}", "labels": {"role": "board"}},
        "spec": {"podCIDR": f"10.244.{number}.0/24"},
        "status": {"addresses": [{"type": "InternalIP", "address": f"192.168.86.2{number}"}]},
    }


def service(name: str, addresses: list[str], selector: dict[str, str]) -> tuple[Raw, Raw]:
    """A Service and its EndpointSlice."""
    namespace, _, short = name.partition("/")
    slice_meta = {"name": f"{short}-1", "namespace": namespace, "labels": {"kubernetes.io/service-name": short}}
    return (
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": short, "namespace": namespace, "labels": {"role": "front"} if selector else {}},
            "spec": {"ports": [{"port": 80}], "clusterIP": "None"} | ({"selector": selector} if selector else {}),
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": slice_meta,
            "addressType": "IPv4",
            "endpoints": [{"addresses": [address]} for address in addresses],
            "ports": [{"port": 80, "protocol": "TCP"}],
        },
    )


FIXED: list[Raw] = [
    *map(node, (1, 2, 3)),
    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "two", "labels": {"team": "red"}}},
    *service("default/kubernetes", ["192.168.86.23", "192.168.86.99"], {}),
    *service("one/far", ["10.0.1.1", "10.244.2.12", "192.168.86.22"], {}),
    {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumCIDRGroup",
        "metadata": {"name": "home", "labels": {"kind": "lan"}},
        "spec": {"externalCIDRs": ["192.168.86.0/24", "10.1.0.0/16"]},
    },
]
"""What every cluster has: three nodes, the API server on one of them and on a machine outside, a service elsewhere."""

named_ports = st.lists(
    st.sampled_from(
        [
            {"name": "web", "containerPort": 80},
            {"name": "web", "containerPort": 8080, "protocol": "TCP"},
            {"name": "dns", "containerPort": 53, "protocol": "UDP"},
            {"containerPort": 443},
        ]
    ),
    max_size=2,
    unique_by=lambda port: port.get("name", ""),
)


@st.composite
def worlds(draw: st.DrawFn, most: int = 3, *, for_nodes: bool = True) -> list[Raw]:
    """All manifests of a cluster with up to `most` policies, and perhaps some for nodes."""
    pods = [
        pod(name, draw(label_sets), draw(named_ports), draw(st.sampled_from(["default", "robot"]))) for name in PODS
    ]
    web = service("two/web", [], {"app": draw(st.sampled_from("ab"))})
    drawn = draw(st.lists(st.one_of(cilium_policies(), kubernetes_policies()), min_size=1, max_size=most))
    drawn += draw(st.lists(node_policies(), max_size=2)) if for_nodes else []
    policies = {(item["kind"], *item["metadata"].values()): item for item in drawn}
    return [*FIXED, *web, *pods, *policies.values()]
