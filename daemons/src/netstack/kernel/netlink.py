"""rtnetlink by hand: links, routes, rules and neighbours of one network namespace, as plain data.

The agent and its veth helper need ten kinds of request. pyroute2 has them all and costs 20 MiB and 85 ms at import
(measured: 12.6 to 32.6 MiB); this file costs 0.3 MiB and 3 ms, which a CNI plugin that runs for every pod notices.

A request is a header (nlmsghdr), a family header (rtmsg, ndmsg, ifinfomsg ...) and attributes, each a length, a type
and a payload padded to 4 bytes (RFC 3549 section 2; include/uapi/linux/rtnetlink.h). Every change is acknowledged;
a refusal is an OSError with the kernel's errno. Functions that make something so return True if anything changed.

Addresses are the product's 16 bytes; the wire's 4 bytes of IPv4 exist only in `_wire` and `_address`.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from netstack.core.address import V4_MAPPED, Prefix, is_v4

PROTOCOL = 78
"""Who owns a route or rule: `proto 78` is ours. Free in /etc/iproute2/rt_protos; nothing else is ever deleted."""

MAIN, LOCAL = 254, 255
COMPAT = 252
"""The header's table number of a table above 255, whose own number is in an attribute."""

NEWLINK, DELLINK, GETLINK = 16, 17, 18
NEWADDR, GETADDR = 20, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWNEIGH, DELNEIGH, GETNEIGH = 28, 29, 30
NEWRULE, DELRULE, GETRULE = 32, 33, 34

REQUEST, MULTI, ACK, DUMP = 0x1, 0x2, 0x4, 0x300
REPLACE, EXCL, CREATE = 0x100, 0x200, 0x400
ERROR, DONE = 2, 3
SOL_NETLINK, STRICT = 270, 12

UP = 0x1
ONLINK = 4
PERMANENT = 0x80
USE = 0x1
MANAGED = 0x1
"""Flags of a neighbour: do not touch its state; and, of the second kind: the kernel keeps it known (since 5.16)."""

HEADER = struct.Struct("=IHHII")
ATTRIBUTE = struct.Struct("=HH")
LINK = struct.Struct("=BxHiII")
ADDRESS = struct.Struct("=BBBBI")
ROUTE = struct.Struct("=BBBBBBBBI")
NEIGHBOUR = struct.Struct("=BxHiHBB")

SAME = -1
UNICAST, HERE, UNREACHABLE = 1, 2, 7
"""Kinds of routes (RTN_UNICAST, RTN_LOCAL, RTN_UNREACHABLE): forward, deliver to this host, refuse."""
TAKEN = (HERE, 3, 4)  # RTN_BROADCAST, RTN_ANYCAST
NARROW = tuple(map(Prefix.parse, ("127.0.0.0/8", "::1/128", "fe80::/10")))
SCOPE_UNIVERSE, SCOPE_LINK, SCOPE_HOST = 0, 253, 254

Attributes = dict[int, bytes]


@dataclass(frozen=True, slots=True)
class Link:
    """A network device. `peer` is the ifindex of a veth's other end (in its own namespace), 0 if none; `namespace` is
    that namespace's number in this one, SAME if it is this one."""

    index: int
    name: str
    mac: bytes
    mtu: int
    up: bool
    kind: str
    peer: int
    namespace: int
    alias: str


@dataclass(frozen=True, slots=True, order=True)
class Route:
    """One route. `gateway` b"" = directly on the link; an UNREACHABLE one has no `ifindex`."""

    destination: Prefix
    ifindex: int = 0
    gateway: bytes = b""
    table: int = MAIN
    onlink: bool = False
    kind: int = UNICAST
    source: bytes = b""


@dataclass(frozen=True, slots=True, order=True)
class Rule:
    """`ip rule`: packets whose mark matches are looked up in `table`. Lower priority numbers are asked first."""

    priority: int
    mark: int
    mask: int
    table: int
    v6: bool = False


