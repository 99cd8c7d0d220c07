"""What other parts of the stack are told: this node's EndpointSlice, and the status of each Ingress. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from netstack.core.address import is_v4, unpack
from netstack.ingress.routes import Problem
from netstack.ingress.settings import IngressSettings
from netstack.source.models import Service, ServicePort

MANAGER = "netstack-ingress"
CONDITIONS = ("Accepted", "ResolvedRefs", "Programmed")
"""Conditions of an Ingress, in the words of the Gateway API. While one is true its reason is its own name."""


def slice_name(settings: IngressSettings) -> str:
    return f"{settings.service_key[1]}-{settings.node}"


def endpoint_slice(
    service: Service, address: bytes, ready: bool, settings: IngressSettings
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The discovery.k8s.io/v1 EndpointSlice of HAProxy on this node, and the ports of the Service that it lacks."""
    ports, missing = [], []
    for port in service.ports:
        number = _listener(port, settings)
        if number is None:
            missing.append(port.name or str(port.port))
        else:
            ports.append({"name": port.name, "protocol": "TCP", "port": number})
    document: dict[str, Any] = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": slice_name(settings),
            "namespace": service.meta.namespace,
            "labels": {
                "kubernetes.io/service-name": service.meta.name,
                "endpointslice.kubernetes.io/managed-by": MANAGER,
            },
        },
        "addressType": "IPv4" if is_v4(address) else "IPv6",
        "endpoints": [
            {
                "addresses": [unpack(address)],
                "conditions": {"ready": ready, "serving": ready, "terminating": False},
                "nodeName": settings.node,
            }
        ],
        "ports": ports,
    }
    if service.meta.uid:  # in a cluster it goes when its Service does
        owner = {"apiVersion": "v1", "kind": "Service", "name": service.meta.name, "uid": service.meta.uid}
        document["metadata"]["ownerReferences"] = [owner]
    return document, tuple(missing)


def _listener(port: ServicePort, settings: IngressSettings) -> int | None:
    """Which of HAProxy's two ports a port of the Service leads to. ingress-nginx's chart names them http and https."""
    if port.protocol != "TCP":
        return None
    if "https" in (port.name, port.target_port) or port.port == 443:
        return settings.https_port
    if "http" in (port.name, port.target_port) or port.port == 80:
        return settings.http_port
    return None


def ingress_status(service: Service | None, problems: Iterable[Problem]) -> dict[str, Any]:
    """networking.k8s.io/v1 IngressStatus, and conditions beside it, which that API lacks."""
    found = tuple(problems)
    status: dict[str, Any] = {"conditions": [_condition(name, found) for name in CONDITIONS]}
    if service is not None:
        addresses = dict.fromkeys((*service.load_balancer_ips, *service.external_ips))
        status["loadBalancer"] = {"ingress": [{"ip": unpack(address)} for address in addresses]}
    return status


def _condition(name: str, problems: tuple[Problem, ...]) -> dict[str, str]:
    mine = [problem for problem in problems if problem.condition == name]
    if not mine:
        return {"type": name, "status": "True", "reason": name, "message": ""}
    message = "; ".join(f"{problem.field}: {problem.message}" for problem in mine)
    return {"type": name, "status": "False", "reason": mine[0].reason, "message": message}
