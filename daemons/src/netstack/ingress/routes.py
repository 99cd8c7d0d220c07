"""Objects become routes: which backend answers a host and a path, with ingress-nginx's meaning of an Ingress.

* Ingresses are taken oldest first. The oldest wins a host and path, and the certificate of a host; different paths
  of one host merge, also from several namespaces.
* A host is looked up exactly, then as a wildcard (`*.x.y` covers one label), then as the host-less catch-all. A
  known host keeps all its paths: what matches none of them is answered by its default, not by another host's rule.
* Exact is equality. Prefix, and ImplementationSpecific with it, goes by path element: /foo covers /foo, /foo/ and
  /foo/x, not /foobar. Exact goes before Prefix, the longer Prefix before the shorter.
* A regular expression is not served. One that an Ingress guards goes, as in ingress-nginx, before the shorter paths of
  its namespace that may be what it matches, whichever is older: they are closed, for it cannot be asked which request
  is meant. Paths of other namespaces lead to Services that it does not guard.
* An Ingress that asks for client certificates guards its hosts as a whole, as far as they are its namespace's.
* No endpoints, or no such Service: 503. No match: the default backend, or 404.

Every route carries the id of what caused it: namespace/name/rule/path of the Ingress.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple
from urllib.parse import quote

from netstack.core.address import unpack
from netstack.core.ref import Ref
from netstack.ingress.certificates import KeyPair, key_pair
from netstack.ingress.options import Options, parse
from netstack.ingress.settings import IngressSettings
from netstack.source.models import EndpointSlice, Ingress, IngressClass, Secret, Service
from netstack.source.snapshot import Snapshot

CLASS_ANNOTATION = "kubernetes.io/ingress.class"
DEFAULT_CLASS_ANNOTATION = "ingressclass.kubernetes.io/is-default-class"
LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
HOST = re.compile(rf"(\*\.)?{LABEL}(\.{LABEL})*")
PATH = re.compile(r"/([A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*")
"""RFC 3986, section 3.3: `pchar` and slashes. Nothing in it has a meaning to HAProxy's map files."""
ODD_PATH = re.compile(r"//|/\.\.?(/|$)|%2[fF]")
"""Never matched, because requests are matched in normal form; the API server refuses most of them as well."""
NEVER_PLAIN = re.compile(r"[^A-Za-z0-9._~!$&'()*+,;=:@/%-]+|%(?![0-9A-Fa-f]{2})")
"""What PATH refuses, and a client sends percent-encoded."""
ENCODED = re.compile(r"%([0-9A-Fa-f]{2})")
PLAIN = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@-]")
EXPRESSION = re.compile(r"[(\[*+?{|\\^$]")
"""Where ingress-nginx may read a path as a regular expression, the first character that is none of its text."""
WHOLE_ELEMENT = re.compile(r"\$|\(/\|\$\)(\(\.\*\))?|\(/\.\*\)\??")
"""The ends of such an expression before which a path element is complete, as people write them."""
READ_AS_EXPRESSIONS = re.compile(r"nginx\.ingress\.kubernetes\.io/(use-regex|rewrite-target)")
"""Annotations by one of which ingress-nginx reads all paths of an Ingress's hosts so."""
CLIENT_CERTIFICATES = "nginx.ingress.kubernetes.io/auth-tls-secret"
"""A guard that ingress-nginx gives to a host as a whole, whichever of its paths the Ingress names."""
MAX_KEY = 1024
"""Longest host and path of one route, characters."""


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """One endpoint of a backend: 16-byte address and port."""

    address: bytes
    port: int

    @property
    def host(self) -> str:
        return unpack(self.address)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Route:
    """What answers one host and path. `status` 0 forwards to `backend`; 404 and 503 are answered in place."""

    id: str
    host: str
    """Exact name, `*.x.y`, or "" for every other host."""
    path: str
    """In normal form; without a slash at the end unless exact; "" is everything."""
    exact: bool
    backend: str
    status: int
    redirect: bool
    """Send plain HTTP to https."""
    tls: bool
    """The host has TLS of its own."""
    body_size: int
    read_timeout_ms: int
    """0 = the daemon's setting."""

    @property
    def match(self) -> tuple[str, str, bool]:
        return self.host, self.path, self.exact