class Netlink:
    """A route socket. It stays in the network namespace in which it was opened."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._socket.setsockopt(SOL_NETLINK, STRICT, 1)  # else a dump ignores for what namespace it is asked
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    # links -------------------------------------------------------------------------------------------------------

    def links(self) -> list[Link]:
        return [_link(body) for body in self._dump(GETLINK, LINK.pack(0, 0, 0, 0, 0))]

    def link(self, name: str) -> Link | None:
        """The device with this name, None if there is none."""
        request = LINK.pack(0, 0, 0, 0, 0) + pack_attribute(3, name.encode() + b"\0")
        try:
            (answer,) = self._ask(GETLINK, 0, request)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return _link(answer)

    def create_veth(self, name: str, peer: str, peer_netns: int, mtu: int) -> None:
        """A pair, both ends down: `name` here, `peer` in the namespace behind the descriptor `peer_netns`.

        Their MACs are given: udev leaves such a device alone, but gives one with a MAC of the kernel's own choice
        another one soon after (MACAddressPolicy=persistent in systemd's 99-default.link), when pods know the first.
        """
        size = pack_attribute(4, struct.pack("=I", mtu))
        far = LINK.pack(0, 0, 0, 0, 0) + pack_attribute(3, peer.encode() + b"\0") + size
        far += pack_attribute(28, struct.pack("=I", peer_netns)) + pack_attribute(1, _some_mac())
        info = pack_attribute(1, b"veth") + pack_attribute(2, pack_attribute(1, far))
        near = LINK.pack(0, 0, 0, 0, 0) + pack_attribute(3, name.encode() + b"\0") + size
        near += pack_attribute(1, _some_mac()) + pack_attribute(18, info)
        self._ask(NEWLINK, ACK | CREATE | EXCL, near)

    def set_up(self, index: int, up: bool = True) -> None:
        self._ask(NEWLINK, ACK, LINK.pack(0, 0, index, UP if up else 0, UP))

    def set_alias(self, index: int, text: str) -> None:
        """What `ip link` shows beside the device, at most 255 bytes; "" takes it away."""
        self._ask(NEWLINK, ACK, LINK.pack(0, 0, index, 0, 0) + pack_attribute(20, text.encode()[:255]))

    def set_no_link_local(self, index: int) -> None:
        """Have the kernel give the device no IPv6 address of its own when it goes up (IN6_ADDR_GEN_MODE_NONE)."""
        inet6 = pack_attribute(socket.AF_INET6, pack_attribute(8, b"\1"))
        self._ask(NEWLINK, ACK, LINK.pack(0, 0, index, 0, 0) + pack_attribute(26, inet6))

    def delete_link(self, name: str) -> bool:
        link = self.link(name)
        return link is not None and self._gone(DELLINK, LINK.pack(0, 0, link.index, 0, 0))

    # addresses ---------------------------------------------------------------------------------------------------

    def addresses(self, index: int, namespace: int = SAME) -> list[bytes]:
        """The addresses on one device, in the kernel's order (primary first), 16 bytes each. `namespace`: where the
        device is, as Link.namespace says; nobody has to go there (it takes CAP_NET_ADMIN)."""
        target = pack_attribute(10, struct.pack("=i", namespace)) if namespace != SAME else b""
        found = []
        for body in self._dump(GETADDR, ADDRESS.pack(0, 0, 0, 0, 0) + target):
            _, _, _, _, device = ADDRESS.unpack_from(body)
            attributes = read_attributes(body[ADDRESS.size :])
            if device == index:
                found.append(_address(attributes.get(2) or attributes[1]))
        return found

    def addresses_behind(self, link: Link) -> list[bytes]:
        """Those of the other end of a pair; none if it is in this namespace, or has gone with its own."""
        if link.namespace == SAME:
            return []
        try:
            return self.addresses(link.peer, link.namespace)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EACCES):  # gone; that of a host in which this one is a container
                return []
            raise

    def put_address(self, index: int, address: bytes) -> None:
        """By itself, without a network around it. One that is there already is left as it is."""
        family, wire = _wire(address)
        body = ADDRESS.pack(family, 8 * len(wire), 0, 0, index)
        self._ask(NEWADDR, ACK | CREATE | REPLACE, body + pack_attribute(2, wire) + pack_attribute(1, wire))

    def taken(self) -> list[bytes]:
        """Every single address at which the kernel takes packets for this host, by whatever device: addresses and
        broadcasts. Not those that mean something on one link or inside the host alone."""
        found = set()
        for body in self._dump(GETROUTE, ROUTE.pack(0, 0, 0, 0, LOCAL, 0, 0, 0, 0)):
            family, bits, _, _, table, _, _, kind, _ = ROUTE.unpack_from(body)
            if table == LOCAL and kind in TAKEN and bits == (32 if family == socket.AF_INET else 128):
                found.add(_address(read_attributes(body[ROUTE.size :])[1]))
        return sorted(address for address in found if not any(address in narrow for narrow in NARROW))

    def networks(self, index: int) -> list[Prefix]:
        """What is reached by this device without a router. Not what means something on one link alone."""
        of_device = ROUTE.pack(0, 0, 0, 0, MAIN, 0, 0, UNICAST, 0) + pack_attribute(4, struct.pack("=I", index))
        found = set()
        for body in self._dump(GETROUTE, of_device):
            family, bits, *_ = ROUTE.unpack_from(body)
            attributes = read_attributes(body[ROUTE.size :])
            if 1 in attributes and 5 not in attributes:
                found.add(Prefix(_address(attributes[1]), bits + (96 if family == socket.AF_INET else 0)))
        return sorted(prefix for prefix in found if not any(prefix.address in narrow for narrow in NARROW))

    # routes and rules --------------------------------------------------------------------------------------------

    def routes(self, protocol: int = PROTOCOL) -> set[Route]:
        """The routes of one owner, of every table."""
        found = set()
        for body in self._dump(GETROUTE, ROUTE.pack(0, 0, 0, 0, 0, protocol, 0, 0, 0)):
            family, bits, _, _, table, owner, _, kind, flags = ROUTE.unpack_from(body)
            if owner != protocol or kind not in (UNICAST, HERE, UNREACHABLE):
                continue
            attributes = read_attributes(body[ROUTE.size :])
            any_address = V4_MAPPED + bytes(4) if family == socket.AF_INET else bytes(16)
            base = _address(attributes[1]) if 1 in attributes else any_address
            found.add(
                Route(
                    destination=Prefix(base, bits + (96 if family == socket.AF_INET else 0)),
                    ifindex=read_integer(attributes[4]) if 4 in attributes and kind != UNREACHABLE else 0,
                    gateway=_address(attributes[5]) if 5 in attributes else b"",
                    table=read_integer(attributes[15]) if 15 in attributes else table,
                    onlink=bool(flags & ONLINK),
                    kind=kind,
                    source=_address(attributes[7]) if 7 in attributes else b"",
                )
            )
        return found

    def put_route(self, route: Route) -> None:
        """Make the route be there; one with the same destination in the same table is replaced in one step."""
        self._ask(NEWROUTE, ACK | CREATE | REPLACE, _route(route))

    def delete_route(self, route: Route) -> bool:
        return self._gone(DELROUTE, _route(route))

    def rules(self) -> set[Rule]:
        """Our own rules."""
        found = set()
        for body in self._dump(GETRULE, ROUTE.pack(socket.AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0, 0)):
            family, *_ = ROUTE.unpack_from(body)
            attributes = read_attributes(body[ROUTE.size :])
            if attributes.get(21) == bytes([PROTOCOL]):
                priority, mark, mask, table = (read_integer(attributes.get(kind, bytes(4))) for kind in (6, 10, 16, 15))
                found.add(Rule(priority, mark, mask, table, v6=family == socket.AF_INET6))
        return found

    def put_rule(self, rule: Rule) -> bool:
        try:
            self._ask(NEWRULE, ACK | CREATE | EXCL, _rule(rule))
        except FileExistsError:
            return False
        return True

    def delete_rule(self, rule: Rule) -> bool:
        return self._gone(DELRULE, _rule(rule))

    def put_neighbour(self, index: int, address: bytes, mac: bytes) -> None:
        """A permanent neighbour entry: nobody is asked, and no answer on the wire can change it."""
        family, wire = _wire(address)
        body = NEIGHBOUR.pack(family, 0, index, PERMANENT, 0, 0)
        self._ask(NEWNEIGH, ACK | CREATE | REPLACE, body + pack_attribute(1, wire) + pack_attribute(2, mac))

    def neighbours(self, index: int) -> dict[bytes, bytes]:
        """Address -> MAC of the neighbours by a device whose MAC is known."""
        return {_address(found[1]): found[2] for found in self._neighbours(index) if 2 in found}

    def kept_neighbours(self, index: int) -> set[bytes]:
        """Addresses of a device that `keep_neighbour` named."""
        return {
            _address(found[1])
            for found in self._neighbours(index)
            if found.get(12) == bytes([PROTOCOL]) and read_integer(found.get(15, b"")) & MANAGED
        }

    def _neighbours(self, index: int) -> list[Attributes]:
        bodies = self._dump(GETNEIGH, NEIGHBOUR.pack(socket.AF_UNSPEC, 0, 0, 0, 0, 0))
        here = (body for body in bodies if NEIGHBOUR.unpack_from(body)[2] == index)
        return [read_attributes(body[NEIGHBOUR.size :]) for body in here]

    def keep_neighbour(self, index: int, address: bytes) -> None:
        """Have the kernel find out this neighbour's MAC now, and again before it grows old, whether or not anything is
        sent to it."""
        family, wire = _wire(address)
        body = NEIGHBOUR.pack(family, 0, index, 0, USE, 0) + pack_attribute(1, wire)
        body += pack_attribute(12, bytes([PROTOCOL])) + pack_attribute(15, struct.pack("=I", MANAGED))
        self._ask(NEWNEIGH, ACK | CREATE | REPLACE, body)

    def forget_neighbour(self, index: int, address: bytes) -> bool:
        family, wire = _wire(address)
        return self._gone(DELNEIGH, NEIGHBOUR.pack(family, 0, index, 0, 0, 0) + pack_attribute(1, wire))

    # the wire ----------------------------------------------------------------------------------------------------

    def _gone(self, kind: int, body: bytes) -> bool:
        try:
            self._ask(kind, ACK, body)
        except OSError as error:
            if error.errno in (errno.ESRCH, errno.ENOENT, errno.ENODEV):
                return False
            raise
        return True

    def _ask(self, kind: int, flags: int, body: bytes, after: tuple[int, int, bytes] | None = None) -> list[bytes]:
        """Send one request; the bodies of its answer. Without ACK in `flags` one message is the whole answer.

        `after`: another request (kind, flags, body), which the kernel does first, in the same system call. What becomes
        of it shows in the answer to this one.
        """
        self._sequence += 1
        first = _request(*after, 0) if after else b""
        self._socket.send(first + _request(kind, flags, body, self._sequence))
        answers = []
        for answer, more, payload in self._messages():
            if answer == ERROR:
                (code,) = struct.unpack_from("=i", payload)
                if code:
                    raise OSError(-code, os.strerror(-code))
                break
            if answer == DONE:
                break
            answers.append(payload)
            if not more and not flags & ACK:
                break
        return answers

    def _dump(self, kind: int, body: bytes) -> list[bytes]:
        return self._ask(kind, DUMP, body)

    def _messages(self) -> Iterator[tuple[int, bool, bytes]]:
        """(type, whether more follow, body) of every message that answers the last request."""
        while True:
            data = self._socket.recv(1 << 18)
            offset = 0
            while offset < len(data):
                length, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
                if sequence == self._sequence:
                    yield kind, bool(flags & MULTI), data[offset + HEADER.size : offset + length]
                offset += (length + 3) & ~3


def _request(kind: int, flags: int, body: bytes, sequence: int) -> bytes:
    """A message. Bodies are of whole words: they end with a header or an attribute."""
    return HEADER.pack(HEADER.size + len(body), kind, REQUEST | flags, sequence, 0) + body


def pack_attribute(kind: int, payload: bytes) -> bytes:
    padding = -len(payload) % 4
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(payload), kind) + payload + bytes(padding)


def read_attributes(data: bytes) -> Attributes:
    """Type -> payload. The nested and byte-order flags of the type are cleared."""
    found: Attributes = {}
    offset = 0
    while offset + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, offset)
        found[kind & 0x3FFF] = data[offset + ATTRIBUTE.size : offset + length]
        offset += (max(length, ATTRIBUTE.size) + 3) & ~3
    return found


def read_integer(payload: bytes) -> int:
    return int.from_bytes(payload, sys.byteorder)


def _some_mac() -> bytes:
    """Locally administered, of one device (IEEE 802-2014, section 8.4)."""
    first, *others = os.urandom(6)
    return bytes([first & 0xFC | 0x02, *others])


def _wire(address: bytes) -> tuple[int, bytes]:
    return (socket.AF_INET, address[12:]) if is_v4(address) else (socket.AF_INET6, address)


def _address(wire: bytes) -> bytes:
    return V4_MAPPED + wire if len(wire) == 4 else wire


def _link(body: bytes) -> Link:
    _, _, index, flags, _ = LINK.unpack_from(body)
    attributes = read_attributes(body[LINK.size :])
    info = read_attributes(attributes.get(18, b""))
    return Link(
        index=index,
        name=attributes[3].rstrip(b"\0").decode(),
        mac=attributes.get(1, b""),
        mtu=read_integer(attributes.get(4, b"")),
        up=bool(flags & UP),
        kind=info.get(1, b"").rstrip(b"\0").decode(),
        peer=read_integer(attributes.get(5, b"")),
        namespace=struct.unpack("=i", attributes[37])[0] if 37 in attributes else SAME,
        alias=attributes.get(20, b"").rstrip(b"\0").decode(errors="replace"),
    )


def _route(route: Route) -> bytes:
    family, wire = _wire(route.destination.address)
    bits = route.destination.bits - (96 if family == socket.AF_INET else 0)
    direct = route.kind == UNICAST and not route.gateway
    scope = SCOPE_HOST if route.kind == HERE else SCOPE_LINK if direct else SCOPE_UNIVERSE
    flags = ONLINK if route.onlink else 0
    table = route.table if route.table < 256 else COMPAT
    body = ROUTE.pack(family, bits, 0, 0, table, PROTOCOL, scope, route.kind, flags)
    body += pack_attribute(15, struct.pack("=I", route.table))
    if route.ifindex:
        body += pack_attribute(4, struct.pack("=I", route.ifindex))
    if bits:
        body += pack_attribute(1, wire)
    if route.gateway:
        body += pack_attribute(5, _wire(route.gateway)[1])
    if route.source:
        body += pack_attribute(7, _wire(route.source)[1])
    return body


def _rule(rule: Rule) -> bytes:
    family = socket.AF_INET6 if rule.v6 else socket.AF_INET
    body = ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 1, 0)  # 1 = FR_ACT_TO_TBL
    body += pack_attribute(6, struct.pack("=I", rule.priority)) + pack_attribute(10, struct.pack("=I", rule.mark))
    body += pack_attribute(16, struct.pack("=I", rule.mask)) + pack_attribute(15, struct.pack("=I", rule.table))
    return body + pack_attribute(21, bytes([PROTOCOL]))
