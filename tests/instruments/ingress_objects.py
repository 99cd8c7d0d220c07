"""Objects in, routing out: short ways to write Services, EndpointSlices, Ingresses and Secrets as raw objects.

`Cluster(...)` compiles them. Its free properties, checked every time:
* compiling the objects in another order gives the same routing;
* every route goes to a backend that is there or is answered in place, every known host answers every path;
* no key or value of the map could be read as anything else by HAProxy;
* nothing is left to change between what was rendered and itself.
"""

from __future__ import annotations

import base64
import datetime
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from netstack.core.ref import Ref
from netstack.ingress import render
from netstack.ingress.certificates import KeyPair, self_signed
from netstack.ingress.changes import changes
from netstack.ingress.routes import Problem, Route, Routing, compile_routes
from netstack.ingress.settings import IngressSettings
from netstack.ingress.slots import Slots, assign
from netstack.source.models import Object
from netstack.source.parse import parse, reference
from netstack.source.snapshot import Snapshot

Raw = dict[str, Any]
CLASS = "nginx"
PREFIX = "nginx.ingress.kubernetes.io/"
NOW = 1_800_000_000.0
DEFAULT_PAIR = self_signed("ingress.local", NOW)


def service(name: str, *ports: Raw | int, namespace: str = "default", **spec: Any) -> Raw:
    """A ClusterIP Service; a port is a number or a whole mapping."""
    listed = [{"port": item} if isinstance(item, int) else item for item in ports or (80,)]
    return _object("v1", "Service", namespace, name, spec={"ports": listed, **spec})


def endpoints(
    of: str, *targets: str, namespace: str = "default", port_name: str = "", ready: bool = True, suffix: str = "1"
) -> list[Raw]:
    """EndpointSlices of a Service with endpoints written as address:port; one slice a port."""
    by_port: dict[int, list[str]] = {}
    for target in targets:
        address, _, port = target.rpartition(":")
        by_port.setdefault(int(port), []).append(address)
    slices = []
    for port, addresses in by_port.items() or [(1, [])]:
        item = _object("discovery.k8s.io/v1", "EndpointSlice", namespace, f"{of}-{suffix}-{port}")
        item["metadata"]["labels"] = {"kubernetes.io/service-name": of}
        item["endpoints"] = [{"addresses": [address], "conditions": {"ready": ready}} for address in addresses]
        item["ports"] = [{"port": port, "name": port_name}]
        slices.append(item)
    return slices


def ingress(
    name: str,
    *rules: tuple[str, ...],
    namespace: str = "default",
    created: str = "",
    tls: Iterable[Raw] = (),
    annotations: dict[str, str] | None = None,
    default: str = "",
    class_name: str | None = CLASS,
) -> Raw:
    """Rules as (host, path, service) or (host, path, type, service:port); one rule an entry, Prefix and port 80."""
    spec: Raw = {"rules": [_rule(*rule) for rule in rules], "tls": list(tls)}
    if class_name is not None:
        spec["ingressClassName"] = class_name
    if default:
        spec["defaultBackend"] = _backend(default)
    item = _object("networking.k8s.io/v1", "Ingress", namespace, name, spec=spec)
    item["metadata"]["annotations"] = {
        key if "/" in key else PREFIX + key: value for key, value in (annotations or {}).items()
    }
    if created:
        item["metadata"]["creationTimestamp"] = created
    return item


def _rule(host: str, path: str, *rest: str) -> Raw:
    kind, target = ("Prefix", rest[0]) if len(rest) == 1 else rest
    rule: Raw = {"http": {"paths": [{"path": path, "pathType": kind, "backend": _backend(target)}]}}
    return rule | ({"host": host} if host else {})


def _backend(target: str) -> Raw:
    name, _, port = target.partition(":")
    return {
        "service": {"name": name, "port": {"number": int(port or 80)} if (port or "80").isdigit() else {"name": port}}
    }


def ingress_class(name: str, controller: str = "k8s.io/ingress-nginx", *, default: bool = False) -> Raw:
    item = _object("networking.k8s.io/v1", "IngressClass", "", name, spec={"controller": controller})
    if default:
        item["metadata"]["annotations"] = {"ingressclass.kubernetes.io/is-default-class": "true"}
    return item


