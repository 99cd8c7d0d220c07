"""Raw Kubernetes objects become models, or a BadObject that names the field.

Fields that the kind's API does not have are refused: a misspelt field must not be silently without effect.
Objects whose schema is wide and is checked by the API server (Pod, Node, Secret, Namespace) are read leniently.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from netstack.core.address import Range
from netstack.core.errors import BadObject, refused
from netstack.core.ref import Ref
from netstack.source.fields import Fields
from netstack.source.models import (
    CIDRGroup,
    Endpoint,
    EndpointSlice,
    Ingress,
    IngressClass,
    IngressPath,
    IngressRule,
    IngressTls,
    IPAddressPool,
    L2Advertisement,
    Meta,
    Namespace,
    Node,
    Object,
    Pod,
    Policy,
    Secret,
    Service,
    ServiceAllocation,
    ServicePort,
)
from netstack.source.selectors import LabelSelector

PORT = {"low": 1, "high": 65535}
PROTOCOLS = ("TCP", "UDP", "SCTP")
TOP = frozenset({"apiVersion", "kind", "metadata", "status"})
CORE = ("", "extensions")
"""Groups in which no vendor has a kind of its own: what says so, or says none at all, means the kind that we know."""


def _meta(ref: Ref, data: Mapping[str, Any]) -> Meta:
    fields = Fields(ref, data.get("metadata"), "metadata")
    created = fields.raw("creationTimestamp")
    return Meta(
        ref, fields.mapping("labels"), fields.mapping("annotations"), str(created or ""), str(fields.raw("uid") or "")
    )


def _head(ref: Ref, data: Mapping[str, Any]) -> Meta:
    """Of labels and annotations those that can be read."""

    def texts(name: str) -> dict[str, str]:
        found = data["metadata"].get(name)
        items = found.items() if isinstance(found, Mapping) else ()
        return {key: value for key, value in items if isinstance(key, str) and isinstance(value, str)}

    return Meta(ref, texts("labels"), texts("annotations"))


def _top(meta: Meta, data: Mapping[str, Any]) -> Fields:
    fields = Fields(meta.ref, data, "")
    for name in TOP:
        fields.raw(name)
    return fields


def _ingress_ips(data: Mapping[str, Any], ref: Ref) -> tuple[bytes, ...]:
    balancer = Fields(ref, data.get("status"), "status").child("loadBalancer")
    return tuple(item.address("ip") for item in balancer.children("ingress") if "ip" in item)


def _port_or_name(fields: Fields, name: str, default: int) -> int | str:
    value = fields.raw(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | str):
        fields.fail(name, f"must be a port number or name, not {value!r}")
    if isinstance(value, int) and not 1 <= value <= 65535:
        fields.fail(name, f"must be from 1 to 65535, not {value}")
    return value


SERVICE_FIELDS = frozenset(
    {"externalName", "healthCheckNodePort", "sessionAffinityConfig", "trafficDistribution", "clusterIP"}
)


def _service(meta: Meta, data: Mapping[str, Any]) -> Service:
    top = _top(meta, data)
    spec = top.child("spec")
    top.close()
    kind = spec.string("type", "ClusterIP", choices=("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"))
    ports = []
    for item in spec.children("ports"):
        number = item.integer("port", **PORT)
        ports.append(
            ServicePort(
                name=item.string("name", ""),
                protocol=item.string("protocol", "TCP", choices=PROTOCOLS),
                port=number,
                target_port=_port_or_name(item, "targetPort", number),
                node_port=item.integer("nodePort", 0, low=0, high=65535),
            )
        )
        item.close(ignore=frozenset({"appProtocol"}))
    affinity_s = 0
    if spec.string("sessionAffinity", "None", choices=("None", "ClientIP")) == "ClientIP":
        client = spec.child("sessionAffinityConfig").child("clientIP")
        affinity_s = client.integer("timeoutSeconds", 10800, low=1, high=86400)
    if spec.raw("clusterIP") == "None" or "None" in spec.strings("clusterIPs") or kind == "ExternalName":
        spec.raw("clusterIPs")
        cluster_ips: tuple[bytes, ...] = ()
    elif "clusterIPs" in spec:
        cluster_ips = spec.addresses("clusterIPs")
    else:
        cluster_ips = (spec.address("clusterIP"),) if "clusterIP" in spec else ()
    spec.boolean("allocateLoadBalancerNodePorts", True)  # decides nothing here: ports have node ports or have none
    service = Service(
        meta=meta,
        type=kind,
        cluster_ips=cluster_ips,
        external_ips=spec.addresses("externalIPs"),
        load_balancer_ips=_ingress_ips(data, meta.ref),
        requested_ip=spec.string("loadBalancerIP", ""),
        load_balancer_class=spec.string("loadBalancerClass", ""),
        ports=tuple(ports),
        selector=spec.mapping("selector"),
        affinity_s=affinity_s,
        external_local=spec.string("externalTrafficPolicy", "Cluster", choices=("Cluster", "Local")) == "Local",
        internal_local=spec.string("internalTrafficPolicy", "Cluster", choices=("Cluster", "Local")) == "Local",
        ip_families=spec.strings("ipFamilies"),
        ip_family_policy=spec.string("ipFamilyPolicy", ""),
        source_ranges=spec.prefixes("loadBalancerSourceRanges"),
        publish_not_ready=spec.boolean("publishNotReadyAddresses", False),
    )
    spec.close(ignore=SERVICE_FIELDS)
    return service


def _endpoint_slice(meta: Meta, data: Mapping[str, Any]) -> EndpointSlice:
    top = _top(meta, data)
    if top.string("addressType", "IPv4", choices=("IPv4", "IPv6", "FQDN")) == "FQDN":
        top.fail("addressType", "FQDN endpoints are not balanced")
    endpoints = []
    for item in top.children("endpoints"):
        conditions = item.child("conditions")
        ready = conditions.boolean("ready", True)
        target = item.child("targetRef")
        endpoints.append(
            Endpoint(
                addresses=item.addresses("addresses"),
                ready=ready,
                serving=conditions.boolean("serving", ready),
                terminating=conditions.boolean("terminating", False),
                node=item.string("nodeName", ""),
                target=Ref(target.string("kind", ""), target.string("namespace", ""), target.string("name", ""))
                if "targetRef" in item
                else None,
            )
        )
        item.close(ignore=frozenset({"deprecatedTopology", "hints", "hostname", "zone"}))
    ports = []
    for item in top.children("ports"):
        protocol = item.string("protocol", "TCP", choices=PROTOCOLS)
        ports.append((item.string("name", ""), protocol, item.integer("port", **PORT)))
        item.close(ignore=frozenset({"appProtocol"}))
    top.close()
    return EndpointSlice(meta, meta.labels.get("kubernetes.io/service-name", ""), tuple(endpoints), tuple(ports))


def _node(meta: Meta, data: Mapping[str, Any]) -> Node:
    spec, status = Fields(meta.ref, data.get("spec"), "spec"), Fields(meta.ref, data.get("status"), "status")
    cidrs = spec.prefixes("podCIDRs") or ((spec.prefix("podCIDR"),) if "podCIDR" in spec else ())
    addresses = tuple(
        item.address("address") for item in status.children("addresses") if item.raw("type") == "InternalIP"
    )
    unavailable = any(
        item.raw("type") == "NetworkUnavailable" and item.raw("status") == "True"
        for item in status.children("conditions")
    )
    return Node(meta, addresses, cidrs, unavailable)


def _pod(meta: Meta, data: Mapping[str, Any]) -> Pod:
    spec, status = Fields(meta.ref, data.get("spec"), "spec"), Fields(meta.ref, data.get("status"), "status")
    addresses = tuple(item.address("ip") for item in status.children("podIPs")) or (
        (status.address("podIP"),) if "podIP" in status else ()
    )
    sidecars = (item for item in spec.children("initContainers") if item.raw("restartPolicy") == "Always")
    ports = tuple(
        (
            port.string("name", ""),
            port.string("protocol", "TCP", choices=PROTOCOLS),
            port.integer("containerPort", **PORT),
        )
        for container in (*spec.children("containers"), *sidecars)
        for port in container.children("ports")
    )
    return Pod(
        meta=meta,
        node=spec.string("nodeName", ""),
        host_network=spec.boolean("hostNetwork", False),
        addresses=addresses,
        phase=status.string("phase", ""),
        service_account=spec.string("serviceAccountName", "default"),
        ports=ports,
    )


def _namespace(meta: Meta, data: Mapping[str, Any]) -> Namespace:
    return Namespace(meta)


def _backend(fields: Fields) -> tuple[str, int | str]:
    """IngressBackend: (service, port); a resource backend is refused."""
    if "resource" in fields:
        fields.fail("resource", "only Services can be backends")
    service = fields.child("service")
    port = service.child("port")
    number = port.integer("number", 0, low=0, high=65535)
    name = port.string("name", "")
    if bool(number) == bool(name):
        service.fail("port", "needs either number or name")
    result = (service.string("name"), number or name)
    for part in (port, service, fields):
        part.close()
    return result


def _ingress(meta: Meta, data: Mapping[str, Any]) -> Ingress:
    top = _top(meta, data)
    spec = top.child("spec")
    rules = []
    for rule in spec.children("rules"):
        paths = []
        http = rule.child("http")
        for item in http.children("paths"):
            kind = item.string("pathType", choices=("Exact", "Prefix", "ImplementationSpecific"))
            path = item.string("path", "/")
            if not path.startswith("/"):
                item.fail("path", f"must begin with /, not {path!r}")
            paths.append(IngressPath(path, kind, *_backend(item.child("backend"))))
            item.close()
        http.close()
        rules.append(IngressRule(rule.string("host", ""), tuple(paths)))
        rule.close()
    tls = []
    for item in spec.children("tls"):
        tls.append(IngressTls(item.strings("hosts"), item.string("secretName", "")))
        item.close()
    service, port = _backend(spec.child("defaultBackend")) if "defaultBackend" in spec else ("", 0)
    ingress = Ingress(
        meta=meta,
        class_name=spec.string("ingressClassName", ""),
        rules=tuple(rules),
        tls=tuple(tls),
        default_service=service,
        default_port=port,
        load_balancer_ips=_ingress_ips(data, meta.ref),
    )
    spec.close()
    top.close()
    return ingress


def _ingress_class(meta: Meta, data: Mapping[str, Any]) -> IngressClass:
    top = _top(meta, data)
    spec = top.child("spec")
    result = IngressClass(meta, spec.string("controller"))
    spec.close(ignore=frozenset({"parameters"}))
    top.close()
    return result


def _secret(meta: Meta, data: Mapping[str, Any]) -> Secret:
    fields = Fields(meta.ref, data, "")
    decoded: dict[str, bytes] = {}
    for key, text in fields.mapping("data").items():
        try:
            decoded[key] = base64.b64decode(text, validate=True)
        except ValueError as error:  # binascii.Error is one
            raise BadObject(meta.ref, f"data.{key}", "is not base64") from error
    decoded.update((key, text.encode()) for key, text in fields.mapping("stringData").items())
    return Secret(meta, fields.string("type", "Opaque"), decoded)


def _policy(meta: Meta, data: Mapping[str, Any]) -> Policy:
    # Whatever stands there is passed on: the compiler judges it, and denies where it cannot. What stands beside the
    # specs (an indentation that is missing) belongs to no field of them, so it goes with each, which it makes unusable.
    specs = data["specs"] if isinstance(data.get("specs"), list) else []
    raw = [data["spec"]] if data.get("spec") is not None else []
    known = {*TOP, "spec", *(["specs"] if data.get("specs") is None or data["specs"] is specs else [])}
    beside = {f"(beside it) {name}": value for name, value in data.items() if name not in known}
    items = (item if isinstance(item, Mapping) else {"": item} for item in [*raw, *specs])
    return Policy(meta, tuple({**item, **beside} if beside else item for item in items))


def _selectors(fields: Fields, name: str) -> tuple[LabelSelector, ...]:
    return tuple(LabelSelector.parse(item) for item in fields.children(name))


def _cidr_group(meta: Meta, data: Mapping[str, Any]) -> CIDRGroup:
    top = _top(meta, data)
    spec = top.child("spec")
    prefixes = spec.prefixes("externalCIDRs")
    spec.close()
    return CIDRGroup(meta, prefixes)


def _pool(meta: Meta, data: Mapping[str, Any]) -> IPAddressPool:
    top = _top(meta, data)
    spec = top.child("spec")
    ranges: list[Range] = []
    for index, text in enumerate(spec.strings("addresses")):
        try:
            new = Range.parse(text)
        except ValueError as error:
            spec.fail(f"addresses[{index}]", str(error))
        for old in ranges:
            if old.overlaps(new):
                spec.fail(f"addresses[{index}]", f"{new} overlaps {old} of the same pool")
        ranges.append(new)
    if not ranges:
        spec.fail("addresses", "is required and must not be empty")
    allocation = None
    if "serviceAllocation" in spec:
        part = spec.child("serviceAllocation")
        allocation = ServiceAllocation(
            priority=part.integer("priority", 0, low=0, high=2**31 - 1),
            namespaces=part.strings("namespaces"),
            namespace_selectors=_selectors(part, "namespaceSelectors"),
            service_selectors=_selectors(part, "serviceSelectors"),
        )
        part.close()
    pool = IPAddressPool(
        meta, tuple(ranges), spec.boolean("autoAssign", True), spec.boolean("avoidBuggyIPs", False), allocation
    )
    spec.close()
    top.close()
    return pool


def _l2_advertisement(meta: Meta, data: Mapping[str, Any]) -> L2Advertisement:
    top = _top(meta, data)
    spec = top.child("spec")
    result = L2Advertisement(
        meta=meta,
        pools=spec.strings("ipAddressPools"),
        pool_selectors=_selectors(spec, "ipAddressPoolSelectors"),
        node_selectors=_selectors(spec, "nodeSelectors"),
        service_selectors=_selectors(spec, "serviceSelectors"),
        interfaces=spec.strings("interfaces"),
    )
    spec.close()
    top.close()
    return result


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind that is served: its API groups' versions, its scope, and how it is read."""

    model: type
    versions: tuple[str, ...]
    namespaced: bool
    parse: Callable[[Meta, Mapping[str, Any]], Object]


