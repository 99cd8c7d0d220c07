"""The shim between sockets and Session: it carries messages in and commands out, and decides nothing.

Everything runs on one event loop. Between the arrival of a server's answer and its way to the pod lies one synchronous
stretch (`_reply`): the table is written, then the answer is sent, with no chance for anything to come between.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import socket
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from netstack.core.address import is_v4, pack, unpack
from netstack.dns import sockets
from netstack.dns.apply import Learned, Refused
from netstack.dns.rulesfile import RulesFile
from netstack.dns.session import Client, Close, Command, Drop, Forward, Reason, Reply, Session, Transport
from netstack.dns.settings import DnsSettings

_log = logging.getLogger("dns")

_BATCH = 32
"""Datagrams taken from one socket before others get their turn."""

_MAX_MESSAGE = 65535

Spawn = Callable[[Coroutine[Any, Any, None], str], object]


class Proxy:
    """All sockets of the daemon. `spawn` runs a coroutine beside it (Unit.spawn)."""

    def __init__(
        self, settings: DnsSettings, session: Session, learned: Learned, rules: RulesFile, spawn: Spawn
    ) -> None:
        self._settings = settings
        self._session = session
        self._learned = learned
        self._rules = rules
        self._spawn = spawn
        self._loop = asyncio.get_running_loop()
        self._udp: dict[bool, sockets.Listener] = {}  # by whether it serves IPv4
        self._upstream: dict[int, socket.socket | None] = {}  # by Forward.key; None: TCP, closed by its own coroutine
        self._asked: dict[int, tuple[Forward, socket.socket]] = {}  # by descriptor
        self._answered = select.epoll()  # of all upstream sockets: the loop's own costs three times as much for each
        self._loop.add_reader(self._answered.fileno(), self._on_answers)
        self._connections: dict[int, asyncio.StreamWriter] = {}
        self._of_pod: Counter[bytes] = Counter()
        self._next_connection = 0
        self._timer: asyncio.TimerHandle | None = None
        self._servers: list[asyncio.Server] = []
        self._drained = asyncio.Event()

    async def serve(self, listeners: list[socket.socket]) -> None:
        """Start to serve; returns at once. OSError if a listener cannot be used."""
        for sock in listeners:
            if sock.type == socket.SOCK_DGRAM:
                listener = sockets.Listener(sock)
                self._udp[listener.v4] = listener
                self._loop.add_reader(sock.fileno(), self._on_datagrams, listener)
            else:
                self._servers.append(await asyncio.start_server(self._on_connection, sock=sock))

    async def finish(self, within_s: float) -> None:
        """Take no more questions (they wait in systemd's sockets for the successor) and answer those under way."""
        for listener in self._udp.values():
            self._loop.remove_reader(listener.sock.fileno())
        for server in self._servers:
            server.close()
        if self._session.in_flight:
            self._drained.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self._drained.wait()

    # ---- pods ----

    def _refresh(self) -> None:
        if self._rules.refresh():
            self._session.rules = self._rules.rules

    def _on_datagrams(self, listener: sockets.Listener) -> None:
        self._refresh()
        for _ in range(_BATCH):
            try:
                received = listener.receive()
            except OSError as error:  # an ICMP error of an earlier answer: the pod has closed its socket
                _log.debug("receive: %s", error)
                continue
            if received is None:
                return
            self._run(self._session.query(*received, self._loop.time()))

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer, asked = writer.get_extra_info("peername"), writer.get_extra_info("sockname")
        pod = pack(peer[0])
        if self._of_pod[pod] >= self._settings.max_connections_per_pod:
            writer.transport.abort()
            return
        self._next_connection += 1
        client = Client(pod, peer[1], pack(asked[0]), asked[1], Transport.TCP, self._next_connection)
        self._connections[client.connection] = writer
        self._of_pod[pod] += 1
        try:
            while True:
                await self._one_question(client, reader, writer)
        except (OSError, EOFError) as error:  # closed, reset, or idle (TimeoutError is an OSError)
            _log.debug("connection of %s: %s", unpack(pod), error or type(error).__name__)
        finally:
            if writer.transport.get_write_buffer_size():
                writer.transport.abort()  # what the pod has not read by now it may never read
            else:
                writer.close()
            del self._connections[client.connection]
            self._of_pod[pod] -= 1
            if not self._of_pod[pod]:
                del self._of_pod[pod]

    async def _one_question(self, client: Client, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Questions may follow one another without waiting for answers (RFC 7766, section 6.2.1.1), but not without
        reading them. The time-out is longer than any answer takes."""
        async with asyncio.timeout(self._settings.tcp_idle_timeout_s):
            await writer.drain()
            payload = await _read_message(reader)
        self._refresh()
        self._run(self._session.query(client, payload, self._loop.time()))
        await asyncio.sleep(0)  # a buffer full of questions would else be one pod's turn

    # ---- commands ----

    def _run(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Forward():
                    self._forward(command)
                case Reply():
                    self._reply(command)
                case Close():
                    self._close(command.key)
                case Drop():
                    _log.debug("dropped: %s %s", command.reason, command.detail)
        if not self._session.in_flight:
            self._drained.set()
        self._arm()

    def _arm(self) -> None:
        """One timer, for the next deadline."""
        deadline = self._session.deadline()
        if self._timer is None and deadline is not None:
            self._timer = self._loop.call_at(deadline, self._on_deadline)

    def _on_deadline(self) -> None:
        self._timer = None
        self._run(self._session.tick(self._loop.time()))

    def _reply(self, reply: Reply) -> None:
        payload = reply.payload
        try:
            self._learned.credit(reply.credits, self._loop.time())
        except (Refused, OSError) as error:
            self._session.counters[Reason.TABLE_REFUSED] += 1
            _log.warning("an answer for %s is held back: %s", unpack(reply.client.address), error)
            payload = reply.otherwise
        self._send(reply.client, payload)

    def _send(self, client: Client, payload: bytes) -> None:
        if client.transport is Transport.TCP:
            if (writer := self._connections.get(client.connection)) is not None and not writer.is_closing():
                writer.write(len(payload).to_bytes(2) + payload)
            return
        try:
            self._udp[is_v4(client.address)].send(client, payload)
        except OSError as error:  # the pod is gone, or its queue is full: it asks again
            _log.debug("answer to %s: %s", unpack(client.address), error)

    # ---- servers ----

    def _forward(self, forward: Forward) -> None:
        if forward.client.transport is Transport.TCP:
            self._upstream[forward.key] = None
            self._spawn(self._ask_by_tcp(forward), f"dns question {forward.key}")
            return
        try:
            sock = sockets.towards(forward.client.server, forward.client.server_port)
            self._upstream[forward.key] = sock
            sock.send(forward.payload)
        except OSError as error:
            self._unreachable(forward, error)
            return
        self._asked[sock.fileno()] = forward, sock
        self._answered.register(sock.fileno(), select.EPOLLIN)

    def _on_answers(self) -> None:
        for descriptor, _ in self._answered.poll(0, _BATCH):
            if descriptor in self._asked:  # not closed by what an answer before this one did
                self._on_answer(*self._asked[descriptor])

    def _on_answer(self, forward: Forward, sock: socket.socket) -> None:
        try:
            payload = sock.recv(_MAX_MESSAGE)
        except BlockingIOError:
            return
        except OSError as error:
            self._unreachable(forward, error)
            return
        self._refresh()
        self._run(self._session.answer(forward.key, payload, self._loop.time()))

    async def _ask_by_tcp(self, forward: Forward) -> None:
        with contextlib.ExitStack() as stack:
            try:
                async with asyncio.timeout(self._settings.upstream_timeout_s):
                    reader, writer = await asyncio.open_connection(
                        unpack(forward.client.server), forward.client.server_port
                    )
                    stack.callback(writer.close)
                    writer.write(len(forward.payload).to_bytes(2) + forward.payload)
                    while forward.key in self._upstream:
                        payload = await _read_message(reader)
                        self._refresh()
                        self._run(self._session.answer(forward.key, payload, self._loop.time()))
            except (OSError, EOFError) as error:
                self._unreachable(forward, error)

    def _unreachable(self, forward: Forward, error: Exception) -> None:
        _log.debug("server %s: %s", unpack(forward.client.server), error)
        self._run(self._session.unreachable(forward.key))

    def _close(self, key: int) -> None:
        sock = self._upstream.pop(key, None)
        if sock is not None:
            self._asked.pop(sock.fileno(), None)
            sock.close()  # the kernel takes it out of the epoll set

    # ---- upkeep ----

    async def upkeep(self, every_s: float) -> None:
        """Sweep the table and keep a copy of the rules, for ever."""
        while True:
            self._refresh()
            known = self._rules.rules.ids if self._rules.loaded else None
            for _ in self._learned.sweep(known, self._loop.time(), self._settings.gone_after_s):
                await asyncio.sleep(0)
            try:
                await asyncio.to_thread(self._rules.save)
            except OSError as error:
                _log.warning("no copy of the rules can be kept: %s", error)
            await asyncio.sleep(every_s)


async def _read_message(reader: asyncio.StreamReader) -> bytes:
    """A message behind its length of two bytes (RFC 1035, section 4.2.2). EOFError where the stream ends."""
    return await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