def secret(name: str, chain: str, key: str, namespace: str = "default") -> Raw:
    data = {"tls.crt": base64.b64encode(chain.encode()).decode(), "tls.key": base64.b64encode(key.encode()).decode()}
    return _object("v1", "Secret", namespace, name, type="kubernetes.io/tls", data=data)


def key_pair(*names: str, rsa_bits: int = 0, extensions: Mapping[str, bytes] | None = None) -> tuple[str, str]:
    """A new self-signed certificate for these names and its key, as PEM texts. `extensions`: OID -> DER."""
    key = rsa.generate_private_key(65537, rsa_bits) if rsa_bits else ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0] if names else "none")])
    start = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - datetime.timedelta(days=3650))
        .not_valid_after(start + datetime.timedelta(days=3650))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(map(x509.DNSName, names)), critical=False)
    for oid, der in (extensions or {}).items():
        builder = builder.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), der), critical=False)
    certificate = builder.sign(key, hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), private.decode()


def _object(version: str, kind: str, namespace: str, name: str, **fields: Any) -> Raw:
    metadata: Raw = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **fields}


def flat(objects: Iterable[Raw | list[Raw]]) -> list[Raw]:
    return [raw for item in objects for raw in (item if isinstance(item, list) else [item])]


def snapshot(*objects: Raw | list[Raw]) -> Snapshot:
    parsed: dict[Ref, Object] = {}
    for raw in flat(objects):
        model = parse(raw)
        assert model is not None
        parsed[reference(raw)] = model
    return Snapshot(parsed)


class Cluster:
    """The routing of these objects. `settings` are fields of IngressSettings."""

    def __init__(self, *objects: Raw | list[Raw], **settings: Any) -> None:
        self.settings = IngressSettings(**{"node": "n1", "state": Path("/var/lib/netstack/ingress"), **settings})
        self.snapshot = snapshot(*objects)
        self.routing: Routing = compile_routes(self.snapshot, self.settings)
        self.slots: Slots = assign(Slots(), self.routing.backends, pools=4, slots=2)
        self.wanted = render.wanted(self.routing, self.slots, self.default_pair, self.settings)
        self._check()

    @property
    def default_pair(self) -> KeyPair:
        return self.routing.default_certificate or DEFAULT_PAIR

    def _check(self) -> None:
        backwards = Snapshot(dict(reversed(self.snapshot.objects.items())))
        assert compile_routes(backwards, self.settings) == self.routing
        hosts = {route.host for route in self.routing.routes}
        assert "" in hosts
        for host in hosts:
            assert any(route.match == (host, "", False) for route in self.routing.routes), host
        for route in self.routing.routes:
            assert route.status or self.routing.backends[route.backend]
        assert len(self.wanted.state.routes) == len(self.routing.routes)
        for key, value in self.wanted.state.routes.items():
            assert re.fullmatch(r"[!-~]+", key), key
            assert not key.startswith("#")
            assert re.fullmatch(r"(p\d+|404|503)\|[r-]\|\d+\|\d+\|[t-]\|[a-z0-9./-]+", value), value
        assert changes(self.wanted.state, self.wanted) == []

    def problems(self, name: str, namespace: str = "default") -> list[Problem]:
        return list(self.routing.problems[Ref("Ingress", namespace, name)])

    def route(self, host: str, path: str) -> Route:
        """The route of a request for `host` and `path` (in normal form): the longest entry, as HAProxy finds it."""
        by_key = {render.route_key(route): route for route in self.routing.routes}
        for name in (host, "*." + host.partition(".")[2], render.CATCH_ALL):
            key = f"{name}{path}/?"
            found = [known for known in by_key if key.startswith(known)]
            if found:
                return by_key[max(found, key=len)]
        raise AssertionError("the catch-all answers everything")

    def answer(self, host: str, path: str) -> str | int:
        """The backend, or the status that is answered in place."""
        route = self.route(host, path)
        return route.status or route.backend
