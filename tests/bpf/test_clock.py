"""A clock that jumps opens nothing and cuts nothing: what lasts is measured by a clock that nobody sets.

The machine's own clock is set for this, so it has to be a guest's (tests/kernel61).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from scapy.layers.inet import IP, TCP

from bpf.packet import CLIENT, POD, POD_ID, POD_IDENTITY, Packet, monotonic_ns
from netstack.core.address import pack
from netstack.core.verdict import Verdict
from netstack.kernel import layout as l

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        "OWN_CLOCK" not in os.environ, reason="sets the clock, so it must be the tests' own: OWN_CLOCK=1"
    ),
]
NAMED, FORGOTTEN, SELECTOR = "203.0.113.9", "203.0.113.10", (3 << 30) + 1


@contextmanager
def jumped(seconds: float) -> Iterator[None]:
    def jump(by: float) -> None:
        time.clock_settime(time.CLOCK_REALTIME, time.clock_gettime(time.CLOCK_REALTIME) + by)

    jump(seconds)
    try:
        yield
    finally:
        jump(-seconds)


def tcp(source: str, destination: str, sport: int, dport: int, flags: str) -> IP:
    return IP(src=source, dst=destination) / TCP(sport=sport, dport=dport, flags=flags)


@pytest.mark.parametrize("seconds", [86400, -86400])
def test_what_is_denied_stays_denied_and_a_known_flow_goes_on(node: Packet, seconds: float) -> None:
    node.endpoint(POD, POD_ID, POD_IDENTITY, enforce=l.ENFORCE_INGRESS | l.ENFORCE_EGRESS)
    node.rule(l.ACTION_ALLOW, l.IDENTITY_WORLD, 443)
    node.rule(l.ACTION_ALLOW, SELECTOR, 80)
    for address, until_s in ((NAMED, 3600), (FORGOTTEN, 0)):
        learned = l.Fqdn.packed({SELECTOR: monotonic_ns(until_s) // 10**9})
        node.put("fqdn", l.FqdnKey(POD_ID, pack(address)), l.Fqdn.unpack(learned))
    assert node.from_pod(tcp(POD, CLIENT, 5000, 443, "S")).verdict is Verdict.FORWARDED
    assert node.to_pod(tcp(CLIENT, POD, 443, 5000, "SA")).verdict is Verdict.REPLY
    node.maps["policy"].delete(
        l.PolicyKey(l.POLICY_BITS_PORT, POD_ID, l.IDENTITY_WORLD, l.DIRECTION_EGRESS, 6, 443).pack()
    )
    with jumped(seconds):
        assert node.from_pod(tcp(POD, CLIENT, 5000, 443, "A")).verdict is Verdict.FORWARDED, "it is known, still"
        assert node.to_pod(tcp(CLIENT, POD, 443, 5000, "A")).verdict is Verdict.REPLY
        assert node.from_pod(tcp(POD, NAMED, 5001, 80, "S")).verdict is Verdict.FORWARDED, "the name lasts"
        assert node.from_pod(tcp(POD, FORGOTTEN, 5001, 80, "S")).verdict is Verdict.DEFAULT_DENY, "that one is over"
        assert node.from_pod(tcp(POD, CLIENT, 5002, 443, "S")).verdict is Verdict.DEFAULT_DENY
        assert node.to_pod(tcp(CLIENT, POD, 5003, 8080, "S")).verdict is Verdict.DEFAULT_DENY
