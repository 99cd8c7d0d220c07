"""Carrying out what the elections decide: one `Segment` an interface, all in one thread of their own.

The thread does nothing else, so that reading manifests, writing status (fsync on an SD card takes its time) and
answering the control socket never delay a beat; a beat 250 ms late costs its sender its addresses. It wakes for
frames, for the earliest of all timers, and for `call`. It may be paused anywhere, for any time. Before it concludes
anything from a peer's silence it has therefore read all that arrived in that time, and what it promises counts from
when it was said.
"""

from __future__ import annotations

import os
import selectors
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from netstack.announcer.beat import Stage
from netstack.announcer.conflict import Conflict, ConflictWatch
from netstack.announcer.elect import Election
from netstack.announcer.events import Alive, AskGateway, Lost, Output, Owned, Send, SetDeadline
from netstack.announcer.frames import BROADCAST, REPLY, FrameError, announcements, arp_request, decode_arp
from netstack.announcer.gratuitous import Gratuitous
from netstack.core.address import is_v4

HISTORY = 32
"""Changes of ownership that `status` shows."""
LONGEST_WAIT_S = 1.0

Event = Owned | Lost | Conflict


class Socket(Protocol):
    """What a Segment needs of netstack.announcer.wire.Wire."""

    interface: str
    index: int
    mac: bytes

    def send_beat(self, destination: bytes, payload: bytes) -> None: ...
    def send(self, frame: bytes) -> None: ...
    def received_beats(self) -> Iterator[tuple[bytes, bytes]]: ...
    def received_arp(self) -> Iterator[bytes]: ...
    def carrier(self) -> bool: ...
    def join_solicited_node(self, address: bytes) -> None: ...
    def leave_solicited_node(self, address: bytes) -> None: ...


