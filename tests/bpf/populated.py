"""A node with every program in force and tables as daemons would fill them, for what looks at a live node.

Pods a (enforced both ways) and b; a may reach the world and REMOTE on 443, but not 192.0.2.66. Policies on trial would
let b reach the world on 443 alone, and deny it REMOTE.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bpf.home import Home, home
from bpf.namespaces import Namespace
from netstack.core.address import ANY, pack
from netstack.kernel import layout as l
from netstack.kernel.attach import TrafficControl

A, B, REMOTE, NODE, OTHER = "10.244.1.3", "10.244.1.4", "10.244.2.3", "192.168.86.21", "192.168.86.22"
MAC, HOST_MAC = bytes.fromhex("020000000103"), bytes.fromhex("0200000001fe")
IDENTITY = {A: (1 << 30) + 1, B: (1 << 30) + 2, REMOTE: (1 << 30) + 3}
ALLOW, DENY = 7, 8
"""Numbers of rules."""


@contextmanager
def populated(folder: Path) -> Iterator[Home]:
    namespace = Namespace()
    try:
        namespace.link("eth0", "lan")
        namespace.link("veth-a", "pod-a")
        namespace.link("veth-b", "pod-b")
        with home(folder, namespace) as made:
            made.load()
            _fill(made)
            yield made
    finally:
        namespace.close()


def _fill(made: Home) -> None:
    with made.namespace.entered(), TrafficControl() as traffic:
        links = {link.name: link.index for link in traffic.links()}
    made.put("config", l.Number(0), l.Config(pack(NODE), pack("10.244.1.0"), 120, ANY, ANY, 0, links["eth0"], 1))
    for address, number, device, enforce in ((A, 11, "veth-a", 3), (B, 12, "veth-b", l.AUDIT | l.AUDIT_EGRESS)):
        endpoint = l.Endpoint(number, links[device], IDENTITY[address], enforce, MAC, HOST_MAC)
        made.flows().add(number)
        made.put("endpoints", l.AddressKey(pack(address)), endpoint)
    for address, identity, owner in (
        (A, IDENTITY[A], NODE),
        (B, IDENTITY[B], NODE),
        (REMOTE, IDENTITY[REMOTE], OTHER),
        (NODE, l.IDENTITY_HOST, NODE),
        (OTHER, l.IDENTITY_REMOTE_NODE, OTHER),
    ):
        made.put("identities", l.PrefixKey(128, pack(address)), l.Identity(identity, 0, pack(owner)))
    made.put("identities", l.PrefixKey(128, pack("192.0.2.66")), l.Identity((2 << 30) + 1, 0, ANY))

    def rule(endpoint: int, direction: int, peer: int, number: int, action: int) -> None:
        made.put("policy", l.PolicyKey(96, endpoint, peer, direction, 6, 443), l.PolicyRule(number, action))

    rule(11, l.DIRECTION_EGRESS, l.IDENTITY_WORLD, ALLOW, l.ACTION_ALLOW)
    rule(11, l.DIRECTION_EGRESS, (2 << 30) + 1, DENY, l.ACTION_DENY)
    rule(11, l.DIRECTION_EGRESS, IDENTITY[REMOTE], ALLOW, l.ACTION_ALLOW)
    rule(12, l.DIRECTION_EGRESS + l.DIRECTION_AUDIT, l.IDENTITY_WORLD, ALLOW, l.ACTION_ALLOW)
    rule(12, l.DIRECTION_EGRESS + l.DIRECTION_AUDIT, IDENTITY[REMOTE], DENY, l.ACTION_DENY)
    made.put("backends", l.Number(1), l.Backend(pack(REMOTE), pack(OTHER), 443, 0))
    made.put("slots", l.Number(16), l.Number(1))
    made.put("services", l.ServiceKey(pack("10.96.0.1"), 443, 6, l.SCOPE_CLUSTER), l.Service(1, 16, 1, 0, 0, 1))
