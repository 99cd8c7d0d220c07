"""Sockets towards DNS servers: connected, each at a port that the kernel picked at random, each with one question.

A forger has to hit the port and the id of a question that waits (RFC 5452, section 9). A socket of its own for every
question is the plainest way to ports that nobody can guess, and costs as much as all else that the proxy does. So
sockets serve again, without becoming easier to hit:

* While a question waits on a socket, no other one is sent from it: as many ports are open as questions wait.
* Which one serves next is drawn from at least SPARE by the source of the ids; if there are fewer, a new one is made.
* One that has brought anything but the one answer that was waited for never serves again: another message, a message
  while nothing was asked, an error, nothing at all within the time-out.
* None serves longer than LIFE_S or more than USES times: a port is gone before it can be found by scanning for it, and
  an address of this node or a way to the server that has changed is taken up.
"""

from __future__ import annotations

import os
import select
import socket
from array import array
from collections.abc import Callable, Iterator
from typing import NamedTuple

from netstack.dns import sockets

SPARE = 8
"""Sockets of one server among which one is drawn."""

IDLE = 256
"""... that wait for a question, of all servers together; more are closed after use."""

LIFE_S = 1.0
"""Scanning for ports by what a host says about closed ones is limited to 1,000 a second (icmp_msgs_per_sec)."""

USES = 32

_BLOCK = 4096


def unpredictable() -> Iterator[int]:
    """Numbers below 65536 from the kernel's random generator, asked for a block at a time: 50 times as fast."""
    while True:
        yield from array("H", os.urandom(_BLOCK))


class Place(NamedTuple):
    """Where to, and in whose name: the address of the sender, None = this node's."""

    server: bytes
    port: int
    source: bytes | None = None


class Upstream:
    """One socket. `key` is the question that waits on it, None if none does."""

    __slots__ = ("born_s", "key", "place", "sock", "uses")

    def __init__(self, key: int, sock: socket.socket, place: Place, now: float) -> None:
        self.key: int | None = key
        self.sock = sock
        self.place = place
        self.born_s = now
        self.uses = 0


class Upstreams:
    """All of them. `ready` is told which sockets to watch."""

    def __init__(self, ready: select.epoll, random_number: Callable[[], int]) -> None:
        self._ready = ready
        self._random = random_number
        self._by_descriptor: dict[int, Upstream] = {}
        self._idle: dict[Place, list[Upstream]] = {}
        self._idle_count = 0

    def __len__(self) -> int:
        return len(self._by_descriptor)

    def at(self, descriptor: int) -> Upstream | None:
        return self._by_descriptor.get(descriptor)

    def ask(self, key: int, place: Place, payload: bytes, now: float) -> Upstream:
        """Send `payload`; the socket from which it went, until `release` or `close`. OSError if there is no way."""
        if (drawn := self._draw(key, place, now)) is not None:
            try:
                drawn.sock.send(payload)
            except OSError:  # maybe about an earlier question: a new socket will tell
                self.close(drawn)
            else:
                return drawn
        made = Upstream(key, sockets.towards(*place), place, now)
        self._by_descriptor[made.sock.fileno()] = made
        self._ready.register(made.sock.fileno(), select.EPOLLIN)
        try:
            made.sock.send(payload)
        except OSError:
            self.close(made)
            raise
        return made

    def _draw(self, key: int, place: Place, now: float) -> Upstream | None:
        idle = self._idle.get(place, [])
        while len(idle) >= SPARE:
            number = self._random() % len(idle)
            idle[number], idle[-1] = idle[-1], idle[number]
            drawn = idle.pop()
            self._idle_count -= 1
            drawn.key = key
            if now - drawn.born_s <= LIFE_S:
                return drawn
            self.close(drawn)
        return None

    def release(self, upstream: Upstream, now: float) -> None:
        """It has brought its answer and nothing else."""
        upstream.uses += 1
        if upstream.uses >= USES or now - upstream.born_s > LIFE_S or self._idle_count >= IDLE:
            self.close(upstream)
            return
        upstream.key = None
        self._idle.setdefault(upstream.place, []).append(upstream)
        self._idle_count += 1

    def close(self, upstream: Upstream) -> None:
        """It never serves again."""
        if upstream.key is None:
            self._idle[upstream.place].remove(upstream)
            self._idle_count -= 1
        del self._by_descriptor[upstream.sock.fileno()]
        upstream.sock.close()  # the kernel takes it out of the epoll set

    def expire(self, now: float) -> None:
        """Close those that nobody has asked from within their life."""
        for place, idle in list(self._idle.items()):
            for upstream in [one for one in idle if now - one.born_s > LIFE_S]:
                self.close(upstream)
            if not idle:
                del self._idle[place]