class Deadlines(Protocol):
    """What a Segment needs of netstack.announcer.tables.Tables."""

    def set_deadline(self, address: bytes, index: int, mac: bytes, deadline_s: float, term: int) -> None: ...
    def set_alive(self, node: str, until_s: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Gateway:
    """The LAN's router, and the address of this node from which it is asked."""

    address: bytes
    own: bytes


@dataclass(slots=True)
class Segment:
    """One interface: its election, its frames, its entries in the maps. `notify` hears of every change of ownership and
    every conflict; it is called in the engine's thread and must not block."""

    wire: Socket
    tables: Deadlines
    election: Election
    gratuitous: Gratuitous
    gateway: Gateway | None
    notify: Callable[[str, Event], None]
    history: deque[tuple[float, Event]] = field(default_factory=lambda: deque(maxlen=HISTORY))
    conflicts: ConflictWatch = field(default_factory=ConflictWatch)
    addresses: frozenset[bytes] = frozenset()
    gateway_mac: bytes = b""
    up: bool = True
    clock: Callable[[], float] = time.monotonic

    @property
    def wakeup(self) -> float:
        return min(self.election.wakeup, self.gratuitous.wakeup)

    def want(self, eligible: Mapping[bytes, frozenset[str]], now: float) -> None:
        """Which addresses are to be announced here, and by whom."""
        for address in self.addresses - eligible.keys():
            self.wire.leave_solicited_node(address)
        for address in eligible.keys() - self.addresses:
            if not is_v4(address):
                self.wire.join_solicited_node(address)
        self.addresses = frozenset(eligible)
        self._carry_out(self.election.want(eligible, now), now)

    def leave(self, now: float) -> None:
        self._carry_out(self.election.leave(now), now)

    def read_beats(self) -> None:
        """What has arrived. The clock is looked at for each frame anew: it may be long ago that the first was read."""
        for source, payload in self.wire.received_beats():
            now = self.clock()
            self._carry_out(self.election.receive(source, payload, now), now)

    def read_arp(self) -> None:
        for frame in self.wire.received_arp():
            self._hear_arp(frame, self.clock())

    def check_link(self) -> None:
        now = self.clock()
        up = self.wire.carrier()
        if up != self.up:
            self.up = up
            self._carry_out(self.election.carrier(up, now), now)
            if up:
                self.gratuitous.again(now)

    def tick(self, now: float) -> None:
        if now >= self.election.wakeup:
            self._carry_out(self.election.tick(now), now)
        self._announce(now)

    def _hear_arp(self, frame: bytes, now: float) -> None:
        try:
            arp = decode_arp(frame)
        except FrameError:
            return  # a LAN is full of them, and none concerns an address
        if self.gateway and arp.sender == self.gateway.address and arp.operation == REPLY:
            if arp.target_mac == self.wire.mac:
                self.gateway_mac = arp.sender_mac
                self._carry_out(self.election.gateway_answered(now), now)
            return
        members = [self.wire.mac, *(peer.mac for peer in self.election.peers.values())]
        conflict = self.conflicts.see(arp, self.addresses, self.election.holdings, members, now)
        if conflict is not None:
            if conflict.defend:
                self._send_announcements(conflict.address)
            self._note(conflict, now)

    def _carry_out(self, outputs: list[Output], now: float) -> None:
        for output in outputs:
            match output:
                case Send(destination, payload):
                    self.wire.send_beat(destination, payload)
                case SetDeadline(address, deadline):
                    own = self.election.holdings.get(address)
                    term = own.term if own else 0
                    self.tables.set_deadline(address, self.wire.index, self.wire.mac, deadline, term)
                case Alive(node, until):
                    self.tables.set_alive(node, until)
                case AskGateway() if self.gateway:
                    mac = self.gateway_mac if self.election.gateway_seen else BROADCAST
                    self._ask_gateway(self.gateway.own, mac)
                case Owned(address):
                    self.gratuitous.owned(address, now)
                    self._note(output, now)
                case Lost(address):
                    self.gratuitous.lost(address)
                    self._note(output, now)
        if outputs:
            self.election.carried_out(self.clock())
            self._announce(now)

    def _announce(self, now: float) -> None:
        for announce in self.gratuitous.due(now):
            own = self.election.holdings.get(announce.address)
            if own is None or own.stage is Stage.CANDIDATE or now >= own.deadline:
                continue
            self._send_announcements(announce.address)
            if announce.ask_gateway and is_v4(announce.address):
                self._ask_gateway(announce.address, self.gateway_mac or BROADCAST)

    def _send_announcements(self, address: bytes) -> None:
        for frame in announcements(address, self.wire.mac):
            self.wire.send(frame)

    def _ask_gateway(self, sender: bytes, mac: bytes) -> None:
        if self.gateway:
            self.wire.send(arp_request(sender, self.wire.mac, self.gateway.address, mac))

    def _note(self, event: Event, now: float) -> None:
        self.history.append((now, event))
        self.notify(self.wire.interface, event)


class Engine:
    """The thread that runs all segments. `run` is its body; the other methods are for other threads."""

    def __init__(self, segments: Collection[Segment]) -> None:
        self.segments = tuple(segments)
        self._calls: SimpleQueue[tuple[Callable[[float], Any], Future[Any]]] = SimpleQueue()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._running = True
        self._ended = False

    def call(self, work: Callable[[float], Any]) -> Future[Any]:
        """Have the thread run `work(now)` between two frames; its result or error is the future's. Cancelled if the
        thread has ended."""
        future: Future[Any] = Future()
        self._calls.put((work, future))
        os.eventfd_write(self._bell, 1)
        if self._ended:
            self._cancel_calls()
        return future

    def stop(self) -> None:
        self._running = False
        os.eventfd_write(self._bell, 1)

    def run(self, sockets: Mapping[Any, Callable[[], None]]) -> None:
        """Until `stop`. `sockets`: file object -> what reads it empty."""
        try:
            self._loop(sockets)
        finally:
            self._ended = True
            self._cancel_calls()

    def _loop(self, sockets: Mapping[Any, Callable[[], None]]) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._bell, selectors.EVENT_READ, self._answer_calls)
            for file, read in sockets.items():
                selector.register(file, selectors.EVENT_READ, read)
            while self._running:
                wakeup = min((segment.wakeup for segment in self.segments), default=float("inf"))
                selector.select(min(max(wakeup - time.monotonic(), 0.0), LONGEST_WAIT_S))
                # Whatever the sockets hold by `now` is read before anything is concluded from silence until `now`.
                # What the wait above found does not do: between its end and `now` may lie any pause.
                now = time.monotonic()
                for key, _ in selector.select(0):
                    key.data()
                for segment in self.segments:
                    segment.tick(now)

    def _answer_calls(self) -> None:
        os.eventfd_read(self._bell)
        for work, future in self._waiting_calls():
            try:
                future.set_result(work(time.monotonic()))
            except Exception as error:
                future.set_exception(error)

    def _cancel_calls(self) -> None:
        for _, future in self._waiting_calls():
            future.cancel()

    def _waiting_calls(self) -> Iterator[tuple[Callable[[float], Any], Future[Any]]]:
        with suppress(Empty):
            while True:
                yield self._calls.get_nowait()
