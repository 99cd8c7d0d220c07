"""Transparent sockets: they receive what was sent to other addresses, and answer from those.

The kernel program (bpf_sk_assign) gives them packets for any DNS server. ip(7): the address that the pod asked comes
with each datagram as IP_ORIGDSTADDR, and IP_PKTINFO sets the source of the answer, which IP_TRANSPARENT lets be no
address of this node. Its port is the socket's own; a server asked at another port answers through a socket made for
that one datagram. An accepted TCP connection has the asked address and port as its own, and the listener's mark, by
which the program tells it from one that another server of this node has accepted at that address. SO_REUSEPORT stays
off: before Linux 6.6 bpf_sk_assign refuses sockets that have it.

systemd keeps the sockets (netstack-dns.socket), so that questions which arrive during a restart wait in them. It gives
them the mark as well: what a listener has accepted before it had one is reset.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from netstack.core.address import V4_MAPPED, is_v4, unpack
from netstack.dns.message import MAX_QUERY
from netstack.dns.session import Client, Transport
from netstack.kernel.layout import PROXY_OWN_MARK

PORT = 53
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_FIRST_INHERITED = 3  # sd_listen_fds(3)
_RESET = struct.pack("ii", 1, 0)  # struct linger: on, no seconds
DATAGRAMS_WAITING = 4096
"""Questions that the UDP socket holds while nobody reads it, in a restart say. The default of the kernel, some 270, is
fewer than one pod may ask at once."""
CONNECTIONS_WAITING = 4096
"""... and the TCP socket of connections. The default of asyncio, 100, is fewer than one pod may begin at once."""
_DATAGRAM = 1024
"""Bytes of memory that the kernel counts for a short datagram (768) and what its packet takes beside."""


@dataclass(frozen=True, slots=True)
class _Family:
    """What an address family calls the same things, and how it lays them out; linux/in.h and linux/in6.h."""

    level: int
    transparent: int
    original: int
    pktinfo: int
    sockaddr: struct.Struct
    """Family, port, address."""
    source: struct.Struct
    """in_pktinfo (ifindex, ipi_spec_dst, ipi_addr), in6_pktinfo (address, ifindex): the address from which to send."""
    prefix: bytes
    """Of its addresses in 16 bytes."""


_FAMILIES = {
    socket.AF_INET: _Family(
        socket.IPPROTO_IP, 19, 20, 8, struct.Struct("=H2s4s8x"), struct.Struct("=4x4s4x"), V4_MAPPED
    ),
    socket.AF_INET6: _Family(
        socket.IPPROTO_IPV6, 75, 74, 50, struct.Struct("=H2s4x16s4x"), struct.Struct("=16s4x"), b""
    ),
}

_ORIGINAL = {(names.level, names.original): names for names in _FAMILIES.values()}
_ANCILLARY = socket.CMSG_SPACE(28)

Ancillary = Iterable[tuple[int, int, bytes]]

_LIBC = ctypes.CDLL(None, use_errno=True)
_CMSGHDR = struct.Struct("=Qii")  # length with this header, level, type
_MSGHDR = struct.Struct("=QI4xQQQQi4x")  # address, its size, iovec, their number, control, its size, flags
_IOVEC = struct.Struct("=QQ")
_MAX_MESSAGE = 65535


class Listener:
    """A UDP socket of the proxy. What Python asks the kernel for at each look (family, own name) is kept here."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.v4 = sock.family == socket.AF_INET
        self._names = _FAMILIES[socket.AddressFamily(sock.family)]
        own, self._port = sock.getsockname()[:2]
        self._own = packed(own)
        self._sender = _Sender(sock, self._names)

    def receive(self) -> tuple[Client, bytes] | None:
        """The next datagram, one byte longer than a query may be if it was longer. None if none waits, or if it could
        not be answered as asked: sent to the listener itself, where asking on would end up again."""
        try:
            payload, ancillary, _, sender = self.sock.recvmsg(MAX_QUERY + 1, _ANCILLARY)
        except BlockingIOError:
            return None
        asked = original_destination(ancillary)
        if asked is None or asked[0] == self._own:
            return None
        return Client(packed(sender[0]), sender[1], *asked, Transport.UDP), payload

    def send(self, client: Client, payload: bytes) -> None:
        """A datagram to `client` from the server that it asked. OSError as sendmsg(2) or bind(2)."""
        if client.server_port == self._port:
            self._sender.send(client, payload)
            return
        with socket.socket(self.sock.family, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(self._names.level, self._names.transparent, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((unpack(client.server), client.server_port))
            sock.sendto(payload, (unpack(client.address), client.port))


class _Sender:
    """sendmsg(2) with a message laid out once, of which each datagram changes four places: Python's own builds it anew
    from text and tuples, for twice the price. ValueError above 65535 bytes."""

    def __init__(self, sock: socket.socket, names: _Family) -> None:
        self._fd = sock.fileno()
        self._family = int(sock.family)
        self._names = names
        self._skip = len(names.prefix)
        self._target = bytearray(names.sockaddr.size)
        size = _CMSGHDR.size + names.source.size
        self._control = bytearray((size + 7) // 8 * 8)
        _CMSGHDR.pack_into(self._control, 0, size, names.level, names.pktinfo)
        payload = bytearray(_MAX_MESSAGE)
        self._payload = memoryview(payload)
        self._at = _address(payload)
        self._iovec = bytearray(_IOVEC.size)
        self._message = ctypes.create_string_buffer(
            _MSGHDR.pack(
                *(_address(self._target), len(self._target), _address(self._iovec), 1),
                *(_address(self._control), len(self._control), 0),
            ),
            _MSGHDR.size,
        )

    def send(self, client: Client, payload: bytes) -> None:
        names, skip, length = self._names, self._skip, len(payload)
        names.sockaddr.pack_into(self._target, 0, self._family, client.port.to_bytes(2), client.address[skip:])
        names.source.pack_into(self._control, _CMSGHDR.size, client.server[skip:])
        self._payload[:length] = payload
        _IOVEC.pack_into(self._iovec, 0, self._at, length)
        if _LIBC.sendmsg(self._fd, self._message, 0) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def _address(buffer: bytearray) -> int:
    """Where it lies, as long as it keeps its size."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def packed(text: str) -> bytes:
    """netstack.core.address.pack for text that the kernel, or we, wrote, ten times as fast."""
    if ":" in text:
        return socket.inet_pton(socket.AF_INET6, text.partition("%")[0])
    return V4_MAPPED + socket.inet_aton(text)


def inherited() -> list[socket.socket]:
    """The sockets that the service manager handed over; empty if it did not. sd_listen_fds(3)."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(os.environ.get("LISTEN_FDS", "0"))
    return [_prepared(socket.socket(fileno=number)) for number in range(_FIRST_INHERITED, _FIRST_INHERITED + count)]


def opened(*addresses: str) -> list[socket.socket]:
    """A UDP and a listening TCP socket at each address, which need not be the node's."""
    result = []
    for address, kind in itertools.product(addresses, (socket.SOCK_DGRAM, socket.SOCK_STREAM)):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family, kind)
        names = _FAMILIES[family]
        sock.setsockopt(names.level, names.transparent, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, PROXY_OWN_MARK)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, PORT))
        if kind == socket.SOCK_STREAM:
            sock.listen(CONNECTIONS_WAITING)
        result.append(_prepared(sock))
    return result


