"""Who is who: labels -> identity, addresses -> identity and owning node (the `identities` table).

Policies name peers by labels, by entity or by address range; the programs compare one number. Everything that policies
can tell apart therefore gets a number of its own (a `Peer`):

* pods: one per set of labels and named ports, hashed from these, so every node computes the same without agreement;
* what Cilium reserves (pkg/identity/numericidentity.go): host, world, unmanaged, init, remote-node, kube-apiserver;
* each address range that a policy names: it is `world`, and itself. An address belongs to the longest range only, so
  a rule for a range lists the narrower ranges inside it too (`Peer.prefix`).

Ranges do not mean the cluster's own addresses (Cilium's default), unless `View.ranges_match` says that they mean those
of pods, of nodes or both. Then each of these has the longest range around it as a part of its identity: there are as
many identities of `remote-node` as ranges have nodes in them, and so on.

Labels are the pod's own plus those by which Cilium's selectors reach its namespace and service account. None is left
out: two pods that any policy can tell apart have different numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from netstack.agent.numbers import numbers
from netstack.core.address import ANY, V4, V6, Prefix
from netstack.core.ref import Ref
from netstack.core.table import Table
from netstack.kernel import layout
from netstack.source.models import EndpointSlice, Namespace, Node, Pod
from netstack.source.resources import STATIC_UID

NAMESPACE = "io.kubernetes.pod.namespace"
NAMESPACE_LABELS = "io.cilium.k8s.namespace.labels."
SERVICE_ACCOUNT = "io.cilium.k8s.policy.serviceaccount"
CLUSTER, CLUSTER_NAME = "io.cilium.k8s.policy.cluster", "default"
"""Every pod is of this cluster, as in Cilium where nobody gave it a name."""
INGRESS = "netstack.io/ingress"
"""Stands in the labels of the ingress endpoints and of nothing else: the entity `ingress`."""
DERIVED = frozenset({NAMESPACE, SERVICE_ACCOUNT, CLUSTER, INGRESS})
"""These keys, and those that begin with NAMESPACE_LABELS, are never taken from an object's own labels. All others are:
a policy may select by any label."""
MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
INGRESS_MANAGER = "netstack-ingress"

LABELS_BASE, PREFIX_BASE, BITS = layout.IDENTITY_PODS, layout.IDENTITY_PODS_END, 30
"""Identities above 2^30 are labels, above 2^31 ranges, above 3 * 2^30 name-selectors (policy/names.py)."""
UNMANAGED_BASE, SMALL_BITS = layout.IDENTITY_NODES_END, 24
"""Below 2^30, from layout.IDENTITY_NODES on: nodes that ranges tell apart (Cilium's scope of remote nodes), and from
here on parts of pod ranges."""
PODS, NODES = "pods", "nodes"
RANGES_MATCH = (PODS, NODES)
"""What `View.ranges_match` may hold. Cilium's policy-cidr-match-mode knows `nodes`."""
CHANGING = 255
"""An address on its way from one identity to another: denied by every endpoint that a policy selects (order.py)."""

REMOTE_NODE = frozenset({"remote-node", "cluster"})
UNMANAGED = frozenset({"unmanaged", "cluster"})
WORLDS = {"world-ipv4": V4, "world-ipv6": V6}
"""Entities that are the world's part of a range: View.prefixes has it where a policy names them."""

Labels = Mapping[str, str]
NamedPort = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class LocalEndpoint:
    """A pod of this node, as ADD made it; `labels` and the rest of its object as last seen."""

    id: int
    address: bytes
    ref: Ref
    ifindex: int
    mac: bytes
    host_mac: bytes
    labels: Labels = field(default_factory=dict)
    service_account: str = ""
    ingress: bool = False
    """This is the node's ingress endpoint, not a pod."""
    uid: str = ""
    """Of the pod; "" where ADD was not told."""
    namespace_labels: Labels = field(default_factory=dict)
    ports: tuple[NamedPort, ...] = ()


@dataclass(frozen=True, slots=True)
class Peer:
    """One identity, with everything that a policy can know of it."""

    number: int
    name: str
    labels: Labels = field(default_factory=dict)
    entities: frozenset[str] = frozenset()
    prefix: Prefix | None = None
    ports: frozenset[NamedPort] = frozenset()
    """Named container ports of the pods that have this identity: (name, protocol, number)."""


@dataclass(frozen=True, slots=True)
class Identities:
    """All peers, who has which address, and the identity of each local endpoint."""

    peers: tuple[Peer, ...]
    table: Table
    of_endpoint: Mapping[int, Peer]
    """Local endpoint id -> its peer."""
    of_address: Mapping[bytes, int]
    """Pod and node address -> identity."""
    problems: tuple[str, ...] = ()

    def at(self, address: bytes) -> int:
        """The identity of any address: its own, that of the longest range around it, or world."""
        if address in self.of_address:
            return self.of_address[address]
        best = (-1, layout.IDENTITY_WORLD)
        for key, value in self.table.entries.items():
            prefix = layout.PrefixKey.unpack(key)
            if prefix.bits > best[0] and address in Prefix(prefix.address, prefix.bits):
                best = (prefix.bits, layout.Identity.unpack(value).identity)
        return best[1]


@dataclass(frozen=True, slots=True)
class View:
    """What decides who is who."""

    node: str
    own_addresses: tuple[bytes, ...]
    """This node's addresses, whether or not a Node object says so; the first is the one it is known by."""
    own_cidrs: tuple[Prefix, ...]
    nodes: tuple[Node, ...]
    pods: tuple[Pod, ...]
    namespaces: tuple[Namespace, ...]
    slices: tuple[EndpointSlice, ...]
    """Those that `tell`."""
    endpoints: tuple[LocalEndpoint, ...]
    prefixes: frozenset[Prefix] = frozenset()
    """The ranges that policies name, exceptions included."""
    ranges_match: frozenset[str] = frozenset()
    """What these mean beside addresses outside the cluster: of RANGES_MATCH."""
    ingress_services: Mapping[Ref, Labels] = field(default_factory=dict)
    """Services whose pods the ingress endpoints stand for -> their selectors."""


@dataclass(slots=True)
class _Members:
    """Pods found so far: canonical text of all that tells them apart -> peer; address -> (text, node address)."""

    around: Around
    peers: dict[str, Peer] = field(default_factory=dict)
    """Their numbers are still 0."""
    holders: dict[bytes, tuple[str, bytes]] = field(default_factory=dict)

    def add(self, labels: Labels, ports: Iterable[NamedPort], address: bytes | None) -> str:
        """One more, with or without an address."""
        named = frozenset(port for port in ports if port[0])
        prefix = self.around(Prefix(address, 128)) if address is not None else None
        text = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
        text += "".join(f" {name}={number}/{protocol}" for name, protocol, number in sorted(named))
        text += f" in {prefix}" if prefix else ""
        entities = {"cluster", "ingress"} if INGRESS in labels else {"cluster"}
        name = "ingress" if INGRESS in labels else f"pods {labels.get(NAMESPACE, '')}"
        self.peers[text] = Peer(0, name, labels, frozenset(entities), prefix, named)
        return text


class Around:
    """The longest of some ranges that covers a given one, if any does. They are looked up by their lengths, of which
    there are few: a list of addresses to block has thousands of ranges, and each is asked about."""

    def __init__(self, ranges: Iterable[Prefix]) -> None:
        found: dict[int, dict[int, Prefix]] = {}
        for item in ranges:
            found.setdefault(item.bits, {})[int.from_bytes(item.address) >> 128 - item.bits] = item
        self._ranges = sorted(found.items(), reverse=True)
        """By their lengths, the longest first, and by their first so many bits."""

    def __call__(self, inner: Prefix) -> Prefix | None:
        return next(self.every(inner), None)

    def every(self, inner: Prefix) -> Iterator[Prefix]:
        """All that cover it, the longest first."""
        base = int.from_bytes(inner.address)
        for bits, ranges in self._ranges:
            outer = ranges.get(base >> 128 - bits)
            if outer is not None and outer.covers(inner):
                yield outer


def full_labels(own: Labels, namespace: str, service_account: str, namespaces: Mapping[str, Labels]) -> dict[str, str]:
    """A pod's labels with those of its namespace and service account under Cilium's keys.

    A pod cannot give itself any of these keys: whoever may label a pod must not choose its namespace's labels. Nor does
    a Namespace choose its name there; the API server sets that label, files have no such guard.
    """
    labels = {k: v for k, v in own.items() if k not in DERIVED and not k.startswith(NAMESPACE_LABELS)}
    labels[NAMESPACE] = namespace
    labels[CLUSTER] = CLUSTER_NAME
    if service_account:
        labels[SERVICE_ACCOUNT] = service_account
    for key, value in {**namespaces.get(namespace, {}), "kubernetes.io/metadata.name": namespace}.items():
        labels[NAMESPACE_LABELS + key] = value
    return labels


def is_pod(pod: Pod, uid: str) -> bool:
    """Whether it is the one that a runtime calls `uid`, and none of the same name before or after it. `uid` is "" where
    the runtime does not tell, the object's where a manifest has none: then the name decides."""
    return not uid or not pod.meta.uid or uid in (pod.meta.uid, pod.meta.annotations.get(STATIC_UID))


def tell(item: EndpointSlice) -> bool:
    """Whether it says who somebody is. Most do not, and change often."""
    return _is_api_server(item) or is_ingress(item)


def _is_api_server(item: EndpointSlice) -> bool:
    return (item.meta.namespace, item.service) == ("default", "kubernetes")


def is_ingress(item: EndpointSlice) -> bool:
    """One that a node's ingress has written. When the node is gone it stays: nobody else takes it back."""
    return item.meta.labels.get(MANAGED_BY) == INGRESS_MANAGER


def compile_identities(view: View) -> Identities:
    """Every peer and every address. An address that two objects claim goes to the local endpoint, else the newer."""
    namespaces = {item.meta.name: item.meta.labels for item in view.namespaces}
    node_address = {node.meta.name: node.addresses[0] for node in view.nodes if node.addresses}
    node_address[view.node] = view.own_addresses[0]
    members = _Members(Around(view.prefixes if PODS in view.ranges_match else ()))
    _pods(view, members, namespaces, node_address)
    _ingress(view, members, namespaces, node_address)
    of_endpoint = _local(view, members, namespaces)
    ids, collisions = numbers(members.peers, base=LABELS_BASE, bits=BITS)
    peers = {text: replace(peer, number=ids[text]) for text, peer in members.peers.items()}
    table: dict[bytes, bytes] = {}
    of_address: dict[bytes, int] = {}

    def put(prefix: Prefix, identity: int, node: bytes) -> None:
        table[layout.PrefixKey(prefix.bits, prefix.address).pack()] = layout.Identity(identity, 0, node).pack()

    api = _api_servers(view)
    apart, of_node, clashes = _nodes(view, api)
    prefixes, more = _ranges(view, api, frozenset(of_node))
    empty, unmanaged, others = _unmanaged(view, node_address)
    put(V4, layout.IDENTITY_WORLD, ANY)  # else what is said of ::/0 would be found for IPv4 too
    for prefix, peer in prefixes.items():
        put(prefix, peer.number, ANY)
    for cidr, (identity, owner) in unmanaged.items():
        put(cidr, identity, owner)
    for address, (text, owner) in members.holders.items():
        of_address[address] = ids[text]
        put(Prefix(address, 128), ids[text], owner)
    for address, (identity, owner) in of_node.items():
        of_address[address] = identity
        put(Prefix(address, 128), identity, owner)
    everyone = (
        *_reserved(view, api),
        *apart,
        *empty,
        *(peers[text] for text in sorted(peers)),
        *(prefixes[p] for p in sorted(prefixes)),
    )
    collided = [*collisions, *clashes, *more, *others]
    return Identities(
        peers=everyone,
        table=Table("identities", table),
        of_endpoint={number: peers[text] for number, text in of_endpoint.items()},
        of_address=of_address,
        problems=tuple(f"identity of {loser!r} collides with {winner!r}" for loser, winner in collided),
    )


class Census:
    """Compiles identities, and remembers the last: most changes of policies leave everyone who they are."""

    def __init__(self) -> None:
        self._last: tuple[View, Identities] | None = None

    def identities(self, view: View) -> Identities:
        """As `compile_identities`; the very same object as long as the view is the same."""
        if self._last is None or self._last[0] != view:
            self._last = view, compile_identities(view)
        return self._last[1]


def _pods(view: View, members: _Members, namespaces: Mapping[str, Labels], node_address: Mapping[str, bytes]) -> None:
    for pod in sorted(view.pods, key=lambda pod: (pod.meta.created, pod.meta.ref)):
        if pod.host_network or pod.ended:  # their addresses are the node's, or given back
            continue
        labels = full_labels(pod.meta.labels, pod.meta.namespace, pod.service_account, namespaces)
        if not pod.addresses:
            members.add(labels, pod.ports, None)
        for address in pod.addresses:
            text = members.add(labels, pod.ports, address)
            if pod.node in node_address:  # else nobody could tell by which door its packets come, so it is nobody's
                members.holders[address] = (text, node_address[pod.node])


def _ingress(
    view: View, members: _Members, namespaces: Mapping[str, Labels], node_address: Mapping[str, bytes]
) -> None:
    """The ingress endpoints of all nodes, by the EndpointSlices that netstack-ingress writes for its Services."""
    for item in view.slices:
        service = Ref("Service", item.meta.namespace, item.service)
        if not is_ingress(item) or service not in view.ingress_services:
            continue
        labels = full_labels(view.ingress_services[service], service.namespace, "", namespaces)
        for endpoint in item.endpoints:
            for address in endpoint.addresses if endpoint.node in node_address else ():  # as for pods
                text = members.add({**labels, INGRESS: ""}, (), address)
                members.holders.setdefault(address, (text, node_address[endpoint.node]))


def _local(view: View, members: _Members, namespaces: Mapping[str, Labels]) -> dict[int, str]:
    """This node's endpoints: their address is what ADD gave them, whatever objects say. Endpoint id -> text."""
    pods = {pod.meta.ref: pod for pod in view.pods}
    found = {}
    for endpoint in view.endpoints:
        pod = pods.get(endpoint.ref) if not endpoint.ingress else None
        if pod is not None and not is_pod(pod, endpoint.uid):  # deleted by force, and its name is another's by now
            pod = None
        own = pod.meta.labels if pod else endpoint.labels
        account = pod.service_account if pod else endpoint.service_account
        if endpoint.ingress:  # as labelled when its Service was last known; until then by its namespace alone
            own = next(iter(view.ingress_services.values()), endpoint.labels)
        known = namespaces
        if pod is None and endpoint.ref.namespace not in namespaces:  # gone with its pods
            known = {endpoint.ref.namespace: endpoint.namespace_labels}
        labels = full_labels(own, endpoint.ref.namespace, account, known)
        if endpoint.ingress:
            labels[INGRESS] = ""
        text = members.add(labels, pod.ports if pod else endpoint.ports, endpoint.address)
        members.holders[endpoint.address] = (text, view.own_addresses[0])
        found[endpoint.id] = text
    return found


def _pod_cidrs(view: View, node_address: Mapping[str, bytes]) -> dict[Prefix, bytes]:
    """Every node's pod ranges -> its address."""
    cidrs = {cidr: node_address.get(node.meta.name, ANY) for node in view.nodes for cidr in node.pod_cidrs}
    cidrs.update((cidr, view.own_addresses[0]) for cidr in view.own_cidrs)
    return cidrs


def _unmanaged(
    view: View, node_address: Mapping[str, bytes]
) -> tuple[list[Peer], dict[Prefix, tuple[int, bytes]], list[tuple[str, str]]]:
    """What in pod ranges is no pod that is known: peers, and each range -> (identity, owning node).

    If ranges mean pods they mean these addresses too: a pod may have one before its object is seen here.
    """
    found = {}
    for cidr, owner in _pod_cidrs(view, node_address).items():
        found[cidr] = owner
        if PODS in view.ranges_match:
            found.update((prefix, owner) for prefix in view.prefixes if cidr.covers(prefix))
    around = Around(view.prefixes if PODS in view.ranges_match else ())
    named = {part: around(part) for part in found}
    texts = {f"unmanaged in {prefix}": prefix for prefix in named.values() if prefix}
    ids, collisions = numbers(texts, base=UNMANAGED_BASE, bits=SMALL_BITS)
    peers = [Peer(ids[text], text, {}, UNMANAGED, prefix) for text, prefix in sorted(texts.items())]
    numbered = {peer.prefix: peer.number for peer in peers}
    entries = {part: (numbered.get(named[part], layout.IDENTITY_UNMANAGED), owner) for part, owner in found.items()}
    return peers, entries, collisions


def _ranges(view: View, api: set[bytes], taken: frozenset[bytes]) -> tuple[dict[Prefix, Peer], list[tuple[str, str]]]:
    """A peer for the outside part of each range that policies name. A range inside a PodCIDR, and a single address of a
    node, have no such part.
    """
    pod_cidrs = _pod_cidrs(view, {})
    outside = {str(Prefix(address, 128)): Prefix(address, 128) for address in api - taken}
    outside.update((str(prefix), prefix) for prefix in view.prefixes)
    texts = {
        text: prefix
        for text, prefix in outside.items()
        if not any(cidr.covers(prefix) for cidr in pod_cidrs) and not (prefix.bits == 128 and prefix.address in taken)
    }
    ids, collisions = numbers(texts, base=PREFIX_BASE, bits=BITS)
    peers = {}
    for text, prefix in texts.items():
        entities = {"world", *(entity for entity, range_ in WORLDS.items() if range_.covers(prefix))}
        if prefix.bits == 128 and prefix.address in api:
            entities |= {"kube-apiserver", "cluster"}  # cilium pkg/policy/api/entity.go, InitEntities
        peers[prefix] = Peer(ids[text], text, {}, frozenset(entities), prefix)
    return peers, collisions


def _api_servers(view: View) -> set[bytes]:
    """Where the API server answers: the endpoints of Service default/kubernetes."""
    return {
        address
        for item in view.slices
        if _is_api_server(item)
        for endpoint in item.endpoints
        for address in endpoint.addresses
    }


def _reserved(view: View, api: set[bytes]) -> tuple[Peer, ...]:
    """Those with a number of their own, whether or not an address has it just now."""
    return (
        Peer(layout.IDENTITY_HOST, "host", entities=_host(view, api)),
        Peer(layout.IDENTITY_WORLD, "world", entities=frozenset({"world"})),
        Peer(layout.IDENTITY_UNMANAGED, "unmanaged", entities=UNMANAGED),
        Peer(layout.IDENTITY_INIT, "init", entities=frozenset({"init", "cluster"})),
        Peer(layout.IDENTITY_REMOTE_NODE, "remote-node", entities=REMOTE_NODE),
        Peer(layout.IDENTITY_KUBE_APISERVER, "kube-apiserver", entities=REMOTE_NODE | {"kube-apiserver"}),
    )


def _host(view: View, api: set[bytes]) -> frozenset[str]:
    own = next((node.addresses for node in view.nodes if node.meta.name == view.node), ())
    return frozenset({"host", "cluster"} | ({"kube-apiserver"} if api & {*own, *view.own_addresses} else set()))


def _nodes(view: View, api: set[bytes]) -> tuple[list[Peer], dict[bytes, tuple[int, bytes]], list[tuple[str, str]]]:
    """Each node's addresses -> (identity, the node's own address); and the peers that are nodes in a range.

    Who comes from this node itself is IDENTITY_HOST, known by the door; the address counts for who goes there.
    """
    around = Around(view.prefixes if NODES in view.ranges_match else ())
    kinds: dict[bytes, tuple[int, bytes]] = {}
    for node in view.nodes:
        for address in node.addresses:
            number = layout.IDENTITY_KUBE_APISERVER if api & set(node.addresses) else layout.IDENTITY_REMOTE_NODE
            kinds[address] = (number, node.addresses[0])
    own = next((node.addresses for node in view.nodes if node.meta.name == view.node), ())
    for address in (*own, *view.own_addresses):
        kinds[address] = (layout.IDENTITY_HOST, view.own_addresses[0])
    reserved = {peer.number: peer for peer in _reserved(view, api)}
    inside: dict[str, Peer] = {}
    for address, (number, _) in kinds.items():
        prefix = around(Prefix(address, 128))
        if prefix:
            text = f"{reserved[number].name} in {prefix}"
            inside[text] = replace(reserved[number], name=text, prefix=prefix)
    ids, collisions = numbers(inside, base=layout.IDENTITY_NODES, bits=SMALL_BITS)
    peers = {text: replace(peer, number=ids[text]) for text, peer in inside.items()}
    found = {}
    for address, (number, owner) in kinds.items():
        prefix = around(Prefix(address, 128))
        found[address] = (ids[f"{reserved[number].name} in {prefix}"] if prefix else number, owner)
    return [peers[text] for text in sorted(peers)], found, collisions
