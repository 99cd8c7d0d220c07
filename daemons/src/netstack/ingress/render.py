"""What HAProxy starts from, as texts: haproxy.cfg, pools.cfg, routes.map and the crt-list.

No string of a user's object ever stands in a configuration file: haproxy.cfg depends on the settings alone,
pools.cfg holds addresses and ports. Hosts and paths, checked by routes.py, are keys of routes.map.

One look-up finds the route. Its key is host, path and "/?"; map_beg takes the longest entry that the key begins with:

    ha.home.lab/?          never in the map: a prefix of everything is written ha.home.lab/
    ha.home.lab/foo/       Prefix /foo: the key of /foo is ha.home.lab/foo/?, of /foobar ha.home.lab/foobar/?
    ha.home.lab/foo/?      Exact /foo: no path of a request contains "?", so nothing longer begins like this
    *.home.lab/            a wildcard host, asked for when the host itself is unknown
    _/                     every other host

An entry's value is all that a request needs, so a route changes as a whole:

    pool | r = redirect to https | largest body, bytes | read timeout, ms, 0 = default | t = host has TLS | route id
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from netstack.ingress import certificates
from netstack.ingress.routes import Certificate, Route, Routing, Target
from netstack.ingress.settings import IngressSettings
from netstack.ingress.slots import Slots

NO_LIMIT = 1 << 53
CATCH_ALL = "_"
REASONS = {400: "Bad Request", 404: "Not Found", 413: "Payload Too Large", 503: "Service Temporarily Unavailable"}
EMPTY_SLOT = "127.0.0.1:1 disabled"
"""Nothing listens there: should a slot without an endpoint ever be asked, the connection is refused at once."""


PLAIN = """regsub('"%(?!2[146-9A-C]|3[ABD]|40)"',%25,g),url_dec"""
"""Decodes the rest of what stands in a path as it is (RFC 3986: sub-delims, `:` and `@`), and nothing else: the other
percent signs are encoded once more for it. Backends, as nginx, do not tell /%40x from /@x."""


@dataclass(frozen=True, slots=True)
class State:
    """What a running HAProxy holds, and what it should: the two sides of a difference."""

    config: str
    """Hash of haproxy.cfg; the process shows it as its description."""
    pools: tuple[tuple[Target | None, ...], ...]
    routes: Mapping[str, str]
    """Key -> value of routes.map."""
    certificates: Mapping[str, tuple[str, ...]]
    """crt-list: file -> hosts."""
    default_certificate: str
    """SHA-1 of its leaf in upper-case hex."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The state to reach, and the key pairs by file name that it takes."""

    state: State
    pems: Mapping[str, str]
    default_pem: str


def wanted(routing: Routing, slots: Slots, default: certificates.KeyPair, settings: IngressSettings) -> Wanted:
    pems, hosts = {}, {}
    for certificate in routing.certificates:
        path = str(certificate_path(certificate, settings))
        pems[path], hosts[path] = certificate.pair.pem, certificate.hosts
    state = State(
        config=config_hash(settings),
        pools=tuple(pool.slots for pool in slots.pools),
        routes=route_entries(routing.routes, slots.pool_of()),
        certificates=hosts,
        default_certificate=default.fingerprint,
    )
    return Wanted(state, pems, default.pem)


def certificate_path(certificate: Certificate, settings: IngressSettings) -> Path:
    name = certificates.file_name(certificate.owner, certificate.pair.pem, certificate.hosts)
    return settings.state / "certs" / name


def route_entries(routes: Iterable[Route], pools: Mapping[str, int]) -> dict[str, str]:
    return {route_key(route): _route_value(route, pools) for route in routes}


def route_key(route: Route) -> str:
    return f"{route.host or CATCH_ALL}{route.path}/{'?' if route.exact else ''}"


def _route_value(route: Route, pools: Mapping[str, int]) -> str:
    fields = (
        str(route.status) if route.status else f"p{pools[route.backend]}",
        "r" if route.redirect else "-",
        str(route.body_size or NO_LIMIT),
        str(route.read_timeout_ms),
        "t" if route.tls else "-",
        route.id,
    )
    return "|".join(fields)


def routes_map(entries: Mapping[str, str]) -> str:
    return "".join(f"{key} {value}\n" for key, value in sorted(entries.items()))


def crt_list(hosts: Mapping[str, tuple[str, ...]]) -> str:
    return "".join(f"{crt_list_line(path, names)}\n" for path, names in sorted(hosts.items()))


def crt_list_line(path: str, hosts: Iterable[str]) -> str:
    return f"{path} {' '.join(hosts)}"


