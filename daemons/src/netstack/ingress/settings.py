"""Settings of netstack-ingress: /etc/netstack/ingress.yaml, rendered by its role."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from netstack.source.choice import check

KUBECONFIG = "/etc/netstack/ingress.kubeconfig"
"""Not that of the other daemons: those may not read Secrets."""
SCOPE = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(/[a-z0-9]([-a-z0-9.]*[a-z0-9])?)?")
NAMESPACED = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?/[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
PLAIN_PATH = re.compile(r"/[A-Za-z0-9._/-]+")


@dataclass(frozen=True, slots=True)
class IngressSettings:
    node: str
    """Name of this node: the EndpointSlice that it writes carries it."""

    service: str = "ingress-nginx/ingress-nginx-controller"
    """namespace/name of the Service that HAProxy stands for. Its addresses become the status of every Ingress."""

    ingress_class: str = "nginx"
    """Class that is served when no IngressClass object says who serves it, and in the legacy annotation."""

    controllers: tuple[str, ...] = ("k8s.io/ingress-nginx",)
    """spec.controller values of the IngressClasses that are served."""

    without_class: bool = False
    """Serve Ingresses that name no class even when no default IngressClass is ours (ingress-nginx's
    --watch-ingress-without-class)."""

    default_backend: str = ""
    """namespace/service:port that answers what no Ingress matches. Empty: a built-in 404, as ingress-nginx."""

    default_certificate: str = ""
    """namespace/name of the TLS Secret for names without a certificate. Empty: a self-signed one."""

    ssl_redirect: bool = True
    """Answer plain HTTP for a host that has TLS with a 308 to https, as ingress-nginx; annotations override it."""

    hsts_s: int = 31536000
    """max-age of Strict-Transport-Security on TLS answers of hosts with TLS, seconds, as ingress-nginx; 0 = none."""

    body_size: int = 1 << 20
    """Largest request body, bytes, as ingress-nginx's 1m; 0 = no limit. Counts Content-Length: a chunked body
    passes whatever its size."""

    connect_timeout_s: float = 1.5
    """Time for a connection to a backend, seconds. ingress-nginx waits 5. A lost SYN is sent again after 1 s
    (RFC 6298, section 2.1), so 1.5 s forgives one loss, and a request to a pod of a dead node goes elsewhere then."""

    read_timeout_s: float = 60.0
    """Silence of a backend, seconds, before 504: nginx's proxy_read_timeout."""

    tunnel_timeout_s: float = 3600.0
    """Silence on a websocket, seconds. nginx cuts at proxy_read_timeout (60 s); nearly everybody raises it to this.
    The annotation proxy-read-timeout sets both."""

    client_timeout_s: float = 60.0
    """Silence of a client in a request, and time for its headers, seconds, as nginx."""

    keepalive_timeout_s: float = 75.0
    """Idle time of a client's connection between requests, seconds, as nginx."""

    access_log: bool = True
    """One line a request in the journal."""

    addresses: tuple[str, ...] = ("0.0.0.0",)
    """Where HAProxy listens in its own namespace. Add `::` where the endpoint has IPv6."""

    http_port: int = 80
    https_port: int = 443

    threads: int = 4
    """HAProxy's threads: the number of big cores of an RK3588."""

    max_connections: int = 4096
    """Client connections at once. HAProxy needs two file descriptors for each, and one for each slot: below the unit's
    LimitNOFILE, or it does not start."""

    pools: int = 128
    """Backends (Service and port pairs) that fit before HAProxy has to be reloaded to make room for as many more."""

    slots: int = 16
    """Endpoints of one backend that fit before a reload makes room for as many more. A slot costs about 6 KB."""

    source: str = "directory"
    """Where the objects come from: `directory` (the folder `manifests`, and statuses to the folder `status`) or
    `kubernetes` (the API server, and statuses to its objects)."""

    kubeconfig: str = KUBECONFIG
    """File with the API server's address and the ingress's certificate or token. "" = the files of a pod's service
    account. Read again when it, or a file that it names, changes."""

    secrets: tuple[str, ...] = ()
    """Namespaces, or namespace/name, of the TLS Secrets that it asks the API server for: as many as it may read. Empty:
    those of the whole cluster."""

    manifests: Path = Path("/etc/netstack/manifests")
    """Folder of the directory source; the EndpointSlice of this node is written there."""

    status: Path = Path("/var/lib/netstack/status")
    """Status folder."""

    state: Path = Path("/var/lib/netstack/ingress")
    """haproxy.cfg, pools.cfg, routes.map, crt-list, certs/: what HAProxy starts from."""

    socket: Path = Path("/run/netstack-haproxy/haproxy.sock")
    """HAProxy's runtime socket, in a folder that belongs to HAProxy's user."""

    master_socket: Path = Path("/run/netstack-haproxy/master.sock")
    """The socket of HAProxy's master process (its option -S): asked for a reload, should one be needed."""

    endpoint: Path = Path("/run/netstack/ingress-endpoint.json")
    """The CNI result of HAProxy's namespace, written by `netstack-ingress --endpoint add`."""

    def __post_init__(self) -> None:
        check(self.source)
        _require(bool(re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", self.node)), "node", "is no node name")
        _require(bool(NAMESPACED.fullmatch(self.service)), "service", "must be namespace/name")
        if self.default_backend:
            service, _, port = self.default_backend.rpartition(":")
            _require(bool(NAMESPACED.fullmatch(service) and port), "default_backend", "must be namespace/service:port")
        if self.default_certificate:
            _require(
                bool(NAMESPACED.fullmatch(self.default_certificate)), "default_certificate", "must be namespace/name"
            )
            known = {self.default_certificate, self.default_certificate.partition("/")[0]}
            _require(not self.secrets or bool(known & {*self.secrets}), "default_certificate", "is not in secrets")
        for scope in self.secrets:
            _require(bool(SCOPE.fullmatch(scope)), "secrets", f"{scope!r} is neither a namespace nor namespace/name")
        for name in ("connect", "read", "tunnel", "client", "keepalive"):
            value = getattr(self, f"{name}_timeout_s")
            _require(0.001 <= value <= 86400, f"{name}_timeout_s", f"must be from 0.001 to 86400, not {value}")
        for name in ("http_port", "https_port"):
            value = getattr(self, name)
            _require(1 <= value <= 65535, name, f"must be from 1 to 65535, not {value}")
        for name, high in (("threads", 64), ("max_connections", 1 << 20), ("pools", 4096), ("slots", 256)):
            value = getattr(self, name)
            _require(1 <= value <= high, name, f"must be from 1 to {high}, not {value}")
        for name in ("body_size", "hsts_s"):
            _require(getattr(self, name) >= 0, name, f"must not be negative: {getattr(self, name)}")
        for name in ("state", "socket"):  # they stand in haproxy.cfg
            _require(bool(PLAIN_PATH.fullmatch(str(getattr(self, name)))), name, "must be a plain absolute path")
        for address in self.addresses:
            _require(bool(re.fullmatch(r"[0-9a-fA-F.:]+", address)), "addresses", f"{address!r} is no address")

    @property
    def service_key(self) -> tuple[str, str]:
        namespace, _, name = self.service.partition("/")
        return namespace, name


def _require(holds: bool, field: str, reason: str) -> None:
    if not holds:
        raise ValueError(f"{field}: {reason}")