@dataclass(frozen=True, slots=True)
class Certificate:
    """One key pair and the hosts that it is served for. `owner` is the Secret's namespace/name."""

    owner: str
    hosts: tuple[str, ...]
    pair: KeyPair


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an Ingress, or a part of it, is not in force as written. `condition` and `reason` as in the Gateway API."""

    condition: str
    reason: str
    field: str
    message: str


@dataclass(frozen=True, slots=True)
class Routing:
    """Everything that HAProxy should do, and for each Ingress of ours what is wrong with it."""

    routes: tuple[Route, ...]
    backends: Mapping[str, tuple[Target, ...]]
    """`namespace/service:port` -> ready endpoints."""
    certificates: tuple[Certificate, ...]
    default_certificate: KeyPair | None
    problems: Mapping[Ref, tuple[Problem, ...]]


def compile_routes(snapshot: Snapshot, settings: IngressSettings) -> Routing:
    """The whole routing of one moment. Pure: the same snapshot and settings give the same routing."""
    return _Compiler(snapshot, settings).run()


def select(snapshot: Snapshot, settings: IngressSettings) -> list[Ingress]:
    """The Ingresses of our class, oldest first; without a time stamp last, then by name."""
    classes = {item.meta.name: item for item in snapshot.all(IngressClass)}
    default = any(
        item.controller in settings.controllers and item.meta.annotations.get(DEFAULT_CLASS_ANNOTATION) == "true"
        for item in classes.values()
    )

    def ours(ingress: Ingress) -> bool:
        legacy = ingress.meta.annotations.get(CLASS_ANNOTATION)
        if legacy:
            return legacy == settings.ingress_class
        if not ingress.class_name:
            return default or settings.without_class
        known = classes.get(ingress.class_name)
        return known.controller in settings.controllers if known else ingress.class_name == settings.ingress_class

    def age(ingress: Ingress) -> tuple[bool, str, Ref]:
        return not ingress.meta.created, ingress.meta.created, ingress.meta.ref

    return sorted(filter(ours, snapshot.all(Ingress)), key=age)


def normal_path(path: str, *, exact: bool) -> str:
    """The path as requests are matched: decoded as far as may stand in a path, hex in capitals, no slash at a prefix's
    end."""

    def decode(match: re.Match[str]) -> str:
        character = chr(int(match[1], 16))
        return character if PLAIN.fullmatch(character) else f"%{match[1].upper()}"

    path = ENCODED.sub(decode, path)
    return path if exact else path.rstrip("/")


def _usable(host: str, path: str) -> bool:
    return bool(PATH.fullmatch(path)) and not ODD_PATH.search(path) and len(host + path) <= MAX_KEY


def guarded_path(path: str) -> str:
    """What is to be closed for a path of an Ingress that guards it: of a regular expression, which is not served, the
    elements before it. To close more than it matches is safe; to leave it to a shorter path is not."""
    match = EXPRESSION.search(path)
    if match is None:
        return path
    before = path[: match.start()]
    return before if WHOLE_ELEMENT.fullmatch(path, match.start()) else before[: before.rfind("/") + 1] or "/"


def closed_paths(host: str, path: str) -> Iterator[str]:
    """What is to be closed for a path of an Ingress that guards it: itself, as a client sends it, and what it may match
    as an expression. Where that is no path of ours the next shorter one that is."""
    for text in dict.fromkeys((path, guarded_path(path))):
        usable = NEVER_PLAIN.sub(lambda match: quote(match[0], safe="", errors="replace"), text)
        while not _usable(host, usable):
            usable = usable[: usable.rfind("/")] or "/"
        yield usable


class _Guard(NamedTuple):
    """A regular expression that an Ingress guards, at the elements before it."""

    owner: Ref
    text: str
    path: str

    def hides(self, path: str) -> bool:
        """Whether ingress-nginx, which takes the longer text first, may ask this one before `path`."""
        return len(path) < len(self.text) and f"{path}/".startswith(f"{self.path}/")


class _Path(NamedTuple):
    """One path of an Ingress on its way to a route; `at` is the field of its backend."""

    id: str
    at: str
    host: str
    path: str
    exact: bool
    service: str
    port: int | str


@dataclass(slots=True)
class _Compiler:
    """The state of one compilation."""

    snapshot: Snapshot
    settings: IngressSettings
    routes: dict[tuple[str, str, bool], Route] = field(default_factory=dict)
    hosts: dict[str, None] = field(default_factory=dict)
    backends: dict[str, tuple[Target, ...]] = field(default_factory=dict)
    problems: dict[Ref, list[Problem]] = field(default_factory=dict)
    options: dict[Ref, tuple[Options, bool]] = field(default_factory=dict)
    """What each Ingress asks for, and whether its paths are closed."""
    guarding: set[Ref] = field(default_factory=set)
    """The Ingresses that guard their paths."""
    guards: dict[tuple[str, str], list[_Guard]] = field(default_factory=dict)
    """Namespace and host -> the expressions that are guarded there."""
    guarded_hosts: dict[tuple[str, str], Ref] = field(default_factory=dict)
    """Namespace and host -> who asks for client certificates there."""
    slices: dict[tuple[str, str], list[EndpointSlice]] = field(default_factory=dict)
    tls: dict[str, tuple[str, KeyPair] | None] = field(default_factory=dict)
    """Host with TLS -> (Secret, key pair), or None where the default certificate stands in."""

    def run(self) -> Routing:
        for item in self.snapshot.all(EndpointSlice):
            self.slices.setdefault((item.meta.namespace, item.service), []).append(item)
        ingresses = select(self.snapshot, self.settings)
        for ingress in ingresses:
            self._options(ingress)
            self._certificates(ingress)
        self._guards(ingresses)
        for ingress in ingresses:
            self._enter(ingress, self._paths(ingress))
        for ingress in ingresses:  # after all paths: a written / goes before anybody's default backend
            self._enter(ingress, self._defaults(ingress))
        self._fallbacks()
        default = self.settings.default_certificate
        return Routing(
            routes=tuple(sorted(self.routes.values(), key=lambda route: route.match)),
            backends=dict(sorted(self.backends.items())),
            certificates=self._served_certificates(),
            default_certificate=self._default_certificate(default) if default else None,
            problems={ref: tuple(found) for ref, found in self.problems.items()},
        )

    def _problem(self, ingress: Ingress, condition: str, reason: str, field_: str, message: str) -> None:
        self.problems[ingress.meta.ref].append(Problem(condition, reason, field_, message))

    # Routes

    def _options(self, ingress: Ingress) -> None:
        ref = ingress.meta.ref
        chosen, refusals = parse(ingress.meta.annotations)
        self.options[ref] = chosen, any(refusal.closes for refusal in refusals)
        if any(refusal.guards for refusal in refusals):
            self.guarding.add(ref)
        self.problems[ref] = [
            Problem("Accepted", "UnsupportedAnnotation", refusal.field, refusal.reason) for refusal in refusals
        ]

    def _guards(self, ingresses: Iterable[Ingress]) -> None:
        read = {
            rule.host.lower()
            for ingress in ingresses
            if any(map(READ_AS_EXPRESSIONS.fullmatch, ingress.meta.annotations))
            for rule in ingress.rules
        }
        for ingress in ingresses:
            ref = ingress.meta.ref
            for rule in ingress.rules if ref in self.guarding else ():
                host = rule.host.lower()
                if CLIENT_CERTIFICATES in ingress.meta.annotations:
                    self.guarded_hosts.setdefault((ref.namespace, host), ref)
                for item in rule.paths:
                    if host in read and (cut := guarded_path(item.path)) != item.path:
                        guard = _Guard(ref, item.path, normal_path(cut, exact=False))
                        self.guards.setdefault((ref.namespace, host), []).append(guard)

    def _enter(self, ingress: Ingress, paths: Iterable[_Path]) -> None:
        chosen, closed = self.options[ingress.meta.ref]
        for id_, at, host, path, exact, service, port in paths:
            backend = self._backend(ingress, service, port, at)
            guarded = "" if closed else self._guarded(ingress.meta.namespace, host, path)
            if guarded:
                message = f"{host or 'every host'}{path or '/'} is closed: {guarded}"
                self._problem(ingress, "Accepted", "Conflicted", at, message)
            route = self._route(id_, host, path, exact, backend, chosen, closed or bool(guarded))
            winner = self.routes.setdefault(route.match, route)
            if replace(winner, id=id_) != route:
                message = f"{host or 'every host'}{path or '/'} is served by {winner.id.rsplit('/', 2)[0]} already"
                self._problem(ingress, "Accepted", "Conflicted", at, message)

    def _guarded(self, namespace: str, host: str, path: str) -> str:
        """Which other Ingress of the namespace guards what, if that closes this path; else ""."""
        owner = self.guarded_hosts.get((namespace, host))
        if owner is not None:
            return f"{owner.key} guards the whole host"
        guards = self.guards.get((namespace, host), ())
        return next((f"{guard.owner.key} guards {guard.text[:80]!r}" for guard in guards if guard.hides(path)), "")

    def _route(self, id_: str, host: str, path: str, exact: bool, backend: str, chosen: Options, closed: bool) -> Route:
        tls = host in self.tls
        wanted = self.settings.ssl_redirect if chosen.ssl_redirect is None else chosen.ssl_redirect
        return Route(
            id=id_,
            host=host,
            path=path,
            exact=exact,
            backend=backend,
            status=503 if closed or not self.backends.get(backend) else 0,
            redirect=chosen.force_ssl_redirect or (tls and wanted),
            tls=tls,
            body_size=self.settings.body_size if chosen.body_size is None else chosen.body_size,
            read_timeout_ms=chosen.read_timeout_ms or 0,
        )

    def _paths(self, ingress: Ingress) -> Iterator[_Path]:
        """The usable paths of an Ingress's rules."""
        _, closed = self.options[ingress.meta.ref]
        for r, rule in enumerate(ingress.rules):
            host = rule.host.lower()
            if host and (not HOST.fullmatch(host) or len(host) > 253):
                self._problem(ingress, "Accepted", "InvalidHost", f"spec.rules[{r}].host", f"{host!r} is no host name")
                continue
            self.hosts[host] = None
            for p, item in enumerate(rule.paths):
                at = f"spec.rules[{r}].http.paths[{p}]"
                if not _usable(host, item.path):
                    message = f"{item.path[:80]!r} is no path in normal form (RFC 3986, sections 3.3 and 6.2.2)"
                    self._problem(ingress, "Accepted", "InvalidPath", f"{at}.path", message)
                    if not closed:
                        continue
                for text in closed_paths(host, item.path) if closed else (item.path,):
                    exact = item.path_type == "Exact" and text == item.path
                    path = normal_path(text, exact=exact)
                    id_ = f"{ingress.meta.ref.key}/{r}/{p}"
                    yield _Path(id_, f"{at}.backend", host, path, exact, item.service, item.port)

    def _defaults(self, ingress: Ingress) -> Iterator[_Path]:
        """spec.defaultBackend: of the Ingress's hosts where nobody wrote /, of every host if it has no rules."""
        if not ingress.default_service:
            return
        for host in dict.fromkeys(rule.host.lower() for rule in ingress.rules) if ingress.rules else ("",):
            if not ingress.rules or (host in self.hosts and (host, "", False) not in self.routes):
                id_ = f"{ingress.meta.ref.key}/default/-"
                service, port = ingress.default_service, ingress.default_port
                yield _Path(id_, "spec.defaultBackend", host, "", False, service, port)

    def _fallbacks(self) -> None:
        """Every known host, and the catch-all, answers every path: by the default backend, else 404."""
        backend, id_ = self.settings.default_backend, "default"
        if backend:
            service, _, port = backend.rpartition(":")
            namespace, _, name = service.partition("/")
            self.backends[backend], _ = self._targets(namespace, name, int(port) if port.isdigit() else port)
        for host in ("", *self.hosts):
            route = self._route(id_ if backend else "-", host, "", False, backend, Options(), closed=False)
            status = route.status if backend else 404
            self.routes.setdefault(route.match, replace(route, status=status, redirect=False))

    # Backends

    def _backend(self, ingress: Ingress, service: str, port: int | str, at: str) -> str:
        """The key of the backend, entered into `backends`; problems say why it has no endpoint."""
        namespace = ingress.meta.namespace
        key = f"{namespace}/{service}:{port}"
        targets, why = self._targets(namespace, service, port)
        self.backends[key] = targets
        if why is not None:
            condition, reason, part, message = why
            self._problem(ingress, condition, reason, f"{at}.service.{part}", message)
        return key

    def _targets(
        self, namespace: str, name: str, port: int | str
    ) -> tuple[tuple[Target, ...], tuple[str, str, str, str] | None]:
        """Ready endpoints of a Service's port, or (condition, reason, field, message) why there are none."""
        service = self.snapshot.get(Service, "Service", namespace, name)
        if service is None:
            return (), ("ResolvedRefs", "BackendNotFound", "name", f"Service {namespace}/{name} does not exist")
        if service.type == "ExternalName":
            return (), ("ResolvedRefs", "UnsupportedValue", "name", f"Service {namespace}/{name} is an ExternalName")
        # By the pods' port as well, as ingress-nginx finds it, though the Ingress API knows the Service's alone.
        tcp = [item for item in service.ports if item.protocol == "TCP"]
        ports = [item for item in tcp if port in (item.port, item.name)]
        ports = ports or [item for item in tcp if port == item.target_port]
        if not ports:
            return (), ("ResolvedRefs", "BackendNotFound", "port", f"Service {namespace}/{name} has no TCP port {port}")
        targets = {
            Target(address, number)
            for item in self.slices.get((namespace, name), ())
            for port_name, protocol, number in item.ports
            if port_name == ports[0].name and protocol == "TCP"
            for endpoint in item.endpoints
            if endpoint.ready or service.publish_not_ready
            for address in endpoint.addresses
        }
        if not targets:
            message = f"Service {namespace}/{name} has no ready endpoint for port {port}"
            return (), ("Programmed", "NoReadyEndpoints", "name", message)
        return tuple(sorted(targets)), None

    # Certificates

    def _certificates(self, ingress: Ingress) -> None:
        """Enter the certificate of each host that the Ingress's TLS sections name, or that their certificates cover."""
        hosts = list(dict.fromkeys(rule.host.lower() for rule in ingress.rules if rule.host))
        for t, section in enumerate(ingress.tls):
            at = f"spec.tls[{t}]"
            pair = self._key_pair(ingress, section.secret, f"{at}.secretName") if section.secret else None
            named = {host.lower() for host in section.hosts}
            for host in hosts:
                covered = pair is not None and _covers(pair, host)
                if host in self.tls or not (host in named or (covered and not named)):
                    continue
                if pair is not None and not covered:
                    message = f"the certificate is for {', '.join(pair.names) or 'no name'}, not for {host}"
                    self._problem(ingress, "ResolvedRefs", "InvalidCertificateRef", f"{at}.secretName", message)
                owner = f"{ingress.meta.namespace}/{section.secret}"
                self.tls[host] = (owner, pair) if pair is not None and covered else None

    def _key_pair(self, ingress: Ingress, name: str, at: str) -> KeyPair | None:
        secret = self.snapshot.get(Secret, "Secret", ingress.meta.namespace, name)
        try:
            return _read(secret, f"{ingress.meta.namespace}/{name}")
        except ValueError as error:
            message = f"{error}; the default certificate is served"
            self._problem(ingress, "ResolvedRefs", "InvalidCertificateRef", at, message)
            return None

    def _default_certificate(self, key: str) -> KeyPair | None:
        namespace, _, name = key.partition("/")
        try:
            return _read(self.snapshot.get(Secret, "Secret", namespace, name), key)
        except ValueError:
            return None  # the caller serves the self-signed one, and its status says so

    def _served_certificates(self) -> tuple[Certificate, ...]:
        by_pair: dict[tuple[str, KeyPair], list[str]] = {}
        for host, found in self.tls.items():
            if found is not None:
                by_pair.setdefault(found, []).append(host)
        served = [Certificate(owner, tuple(sorted(hosts)), pair) for (owner, pair), hosts in by_pair.items()]
        return tuple(sorted(served, key=lambda certificate: (certificate.owner, certificate.hosts)))


def _covers(pair: KeyPair, host: str) -> bool:
    return host in pair.names if host.startswith("*.") else pair.covers(host)


def _read(secret: Secret | None, key: str) -> KeyPair:
    if secret is None:
        raise ValueError(f"Secret {key} does not exist")
    for name in ("tls.crt", "tls.key"):
        if name not in secret.data:
            raise ValueError(f"Secret {key} has no {name}")
    try:
        return key_pair(secret.data["tls.crt"], secret.data["tls.key"])
    except ValueError as error:
        raise ValueError(f"Secret {key}: {error}") from error
