"""Protocols by their numbers (IANA), under the names that Kubernetes, Cilium and people call them by."""

from __future__ import annotations

ICMP, TCP, UDP, ICMPV6, SCTP = 1, 6, 17, 58, 132
PROTOCOLS = {"TCP": TCP, "UDP": UDP, "SCTP": SCTP, "ICMP": ICMP, "ICMPv6": ICMPV6}
PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}