def default_crt_list(settings: IngressSettings) -> str:
    """The default certificate stands for no name: by its own ones it would go before the certificate that an Ingress
    brings for the same name. A name without a certificate gets it all the same, as it is the first of its bind."""
    return crt_list({str(settings.state / "default.pem"): ("!*",)})


def pools_cfg(pools: Iterable[tuple[Target | None, ...]]) -> str:
    lines = ["# Server slots of the pools, with the endpoints that they held last. Written by netstack-ingress."]
    for number, slots in enumerate(pools):
        lines.append(f"\nbackend p{number} from pool")
        lines += [f"    server s{index} {slot or EMPTY_SLOT}" for index, slot in enumerate(slots)]
    return "\n".join(lines) + "\n"


def page(status: int) -> str:
    """An error page as nginx writes it."""
    title = f"{status} {REASONS[status]}"
    return (
        f"<html>\\r\\n<head><title>{title}</title></head>\\r\\n<body>\\r\\n"
        f"<center><h1>{title}</h1></center>\\r\\n</body>\\r\\n</html>\\r\\n"
    )


def _refuse(status: int) -> str:
    return f'http-request return status {status} content-type text/html string "{page(status)}"'


def config_hash(settings: IngressSettings) -> str:
    return hashlib.sha256(_config(settings, "").encode()).hexdigest()[:16]


def haproxy_cfg(settings: IngressSettings) -> str:
    """The static part: it changes with the settings and with this file, and with nothing else."""
    return _config(settings, config_hash(settings))


def _config(settings: IngressSettings, digest: str) -> str:
    state, routes = settings.state, settings.state / "routes.map"
    hsts = f'http-after-response set-header Strict-Transport-Security "max-age={settings.hsts_s}; includeSubDomains"'
    sections = [
        _global(settings, digest),
        _defaults(settings),
        "frontend web",
        *[f"    bind {_listen(address, settings.http_port)}" for address in settings.addresses],
        *[
            f"    bind {_listen(address, settings.https_port)} ssl crt-list {state}/default-crt-list"
            f" crt-list {state}/crt-list alpn h2,http/1.1"
            for address in settings.addresses
        ],
        _frontend(routes),
        f"    {hsts} if {{ ssl_fc }} {{ var(txn.tls) -m str t }}" if settings.hsts_s else "",
        _pool(settings),
    ]
    return "\n".join(section for section in sections if section)


def _listen(address: str, port: int) -> str:
    return f"[{address}]:{port} v6only" if ":" in address else f"{address}:{port}"


