"""What the ingress asks the API server for. Pure."""

from __future__ import annotations

from collections.abc import Collection

from netstack.source.resources import Want

TLS = "type=kubernetes.io/tls"
OBJECTS = (*map(Want, ("Service", "EndpointSlice", "IngressClass")), Want("Ingress", status=True))


def wants(scopes: Collection[str] = ()) -> tuple[Want, ...]:
    """`scopes`: namespaces, or namespace/name, of the Secrets that may be read; without any, all of the cluster."""
    parts = [scope.partition("/") for scope in sorted(set(scopes))] or [("", "", "")]
    return *OBJECTS, *(Want("Secret", fields=TLS, namespace=namespace, name=name) for namespace, _, name in parts)
