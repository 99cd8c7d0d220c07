"""What kube-proxy would have the kernel do for the same services, as text for iptables-restore and nft. Pure.

Shaped as kube-proxy writes it (Kubernetes 1.31, pkg/proxy/iptables and pkg/proxy/nftables): services of type
LoadBalancer with externalTrafficPolicy Local and no node ports, two endpoints on this node. Local is the cheaper case
for kube-proxy, because a client's connection is then not masqueraded; netstack never masquerades it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

PODS, SERVICES = "10.244.0.0/16", "10.96.0.0/12"
MASQUERADE = "0x4000"
BATCH = 500
"""Services in one transaction of nft."""


@dataclass(frozen=True, slots=True)
class Balanced:
    """One service port: two addresses, one number, one protocol ("tcp" or "udp")."""

    name: str
    cluster_ip: str
    address: str
    """status.loadBalancer.ingress[0].ip"""
    protocol: str
    port: int


@dataclass(frozen=True, slots=True)
class Server:
    """One endpoint of all services."""

    address: str
    port: int


def _hash(text: str) -> str:
    """kube-proxy's portProtoHash: 16 characters of base32."""
    return base64.b32encode(hashlib.sha256(text.encode()).digest()).decode()[:16]


# ---- iptables mode ----

FILTER = f"""*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" \
-j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" \
-j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark {MASQUERADE}/{MASQUERADE} -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack \
--ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"""

NAT = f"""-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark {MASQUERADE}/{MASQUERADE} -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark {MASQUERADE}
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --or-mark {MASQUERADE}
"""


