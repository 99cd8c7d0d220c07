"""What the lab's controllers derive from Services and Pods: EndpointSlices, and the names of the cluster's DNS.

Pure functions of objects, as the API server would hand them out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Object = Mapping[str, Any]
Port = tuple[str, str, int]  # name, protocol, number

CLUSTER_DOMAIN = "cluster.local"


def slices(services: Sequence[Object], pods: Sequence[Object]) -> Iterator[dict[str, Any]]:
    """The EndpointSlices of every Service with a selector and at least one pod.

    One slice a Service, unless a named target port is not the same number in all its pods: then one for each set.
    """
    for service in services:
        groups: dict[tuple[Port, ...], list[dict[str, Any]]] = {}
        for pod in pods:
            if selects(service, pod) and address(pod):
                groups.setdefault(target_ports(service, pod), []).append(endpoint(service, pod))
        for number, (ports, endpoints) in enumerate(sorted(groups.items()), 1):
            yield endpoint_slice(service, f"{service['metadata']['name']}-{number}", ports, endpoints)


def endpoint_slice(
    service: Object, name: str, ports: Sequence[Port], endpoints: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    owner = service["metadata"]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": owner["namespace"],
            "labels": {
                "kubernetes.io/service-name": owner["name"],
                "endpointslice.kubernetes.io/managed-by": "lab",
            },
        },
        "addressType": "IPv4",
        "ports": [{"name": name, "protocol": protocol, "port": number} for name, protocol, number in ports],
        "endpoints": list(endpoints),
    }


def selects(service: Object, pod: Object) -> bool:
    selector = service.get("spec", {}).get("selector")
    labels = pod["metadata"].get("labels", {})
    same_namespace = service["metadata"]["namespace"] == pod["metadata"]["namespace"]
    return bool(selector) and same_namespace and selector.items() <= labels.items()


def address(pod: Object) -> str:
    """The pod's address; "" while it has none, or has ended."""
    status = pod.get("status", {})
    return "" if status.get("phase") in ("Succeeded", "Failed") else status.get("podIP", "")


def target_ports(service: Object, pod: Object) -> tuple[Port, ...]:
    """The Service's ports as numbers of this pod; a named one that the pod lacks is left out."""
    containers = pod["spec"].get("containers", [])
    named = {port.get("name"): port["containerPort"] for container in containers for port in container.get("ports", [])}
    ports = []
    for port in service["spec"].get("ports", []):
        target = port["targetPort"]
        number = target if isinstance(target, int) else named.get(target)
        if number is not None:
            ports.append((port.get("name", ""), port["protocol"], number))
    return tuple(ports)


def endpoint(service: Object, pod: Object) -> dict[str, Any]:
    meta, status = pod["metadata"], pod["status"]
    is_ready = any(one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions", []))
    terminating = "deletionTimestamp" in meta
    published = service["spec"].get("publishNotReadyAddresses", False)
    return {
        "addresses": [status["podIP"]],
        "conditions": {
            "ready": published or (is_ready and not terminating),
            "serving": is_ready,
            "terminating": terminating,
        },
        "nodeName": pod["spec"]["nodeName"],
        "targetRef": {"kind": "Pod", "namespace": meta["namespace"], "name": meta["name"], "uid": meta["uid"]},
    }


def hosts(services: Sequence[Object], endpoint_slices: Sequence[Object]) -> str:
    """The cluster's names as a hosts file: a Service's cluster address, or the ready endpoints of a headless one."""
    lines = []
    for service in services:
        meta = service["metadata"]
        cluster_ip = service["spec"].get("clusterIP")
        addresses = [cluster_ip] if cluster_ip != "None" else ready_addresses(meta, endpoint_slices)
        name = f"{meta['name']}.{meta['namespace']}.svc.{CLUSTER_DOMAIN}"
        lines += [f"{address} {name}\n" for address in addresses if address]
    return "".join(sorted(lines))


def ready_addresses(service: Object, endpoint_slices: Sequence[Object]) -> list[str]:
    return [
        address
        for one in endpoint_slices
        if one["metadata"]["namespace"] == service["namespace"]
        and one["metadata"].get("labels", {}).get("kubernetes.io/service-name") == service["name"]
        for entry in one.get("endpoints") or []
        if entry.get("conditions", {}).get("ready", True)
        for address in entry["addresses"]
    ]
