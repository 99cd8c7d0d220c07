"""Watchers: sockets that see what arrives in a network namespace, and say whether it bears a mark."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from instruments.netns import inside

_OUTGOING = 4  # PACKET_OUTGOING
_EVERY_PROTOCOL = 3
HOST_PROTOCOLS = {
    socket.AF_INET: (1, 2, 4, 6, 17, 41, 47, 50, 51, 89, 103, 112, 132, 253),
    socket.AF_INET6: (6, 17, 58, 59),
}
"""Of which a host's own stack is watched: a raw socket gets what is delivered to the host, and nothing that is not."""


class Watch:
    """What arrives by a device of a namespace, or (device "") at the host itself."""

    def __init__(self, namespace: str, device: str = "eth0") -> None:
        self.name = f"{namespace} {device or 'host'}"
        self._sockets = []
        with inside(namespace):
            if device:
                made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
                made.bind((device, _EVERY_PROTOCOL))
                self._sockets.append(made)
            else:
                for family, protocols in HOST_PROTOCOLS.items():
                    self._sockets += [socket.socket(family, socket.SOCK_RAW, protocol) for protocol in protocols]
        for made in self._sockets:
            made.setblocking(False)
            made.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE

    def close(self) -> None:
        for made in self._sockets:
            made.close()

    def seen(self) -> list[bytes]:
        """Every frame (or packet, at the host) that came in since the last call."""
        found = []
        for made in self._sockets:
            while True:
                try:
                    data, address = made.recvfrom(65536)
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno != errno.ENETDOWN:
                        raise
                    continue  # said once, when the device goes; what had come is still there
                if not isinstance(address, tuple) or made.family != socket.AF_PACKET or address[2] != _OUTGOING:
                    found.append(data)
        return found

    def marked(self, mark: bytes) -> list[bytes]:
        return [data for data in self.seen() if mark in data]


def sender(namespace: str, device: str = "eth0") -> socket.socket:
    """A raw socket that puts frames on a device as they are."""
    with inside(namespace):
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        made.bind((device, 0))
    return made


@contextmanager
def sending(namespace: str, frames: list[bytes], pause_s: float = 0.001) -> Iterator[Callable[[], int]]:
    """These frames, round and round, also at a device that goes; the result says how many rounds so far."""
    stop, rounds = threading.Event(), 0

    def run() -> None:
        nonlocal rounds
        with closing(sender(namespace)) as raw:
            while not stop.is_set():
                for frame in frames:
                    try:
                        raw.send(frame)
                    except OSError as error:
                        if error.errno not in (errno.ENXIO, errno.ENETDOWN, errno.ENOBUFS):
                            raise
                rounds += 1
                stop.wait(pause_s)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield lambda: rounds
    finally:
        stop.set()
        thread.join()
    assert rounds >= 3


def mac_of(namespace: str, device: str = "eth0") -> str:
    made = sender(namespace, device)
    try:
        address: bytes = made.getsockname()[4]
    finally:
        made.close()
    return address.hex(":")