def iptables(services: Iterable[Balanced], servers: Sequence[Server]) -> str:
    """Input of iptables-restore: the tables filter and nat."""
    chains, jumps, rules = [], [], []
    for one in services:
        _, *own = _chains(one, servers)
        chains += own
        jumps += _jumps(one)
        rules += list(_rules(one, servers))
    lines = [
        "*nat",
        *(f":{name} ACCEPT [0:0]" for name in ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING")),
        *(f":{name} - [0:0]" for name in ("KUBE-SERVICES", "KUBE-POSTROUTING", "KUBE-MARK-MASQ", "KUBE-NODEPORTS")),
        *(f":{name} - [0:0]" for name in chains),
        NAT.rstrip("\n"),
        *jumps,
        '-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this'
        ' chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS',
        *rules,
        "COMMIT",
    ]
    return FILTER + "\n".join(lines) + "\n"


def _chains(one: Balanced, servers: Sequence[Server]) -> list[str]:
    """The service's hash; its chains KUBE-SVC, KUBE-EXT, KUBE-SVL; and a KUBE-SEP for each endpoint."""
    mark = _hash(f"bench/{one.name}:{one.protocol}{one.protocol}")
    seps = [f"KUBE-SEP-{_hash(f'{one.name}{one.protocol}{server.address}:{server.port}')}" for server in servers]
    return [mark, f"KUBE-SVC-{mark}", f"KUBE-EXT-{mark}", f"KUBE-SVL-{mark}", *seps]


def _jumps(one: Balanced) -> list[str]:
    _, service, external, *_ = _chains(one, ())
    match = f"-m {one.protocol} -p {one.protocol}"
    return [
        f'-A KUBE-SERVICES -m comment --comment "bench/{one.name} cluster IP" {match} -d {one.cluster_ip} '
        f"--dport {one.port} -j {service}",
        f'-A KUBE-SERVICES -m comment --comment "bench/{one.name} loadbalancer IP" {match} -d {one.address} '
        f"--dport {one.port} -j {external}",
    ]


def _rules(one: Balanced, servers: Sequence[Server]) -> Iterator[str]:
    _, service, external, local, *endpoints = _chains(one, servers)
    name, match = f"bench/{one.name}", f"-m {one.protocol} -p {one.protocol}"
    yield (
        f'-A {service} -m comment --comment "{name} cluster IP" {match} -d {one.cluster_ip} --dport {one.port} '
        f"! -s {PODS} -j KUBE-MARK-MASQ"
    )
    yield f'-A {external} -m comment --comment "pod traffic for {name} external destinations" -s {PODS} -j {service}'
    for target in ("KUBE-MARK-MASQ", service):
        comment = f'-m comment --comment "LOCAL traffic for {name} external destinations"'
        yield f"-A {external} {comment} -m addrtype --src-type LOCAL -j {target}"
    yield f"-A {external} -j {local}"
    for chain in (service, local):
        for index, (server, endpoint) in enumerate(zip(servers, endpoints, strict=True)):
            left = len(servers) - index
            chance = f"-m statistic --mode random --probability {1 / left:.10f} " if left > 1 else ""
            comment = f'-m comment --comment "{name} -> {server.address}:{server.port}"'
            yield f"-A {chain} {comment} {chance}-j {endpoint}"
    for server, endpoint in zip(servers, endpoints, strict=True):
        yield f'-A {endpoint} -m comment --comment "{name}" -s {server.address} -j KUBE-MARK-MASQ'
        to = f"{server.address}:{server.port}"
        yield f'-A {endpoint} -m comment --comment "{name}" {match} -j DNAT --to-destination {to}'


# ---- nftables mode ----

NFTABLES = """
  set cluster-ips { type ipv4_addr; }
  set nodeport-ips { type ipv4_addr; }
  map no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict; }
  map no-endpoint-nodeports { type inet_proto . inet_service : verdict; }
  map firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
  map service-nodeports { type inet_proto . inet_service : verdict; }
  map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
  chain firewall-check { ip daddr . meta l4proto . th dport vmap @firewall-ips; }
  chain service-endpoints-check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }
  chain nodeport-endpoints-check { ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports; }
  chain cluster-ips-check { ip daddr @cluster-ips reject; ip daddr %(services)s drop; }
  chain mark-for-masquerade { meta mark set meta mark or %(mark)s; }
  chain masquerading {
    meta mark and %(mark)s == 0 return
    meta mark set meta mark xor %(mark)s
    masquerade fully-random
  }
  chain services {
    ip daddr . meta l4proto . th dport vmap @service-ips
    ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
  }
  chain filter-prerouting {
    type filter hook prerouting priority -110;
    ct state new jump firewall-check
  }
  chain filter-input {
    type filter hook input priority -110;
    ct state new jump nodeport-endpoints-check
    ct state new jump service-endpoints-check
  }
  chain filter-forward {
    type filter hook forward priority -110;
    ct state new jump service-endpoints-check
    ct state new jump cluster-ips-check
  }
  chain filter-output {
    type filter hook output priority -110;
    ct state new jump service-endpoints-check
    ct state new jump firewall-check
  }
  chain filter-output-post-dnat { type filter hook output priority -90; ct state new jump cluster-ips-check; }
  chain nat-prerouting { type nat hook prerouting priority -100; jump services; }
  chain nat-output { type nat hook output priority -100; jump services; }
  chain nat-postrouting { type nat hook postrouting priority 100; jump masquerading; }
"""


def nftables(services: Sequence[Balanced], servers: Sequence[Server]) -> Iterator[str]:
    """Inputs of nft -f, to be loaded in this order: the table `ip kube-proxy`, then BATCH services each.

    In one piece, nft needs minutes for 10,000 services (its own search of chains is quadratic).
    """
    yield "table ip kube-proxy {" + NFTABLES % {"services": SERVICES, "mark": MASQUERADE} + "}\n"
    for start in range(0, len(services), BATCH):
        part = services[start : start + BATCH]
        chains = "".join(text for one in part for text in _nft_chains(one, servers))
        yield (
            f"table ip kube-proxy {{\n{chains}}}\n"
            f"add element ip kube-proxy cluster-ips {{ {', '.join(one.cluster_ip for one in part)} }}\n"
            f"add element ip kube-proxy service-ips {{ {', '.join(map(_nft_elements, part))} }}\n"
        )


def _nft_names(one: Balanced) -> tuple[str, str]:
    name = f"{_hash(one.name)[:8]}-bench/{one.name}/{one.protocol}/p{one.port}"
    return f"service-{name}", f"external-{name}"


def _nft_elements(one: Balanced) -> str:
    service, external = _nft_names(one)
    at = f"{one.protocol} . {one.port}"
    return f"{one.cluster_ip} . {at} : goto {service}, {one.address} . {at} : goto {external}"


def _nft_chains(one: Balanced, servers: Sequence[Server]) -> Iterator[str]:
    service, external = _nft_names(one)
    endpoints = [
        f"endpoint-{_hash(one.name + server.address)[:8]}-bench/{one.name}/{one.protocol}/p{one.port}__"
        f"{server.address}/{server.port}"
        for server in servers
    ]
    for server, endpoint in zip(servers, endpoints, strict=True):
        yield f"  chain {endpoint} {{\n    ip saddr {server.address} jump mark-for-masquerade\n"
        yield f"    meta l4proto {one.protocol} dnat to {server.address}:{server.port}\n  }}\n"
    choice = ", ".join(f"{index} : goto {endpoint}" for index, endpoint in enumerate(endpoints))
    pick = f"numgen random mod {len(servers)} vmap {{ {choice} }}"
    yield f"  chain {service} {{\n    ip daddr {one.cluster_ip} {one.protocol} dport {one.port} "
    yield f"ip saddr != {PODS} jump mark-for-masquerade\n    {pick}\n  }}\n"
    yield f"  chain {external} {{\n    ip saddr {PODS} goto {service}\n"
    yield "    fib saddr type local jump mark-for-masquerade\n"
    yield f"    fib saddr type local goto {service}\n    {pick}\n  }}\n"
