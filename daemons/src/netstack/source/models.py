"""The Kubernetes objects that netstack reads, as frozen dataclasses with only the fields that decide something.

They are read from raw objects by `netstack.source.parse`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from netstack.core.address import Prefix, Range
from netstack.core.documents import same_text
from netstack.core.errors import BadObject
from netstack.core.ref import Ref
from netstack.source.selectors import LabelSelector


@dataclass(frozen=True, slots=True)
class Meta:
    """metadata: what every object has. `created` is the API's time stamp text, "" where there is none."""

    ref: Ref
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    uid: str = ""

    @property
    def namespace(self) -> str:
        return self.ref.namespace

    @property
    def name(self) -> str:
        return self.ref.name


@dataclass(frozen=True, slots=True)
class ServicePort:
    name: str
    protocol: str
    port: int
    target_port: int | str
    node_port: int
    """0 if none."""


@dataclass(frozen=True, slots=True)
class Service:
    """v1 Service."""

    meta: Meta
    type: str
    cluster_ips: tuple[bytes, ...]
    """Empty for a headless service."""
    external_ips: tuple[bytes, ...]
    load_balancer_ips: tuple[bytes, ...]
    """status.loadBalancer.ingress[].ip: addresses that were assigned."""
    requested_ip: str
    """spec.loadBalancerIP, "" if none."""
    load_balancer_class: str
    ports: tuple[ServicePort, ...]
    selector: Mapping[str, str]
    affinity_s: int
    """sessionAffinity ClientIP's timeout in seconds; 0 = no affinity."""
    external_local: bool
    internal_local: bool
    ip_families: tuple[str, ...]
    ip_family_policy: str
    source_ranges: tuple[Prefix, ...]
    publish_not_ready: bool


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One entry of an EndpointSlice; `target` names the pod behind it, if any."""

    addresses: tuple[bytes, ...]
    ready: bool
    serving: bool
    terminating: bool
    node: str
    target: Ref | None


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """discovery.k8s.io/v1 EndpointSlice. `ports` are (name, protocol, number)."""

    meta: Meta
    service: str
    endpoints: tuple[Endpoint, ...]
    ports: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True, slots=True)
class Node:
    """v1 Node: its InternalIPs, its pod ranges, and whether it is said to be ready and reachable."""

    meta: Meta
    addresses: tuple[bytes, ...]
    pod_cidrs: tuple[Prefix, ...]
    network_unavailable: bool


@dataclass(frozen=True, slots=True)
class Pod:
    """v1 Pod. `ports` are the named container ports (name, protocol, number), sidecars' among them."""

    meta: Meta
    node: str
    host_network: bool
    addresses: tuple[bytes, ...]
    phase: str
    service_account: str
    ports: tuple[tuple[str, str, int], ...]

    @property
    def ended(self) -> bool:
        """Its addresses have been given back."""
        return self.phase in ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class Namespace:
    meta: Meta


@dataclass(frozen=True, slots=True)
class IngressPath:
    path: str
    path_type: str
    service: str
    """Name of the backend Service in the Ingress's namespace."""
    port: int | str


@dataclass(frozen=True, slots=True)
class IngressRule:
    host: str
    """"" = every host."""
    paths: tuple[IngressPath, ...]


@dataclass(frozen=True, slots=True)
class IngressTls:
    hosts: tuple[str, ...]
    secret: str


@dataclass(frozen=True, slots=True)
class Ingress:
    """networking.k8s.io/v1 Ingress."""

    meta: Meta
    class_name: str
    rules: tuple[IngressRule, ...]
    tls: tuple[IngressTls, ...]
    default_service: str
    default_port: int | str
    load_balancer_ips: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class IngressClass:
    meta: Meta
    controller: str


@dataclass(frozen=True, slots=True)
class Secret:
    """v1 Secret, decoded. Its repr hides the data."""

    meta: Meta
    type: str
    data: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """NetworkPolicy, CiliumNetworkPolicy or CiliumClusterwideNetworkPolicy.

    The specs stay raw: the policy compiler refuses a policy as a whole and needs even a broken one's selector,
    because a policy that cannot be read denies (law 4).
    """

    meta: Meta
    """Labels and annotations as far as they can be read."""
    specs: tuple[Mapping[str, Any], ...]
    wrong: BadObject | None = None
    """Why `meta` is not whole; such a policy is refused too."""

    def __eq__(self, other: object) -> bool:
        """To Python 1 is true, to who reads the specs it is not: the one may be refused and the other its mend."""
        if not isinstance(other, Policy):
            return NotImplemented
        return (self.meta, self.wrong) == (other.meta, other.wrong) and same_text(self.specs, other.specs)


@dataclass(frozen=True, slots=True)
class ServiceAllocation:
    """IPAddressPool.spec.serviceAllocation: which services may draw from the pool."""

    priority: int
    """Lower is asked first; 0 = last."""
    namespaces: tuple[str, ...]
    namespace_selectors: tuple[LabelSelector, ...]
    service_selectors: tuple[LabelSelector, ...]


@dataclass(frozen=True, slots=True)
class IPAddressPool:
    """metallb.io/v1beta1 IPAddressPool."""

    meta: Meta
    ranges: tuple[Range, ...]
    auto_assign: bool
    avoid_buggy_ips: bool
    allocation: ServiceAllocation | None


@dataclass(frozen=True, slots=True)
class L2Advertisement:
    """metallb.io/v1beta1 L2Advertisement. Empty lists select everything."""

    meta: Meta
    pools: tuple[str, ...]
    pool_selectors: tuple[LabelSelector, ...]
    node_selectors: tuple[LabelSelector, ...]
    service_selectors: tuple[LabelSelector, ...]
    interfaces: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CIDRGroup:
    """cilium.io/v2 CiliumCIDRGroup: address ranges that policies name together."""

    meta: Meta
    prefixes: tuple[Prefix, ...]


Object = (
    Service
    | EndpointSlice
    | Node
    | Pod
    | Namespace
    | Ingress
    | IngressClass
    | Secret
    | Policy
    | IPAddressPool
    | L2Advertisement
    | CIDRGroup
)
