"""What the kernel tells of network devices while it happens (rtnetlink multicast groups): links, and filters on them.

News is a hint at which devices to look, never what is there: more may have happened since. Both kinds of message begin
with a family header that has the ifindex at the same place (struct ifinfomsg, struct tcmsg).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable

from netstack.kernel.attach import DELFILTER, DELQDISC, NEWFILTER, NEWQDISC
from netstack.kernel.netlink import DELLINK, HEADER, NEWLINK

LINKS, TRAFFIC_CONTROL = 1, 8
"""Masks of the groups (RTMGRP_LINK, RTMGRP_TC)."""
KINDS = (NEWLINK, DELLINK, NEWQDISC, DELQDISC, NEWFILTER, DELFILTER)
IFINDEX = struct.Struct("=4xi")


class DeviceNews:
    """Of the network namespace in which it was opened; `heard` gets ifindexes, or None: some were lost, look at all."""

    def __init__(self, heard: Callable[[set[int] | None], None]) -> None:
        self._heard = heard
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._socket.bind((0, LINKS | TRAFFIC_CONTROL))
        asyncio.get_running_loop().add_reader(self._socket, self._read)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def _read(self) -> None:
        found: set[int] = set()
        while True:
            try:
                found |= indexes(self._socket.recv(1 << 16))
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS: the kernel had more to tell than it could keep
                self._heard(None)
                return
        if found:
            self._heard(found)


def indexes(data: bytes) -> set[int]:
    """The devices of which the messages in one datagram speak."""
    found, offset = set(), 0
    while offset + HEADER.size + IFINDEX.size <= len(data):
        length, kind, _, _, _ = HEADER.unpack_from(data, offset)
        if kind in KINDS:
            found.add(IFINDEX.unpack_from(data, offset + HEADER.size)[0])
        offset += (max(length, HEADER.size) + 3) & ~3
    return found