def _prepared(sock: socket.socket) -> socket.socket:
    """OSError if the socket is not transparent: it would receive, but its answers would come from the wrong address."""
    names = _FAMILIES[socket.AddressFamily(sock.family)]
    if not sock.getsockopt(names.level, names.transparent):
        raise OSError(f"socket at {sock.getsockname()[0]} is not transparent (Transparent=yes in netstack-dns.socket)")
    if sock.type == socket.SOCK_DGRAM:
        sock.setsockopt(names.level, names.original, 1)
        with contextlib.suppress(PermissionError):  # without CAP_NET_ADMIN it stays as it is
            size = DATAGRAMS_WAITING * _DATAGRAM // 2  # the kernel doubles it
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
    sock.setblocking(False)
    return sock


def original_destination(ancillary: Ancillary) -> tuple[bytes, int] | None:
    """Address and port to which a datagram was sent: sockaddr_in or sockaddr_in6 as the kernel lays them out."""
    for level, kind, data in ancillary:
        if (names := _ORIGINAL.get((level, kind))) is not None:
            _, port, address = names.sockaddr.unpack_from(data)
            return names.prefix + address, int.from_bytes(port)
    return None


def towards(server: bytes, port: int, source: bytes | None = None) -> socket.socket:
    """A new UDP socket connected to the server: the kernel picks an unpredictable port for it, and lets in nothing but
    what this server sends from there. `source`: another sender's address. OSError if there is no way to it."""
    sock = speaking(server, source, socket.SOCK_DGRAM)
    try:
        sock.connect((unpack(server), port))
    except OSError:
        sock.close()
        raise
    return sock


def speaking(server: bytes, source: bytes | None, kind: int) -> socket.socket:
    """A socket of the server's family, with the address `source` of whomever, or the node's. OSError.

    A connection ends by a reset: one that waited for the server's end (TIME_WAIT) would keep its port for a minute, and
    all ports are gone long before, once a pod asks as fast as it is answered."""
    sock = socket.socket(socket.AF_INET if is_v4(server) else socket.AF_INET6, kind | socket.SOCK_NONBLOCK)
    try:
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        if source is not None:
            names = _FAMILIES[socket.AddressFamily(sock.family)]
            sock.setsockopt(names.level, names.transparent, 1)
            sock.bind((unpack(source), 0))
    except OSError:
        sock.close()
        raise
    return sock
