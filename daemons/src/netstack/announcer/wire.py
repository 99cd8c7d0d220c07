"""The raw sockets of one interface: beats and ARP in, beats and announcements out, and whether the link is up."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import socket
import struct
from collections.abc import Iterator

from netstack.announcer.beat import ETH_BEAT
from netstack.announcer.frames import ETH_ARP
from netstack.core.address import unpack

_log = logging.getLogger("announcer")

FRAME_BYTES = 2048
RECEIVE_BYTES = 1 << 20
"""Receive buffer: seconds of beats, so that a stalled process finds its peers' beats and not a gap."""
_HEADER = struct.Struct("!6s6sH")
_SIOCGIFFLAGS = 0x8913
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_LINK_GONE = (errno.ENETDOWN, errno.ENXIO, errno.ENODEV, errno.ENOBUFS)
_RTMGRP_LINK = 1


class Wire:
    """OSError if the interface does not exist or CAP_NET_RAW is missing."""

    def __init__(self, interface: str) -> None:
        self.interface = interface
        self.index = socket.if_nametoindex(interface)
        self.beats = self._socket(ETH_BEAT)
        self.arp = self._socket(ETH_ARP)
        self.links = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        self.links.bind((0, _RTMGRP_LINK))
        self.mac: bytes = self.beats.getsockname()[4]
        self._groups: dict[bytes, socket.socket] = {}

    def _socket(self, protocol: int) -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        sock.bind((self.interface, protocol))
        return sock

    def close(self) -> None:
        for sock in (self.beats, self.arp, self.links, *self._groups.values()):
            sock.close()

    def send_beat(self, destination: bytes, payload: bytes) -> None:
        self.send(_HEADER.pack(destination, self.mac, ETH_BEAT) + payload)

    def send(self, frame: bytes) -> None:
        """Put a whole frame on the wire. A link that is down swallows it, as a cable would."""
        try:
            self.beats.send(frame)
        except OSError as error:
            if error.errno not in (*_LINK_GONE, errno.EAGAIN):
                raise

    def received_beats(self) -> Iterator[tuple[bytes, bytes]]:
        """(source MAC, payload) of every beat frame that is waiting."""
        for frame in _frames(self.beats):
            yield frame[6:12], frame[_HEADER.size :]

    def received_arp(self) -> Iterator[bytes]:
        """Every ARP frame that is waiting."""
        return _frames(self.arp)

    def carrier(self) -> bool:
        """Whether the interface is up and has a link; reads away what the kernel had to say about links."""
        for _ in _frames(self.links):
            pass
        request = struct.pack("16sH14x", self.interface.encode(), 0)
        flags: int = struct.unpack_from("16xH", fcntl.ioctl(self.beats, _SIOCGIFFLAGS, request))[0]
        return bool(flags & _IFF_UP and flags & _IFF_RUNNING)

    def join_solicited_node(self, address: bytes) -> None:
        """Have the interface and MLD-snooping switches pass Neighbor Solicitations for an IPv6 address (RFC 4861,
        7.2.1; RFC 4291, section 2.7.1: ff02::1:ff and its last three bytes). Where there is no IPv6 this is logged, and
        nobody hears of the address; others go on."""
        if address in self._groups:
            return
        group = bytes.fromhex("ff0200000000000000000001ff") + address[13:]
        with contextlib.ExitStack() as undone:
            try:
                sock = undone.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group + struct.pack("=I", self.index))
            except OSError as error:
                _log.warning("%s: nobody can ask for %s here: %s", self.interface, unpack(address), error)
                return
            self._groups[address] = sock
            undone.pop_all()

    def leave_solicited_node(self, address: bytes) -> None:
        if address in self._groups:
            self._groups.pop(address).close()


def _frames(sock: socket.socket) -> Iterator[bytes]:
    while True:
        try:
            yield sock.recv(FRAME_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno not in _LINK_GONE:
                raise
            return
