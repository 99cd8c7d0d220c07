"""Kubernetes objects in the fewest words, parsed by the product's own parser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from netstack.source.models import EndpointSlice, IPAddressPool, L2Advertisement, Node, Service
from netstack.source.parse import parse


def _object(kind: str, version: str, name: str, spec: Mapping[str, Any], **metadata: Any) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, **metadata}, "spec": dict(spec)}


def pool(
    name: str, *addresses: str, labels: Mapping[str, str] | None = None, created: str = "", **spec: Any
) -> IPAddressPool:
    metadata = {"namespace": "metallb-system", "labels": labels or {}, "creationTimestamp": created}
    return cast(
        IPAddressPool,
        parse(_object("IPAddressPool", "metallb.io/v1beta1", name, {"addresses": list(addresses), **spec}, **metadata)),
    )


def service(
    name: str, *, has: tuple[str, ...] = (), annotations: Mapping[str, str] | None = None, namespace: str = "default",
    labels: Mapping[str, str] | None = None, created: str = "", ports: tuple[int, ...] = (80,), **spec: Any,
) -> Service:  # fmt: skip
    metadata = {
        "namespace": namespace,
        "annotations": annotations or {},
        "labels": labels or {},
        "creationTimestamp": created,
    }
    whole = {"type": "LoadBalancer", "ports": [{"name": f"p{port}", "port": port} for port in ports], **spec}
    document = _object("Service", "v1", name, whole, **metadata)
    document["status"] = {"loadBalancer": {"ingress": [{"ip": ip} for ip in has]}}
    return cast(Service, parse(document))


def advertisement(name: str = "kubelab", **spec: Any) -> L2Advertisement:
    document = _object("L2Advertisement", "metallb.io/v1beta1", name, spec, namespace="metallb-system")
    return cast(L2Advertisement, parse(document))


def node(name: str, *, unavailable: bool = False, **labels: str) -> Node:
    document = _object("Node", "v1", name, {}, labels={key.replace("__", "/"): value for key, value in labels.items()})
    document["status"] = {"conditions": [{"type": "NetworkUnavailable", "status": str(unavailable)}]}
    return cast(Node, parse(document))


def endpoints(service_name: str, *nodes: str, ready: bool = True) -> EndpointSlice:
    document = {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": f"{service_name}-1", "labels": {"kubernetes.io/service-name": service_name}},
        "endpoints": [
            {"addresses": [f"10.244.1.{i + 3}"], "conditions": {"ready": ready}, "nodeName": name}
            for i, name in enumerate(nodes)
        ],
        "ports": [{"name": "p80", "port": 8080, "protocol": "TCP"}],
    }  # fmt: skip
    return cast(EndpointSlice, parse(document))
