"""Objects as an API server holds them, small."""

from __future__ import annotations

from typing import Any

Raw = dict[str, Any]


def service(name: str, address: str = "10.96.0.1", namespace: str = "ns", **spec: Any) -> Raw:
    metadata = {"name": name, "namespace": namespace}
    ports = [{"port": 80, "protocol": "TCP", "targetPort": 80}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"clusterIP": address, "clusterIPs": [address], "ports": ports, **spec},
    }


def pod(name: str, address: str = "10.244.1.3", namespace: str = "ns", phase: str = "Running") -> Raw:
    """With what a real Pod carries and nobody here reads."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"app": name.partition("-")[0]},
            "annotations": {"kubernetes.io/config.seen": "2026-01-01T00:00:00Z"},
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}],
        },
        "spec": {
            "nodeName": "n1",
            "serviceAccountName": "default",
            "containers": [
                {
                    "name": "c",
                    "image": "registry.example/app:1",
                    "env": [{"name": "A", "value": "b"}],
                    "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                }
            ],
        },
        "status": {"phase": phase, "podIP": address, "podIPs": [{"ip": address}], "conditions": [{"type": "Ready"}]},
    }


def namespace(name: str) -> Raw:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def policy(name: str, kind: str = "CiliumNetworkPolicy") -> Raw:
    version = "networking.k8s.io/v1" if kind == "NetworkPolicy" else "cilium.io/v2"
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {"name": name, "namespace": "ns"},
        "spec": {"endpointSelector": {}, "ingress": []},
    }


def secret(name: str, kind: str = "kubernetes.io/tls") -> Raw:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": "ns"},
        "type": kind,
        "data": {"tls.crt": "Yw==", "tls.key": "aw=="},
    }