KINDS: dict[str, Kind] = {
    "Service": Kind(Service, ("v1",), True, _service),
    "EndpointSlice": Kind(EndpointSlice, ("discovery.k8s.io/v1",), True, _endpoint_slice),
    "Node": Kind(Node, ("v1",), False, _node),
    "Pod": Kind(Pod, ("v1",), True, _pod),
    "Namespace": Kind(Namespace, ("v1",), False, _namespace),
    "Ingress": Kind(Ingress, ("networking.k8s.io/v1",), True, _ingress),
    "IngressClass": Kind(IngressClass, ("networking.k8s.io/v1",), False, _ingress_class),
    "Secret": Kind(Secret, ("v1",), True, _secret),
    "NetworkPolicy": Kind(Policy, ("networking.k8s.io/v1",), True, _policy),
    "CiliumNetworkPolicy": Kind(Policy, ("cilium.io/v2",), True, _policy),
    "CiliumClusterwideNetworkPolicy": Kind(Policy, ("cilium.io/v2",), False, _policy),
    "CiliumCIDRGroup": Kind(CIDRGroup, ("cilium.io/v2", "cilium.io/v2alpha1"), False, _cidr_group),
    "IPAddressPool": Kind(IPAddressPool, ("metallb.io/v1beta1",), True, _pool),
    "L2Advertisement": Kind(L2Advertisement, ("metallb.io/v1beta1",), True, _l2_advertisement),
}


