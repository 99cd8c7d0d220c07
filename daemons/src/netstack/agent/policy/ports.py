"""Ports: as policies write them, and as prefixes, which is what a longest-prefix key can hold."""

from __future__ import annotations

import re
from collections.abc import Iterator

from netstack.agent.policy.rules import PROTOCOLS, Port
from netstack.core.protocol import ICMP, ICMPV6
from netstack.source.fields import Fields

NAME_LENGTH = 15
NAME = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9]+(-[A-Za-z0-9]+)*")
"""RFC 6335 section 5.1: a port's name has 1 to 15 characters, among them a letter; `8000-9000` is none."""

ICMP_TYPES = {
    "IPv4": {
        "EchoReply": 0,
        "DestinationUnreachable": 3,
        "EchoRequest": 8,
        "TimeExceeded": 11,
        "ParameterProblem": 12,
    },
    "IPv6": {
        "DestinationUnreachable": 1,
        "PacketTooBig": 2,
        "TimeExceeded": 3,
        "ParameterProblem": 4,
        "EchoRequest": 128,
        "EchoReply": 129,
    },
}
"""The messages that an endpoint may send or receive, by Cilium's names for them. All others are dropped."""


def read_port(fields: Fields, default_protocol: str, *, zero: bool) -> Port:
    """`{port, endPort, protocol}`; BadObject names what is wrong. `zero`: port 0 may stand for every port."""
    protocol = PROTOCOLS[fields.string("protocol", default_protocol, choices=tuple(PROTOCOLS))]
    raw = fields.raw("port")
    last = fields.integer("endPort", 0, low=0, high=65535)
    fields.close()
    if raw is None and not last:
        return Port(protocol)
    if isinstance(raw, bool) or not isinstance(raw, int | str) or raw == "":
        fields.fail("port", f"must be a port number or name, not {raw!r}")
    if isinstance(raw, str) and not _is_number(raw):
        if last:
            fields.fail("endPort", "cannot be given with a port's name")
        if len(raw) > NAME_LENGTH:
            fields.fail("port", f"{raw!r} is longer than a port's name may be ({NAME_LENGTH})")
        if not NAME.fullmatch(raw):
            fields.fail("port", f"{raw!r} is neither a port's number nor its name; a range's end is endPort")
        return Port(protocol, name=raw.lower())
    first = int(raw)
    if not (0 if zero else 1) <= first <= 65535:
        fields.fail("port", f"must be from 1 to 65535, not {first}")
    if last and not 0 < first <= last:
        fields.fail("endPort", f"{last} is below port {first}")
    return Port(protocol, first, last or first)


def read_icmp(fields: Fields, *, denies: bool) -> Port | None:
    """`{family, type}` (cilium pkg/policy/api: ICMPField). None: messages that start no flow but pass with the one that
    they answer or report about; these need no rule, and cannot be denied by one."""
    family = fields.string("family", "IPv4", choices=("IPv4", "IPv6"))
    raw = fields.raw("type")
    fields.close()
    names = ICMP_TYPES[family]
    kind = names.get(raw) if isinstance(raw, str) and not _is_number(raw) else raw
    if isinstance(kind, str):
        kind = int(kind)
    if type(kind) is not int or kind not in names.values():
        known = ", ".join(f"{name} ({number})" for name, number in names.items())
        fields.fail("type", f"of {family} must be one of {known}, not {raw!r}")
    if kind == names["EchoRequest"]:
        return Port(ICMP if family == "IPv4" else ICMPV6, kind, kind)
    if denies:
        fields.fail("type", f"{raw!r} starts no flow: it passes with the flow to which it belongs, or not at all")
    return None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()  # "²" is a digit too, and no number


def prefixes(first: int, last: int) -> Iterator[tuple[int, int]]:
    """The fewest (port, length of its prefix in 16 bits) that cover first..last exactly."""
    while first <= last:
        size = first & -first or 1 << 16  # the largest aligned block that begins here ...
        while first + size - 1 > last:  # ... and does not end after `last`
            size >>= 1
        yield first, 17 - size.bit_length()
        first += size