def _ms(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"


def _global(settings: IngressSettings, digest: str) -> str:
    return f"""\
# Written by netstack-ingress. Depends on its settings only; what changes at run time is in the files that it names.
global
    description netstack {digest}
    log stdout format raw daemon info
    stats socket {settings.socket} mode 660 level admin
    stats timeout 1h
    nbthread {settings.threads}
    maxconn {settings.max_connections}
    ssl-default-bind-options ssl-min-ver TLSv1.2
    # for normalize-uri below
    expose-experimental-directives
"""


def _defaults(settings: IngressSettings) -> str:
    return f"""\
defaults
    mode http
    log global
    option dontlognull
    {"no option" if settings.access_log else "option"} dontlog-normal
    timeout client {_ms(settings.client_timeout_s)}
    timeout http-request {_ms(settings.client_timeout_s)}
    timeout http-keep-alive {_ms(settings.keepalive_timeout_s)}
    timeout connect {_ms(settings.connect_timeout_s)}
    timeout server {_ms(settings.read_timeout_s)}
    timeout tunnel {_ms(settings.tunnel_timeout_s)}
    timeout client-fin 30s
    timeout server-fin 30s
"""


def _frontend(routes: Path) -> str:
    """How a request finds its route. Every value of a user comes out of the map."""
    look_up = f"concat(,txn.path,/?),map_beg({routes})"
    return f"""\
    unique-id-format %[uuid()]
    log-format "%ci:%cp %[var(txn.id)] %{{+Q}}[var(txn.host)] %{{+Q}}r %ST %B %b/%s %TR/%Tw/%Tc/%Tr/%Ta %tsc %ID"

    # A host is no path: "a/b" with the path /c must not look like a with the path /b/c.
    acl odd_host req.fhdr(host) -m sub / ?
    {_refuse(400)} if odd_host
    http-request set-var(txn.host) req.fhdr(host),host_only,rtrim(.)

    # Routes are matched on the path in normal form, as nginx does; the backend gets the path as it was sent.
    # "strict" also because 2.6.12 takes "percent-decode-unreserved if ..." for path-merge-slashes.
    acl odd path -m sub // /. %
    http-request set-var(txn.pathq) pathq if odd
    acl odd_path var(txn.pathq) -m found
    http-request normalize-uri percent-decode-unreserved strict if odd_path
    http-request normalize-uri percent-to-uppercase strict if odd_path
    acl hidden_dots path -m sub ..%2F %2F..
    {_refuse(400)} if odd_path hidden_dots
    http-request normalize-uri path-merge-slashes if odd_path
    http-request normalize-uri path-strip-dot if odd_path
    http-request normalize-uri path-strip-dotdot full if odd_path
    http-request set-var(txn.path) path
    http-request set-var(txn.path) path,regsub(%2F,/,g),regsub(/+,/,g),{PLAIN} if odd_path
    http-request set-pathq %[var(txn.pathq)] if odd_path

    http-request set-var(txn.route) var(txn.host),{look_up}
    acl found var(txn.route) -m found
    http-request set-var(txn.route) var(txn.host),regsub(^[^.]+,*),{look_up} unless found
    http-request set-var(txn.route) str({CATCH_ALL}),{look_up} unless found
    http-request set-var(txn.pool) var(txn.route),field(1,|)
    http-request set-var(txn.read_ms) var(txn.route),field(4,|),add(0)
    http-request set-var(txn.tls) var(txn.route),field(5,|)
    http-request set-var(txn.id) var(txn.route),field(6,|)

    acl acme var(txn.path) -m beg /.well-known/acme-challenge/
    acl to_https var(txn.route),field(2,|) -m str r
    http-request redirect location https://%[var(txn.host)]%[pathq] code 308 if to_https !{{ ssl_fc }} !acme
    acl no_route var(txn.pool) -m str 404
    {_refuse(404)} if no_route
    {_refuse(404)} unless found
    acl no_endpoint var(txn.pool) -m str 503
    {_refuse(503)} if no_endpoint
    http-request set-var(txn.size) req.body_size
    acl too_large var(txn.route),field(3,|),sub(txn.size) -m int lt 0
    {_refuse(413)} if too_large

    # The headers that ingress-nginx sends to backends; a client's own are not believed. Nor are those that nginx drops:
    # X_Forwarded_For is X-Forwarded-For to a WSGI or CGI program.
    http-request del-header [^A-Za-z0-9-] -m reg
    http-request del-header X-Original-Forwarded-For
    acl forwarded req.fhdr(X-Forwarded-For) -m found
    http-request set-header X-Original-Forwarded-For %[req.fhdr(X-Forwarded-For)] if forwarded
    http-request set-header X-Forwarded-For %[src]
    http-request set-header X-Real-IP %[src]
    http-request set-header X-Forwarded-Host %[req.fhdr(host)]
    http-request set-header X-Forwarded-Port %[dst_port]
    http-request set-var(txn.scheme) str(http)
    http-request set-var(txn.scheme) str(https) if {{ ssl_fc }}
    http-request set-header X-Forwarded-Proto %[var(txn.scheme)]
    http-request set-header X-Forwarded-Scheme %[var(txn.scheme)]
    http-request set-header X-Scheme %[var(txn.scheme)]
    http-request set-header X-Request-ID %[unique-id] unless {{ req.fhdr(X-Request-ID) -m found }}
    # httpoxy: a CGI program would take it for its own proxy setting.
    http-request del-header Proxy

    use_backend %[var(txn.pool)]
    default_backend gone"""


def _pool(settings: IngressSettings) -> str:
    """What all pools share. A connection that fails goes to another endpoint at once; an answer that never began
    only if the method is safe to repeat: nginx's proxy_next_upstream "error timeout", three tries.

    Health is learned from requests: after as many failed connections in a row as one request makes, an endpoint is
    left out until it takes one from a check, tried every second. One that works is not checked, but for once an hour.
    """
    return f"""
defaults pool
    mode http
    log global
    timeout connect {_ms(settings.connect_timeout_s)}
    timeout server {_ms(settings.read_timeout_s)}
    timeout tunnel {_ms(settings.tunnel_timeout_s)}
    timeout server-fin 30s
    timeout queue 5s
    balance roundrobin
    retries 3
    option redispatch 1
    default-server check inter 1h fastinter 1s downinter 1s rise 1 fall 1
    default-server observe layer4 error-limit 4 on-error mark-down
    retry-on conn-failure empty-response
    http-request disable-l7-retry unless METH_GET
    http-request set-timeout server var(txn.read_ms) if {{ var(txn.read_ms) -m int gt 0 }}
    http-request set-timeout tunnel var(txn.read_ms) if {{ var(txn.read_ms) -m int gt 0 }}

backend gone from pool
    {_refuse(503)}
"""