def reference(data: Any) -> Ref:
    """The name of a raw object; BadObject says what its head lacks. A namespaced object without one is in `default`."""
    unknown = Ref("object", "", "(without a name)")
    if not isinstance(data, Mapping):
        raise BadObject(unknown, "(document)", f"must be a mapping, not a {type(data).__name__}")
    kind = data.get("kind")
    if not isinstance(kind, str):
        raise BadObject(unknown, "kind", "is required")
    metadata = data.get("metadata")
    if not isinstance(metadata, Mapping):
        raise BadObject(Ref(kind, "", "(without a name)"), "metadata", "is required")
    name = metadata.get("name")
    if not isinstance(name, str) or not name:
        raise BadObject(Ref(kind, "", "(without a name)"), "metadata.name", "is required")
    served = KINDS.get(kind)
    namespace = metadata.get("namespace") or "default"
    if not isinstance(namespace, str):
        raise BadObject(Ref(kind, "", name), "metadata.namespace", f"must be a string, not {namespace!r}")
    return Ref(kind, namespace if served is None or served.namespaced else "", name)


def vendor(data: Mapping[str, Any]) -> str:
    """The API group of a raw object whose kind has the name of one that is served, and is another; "" if it is not."""
    kind, group = KINDS.get(data["kind"]), str(data.get("apiVersion", "")).rpartition("/")[0]
    groups = {known.rpartition("/")[0] for known in kind.versions} if kind else {group}
    return group if group not in (*groups, *CORE) else ""


def parse(data: Mapping[str, Any]) -> Object | None:
    """A raw object as its model; None for a kind or API group that is not served here. BadObject names the field."""
    ref = reference(data)
    kind, version = KINDS.get(ref.kind), str(data.get("apiVersion", ""))
    if kind is None or vendor(data):
        return None
    if version not in kind.versions:
        wrong = f"{version} is not served" if version else "is required"
        raise BadObject(ref, "apiVersion", f"{wrong}; known: {', '.join(kind.versions)}")
    with refused(ref):
        try:
            meta = _meta(ref, data)
        except BadObject as error:
            if kind.model is not Policy:
                raise
            return replace(_policy(_head(ref, data), data), wrong=error.with_traceback(None))
        return kind.parse(meta, data)
