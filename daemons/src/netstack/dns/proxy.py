"""The shim between sockets and Session: it carries messages in and commands out, and decides nothing.

Everything runs on one event loop. Between the arrival of a server's answer and its way to the pod lies one synchronous
stretch (`_reply`): the table is written, then the answer is sent, with no chance for anything to come between.

All UDP sockets are in one epoll set, which the loop sees as one descriptor: a turn of asyncio's own costs as much as
three questions, so one serves everything that is there by then and what comes meanwhile, up to a limit.
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
from netstack.dns.recall import Recall
from netstack.dns.rulesfile import RulesFile
from netstack.dns.session import Client, Close, Command, Drop, Forward, Reason, Reply, Session, Transport
from netstack.dns.settings import DnsSettings
from netstack.dns.turns import Turns
from netstack.dns.upstream import Place, Upstream, Upstreams

_log = logging.getLogger("dns")

_BATCH = 32
"""Questions, and sockets with answers, that are looked at before others get their turn."""

_ROUNDS = 8
"""... times, before everything but UDP gets its turn: at most 20 ms."""

_READ = 256
"""Datagrams of pods that are read at once: 2 ms."""

_WAITING = 256
"""Questions of one pod that are read and wait for their turn; one more is dropped."""

_MAX_MESSAGE = 65535

_UNREAD = 2 * (2 + _MAX_MESSAGE)
"""Bytes of answers that wait for a pod to read them; a connection with more is cut. Answers to all that a pod may ask
at once, on as many connections as it may hold, would else take more memory than there is."""

_LAST_S = 1.0
"""How long those are waited for who wait when a daemon that goes takes no more questions."""

_ACCEPTING = 4
"""Turns of the loop from accept(2) to `_on_connection`."""

Spawn = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]


class Proxy:
    """All sockets of the daemon. `spawn` runs a coroutine beside it (Unit.spawn)."""

    def __init__(
        self,
        settings: DnsSettings,
        session: Session,
        learned: Learned,
        rules: RulesFile,
        recall: Recall,
        random_number: Callable[[], int],
        spawn: Spawn,
    ) -> None:
        self._settings = settings
        self._session = session
        self._learned = learned
        self._rules = rules
        self._recall = recall
        self._heed()
        self._spawn = spawn
        self._loop = asyncio.get_running_loop()
        self._udp: dict[bool, sockets.Listener] = {}  # by whether it serves IPv4
        self._listeners: dict[int, sockets.Listener] = {}  # by descriptor
        self._turns = Turns(_WAITING)
        self._next_turn: asyncio.Handle | None = None
        self._ready = select.epoll()
        self._loop.add_reader(self._ready.fileno(), self._on_ready)
        self._upstreams = Upstreams(self._ready, random_number)
        self._buffer = memoryview(bytearray(_MAX_MESSAGE))
        self._asked: dict[int, Upstream | None] = {}  # by Forward.key; None: TCP, closed by its own coroutine
        self._connections: dict[int, asyncio.StreamWriter] = {}
        self._asking: dict[int, set[asyncio.Task[None]]] = {}  # by connection: questions under way
        self._unasked: set[int] = set()  # connections that have asked nothing yet
        self._of_pod: Counter[bytes] = Counter()
        self._held_back: set[bytes] = set()  # pods of which this was said since the last upkeep
        self._next_connection = 0
        self._timer: asyncio.TimerHandle | None = None
        self._servers: list[asyncio.Server] = []
        self._finishing = False
        self._drained = asyncio.Event()

    async def serve(self, listeners: list[socket.socket]) -> None:
        """Start to serve; returns at once. OSError if a listener cannot be used."""
        for sock in listeners:
            if sock.type == socket.SOCK_DGRAM:
                listener = sockets.Listener(sock)
                self._udp[listener.v4] = self._listeners[sock.fileno()] = listener
                self._ready.register(sock.fileno(), select.EPOLLIN)
            else:
                self._servers.append(await asyncio.start_server(self._on_connection, sock=sock))
                sock.listen(sockets.CONNECTIONS_WAITING)  # asyncio has just made it fewer

    async def finish(self, within_s: float) -> None:
        """Serve until nobody waits for an answer, at most `within_s`; then take no more questions: they wait in
        systemd's sockets for the successor, who may take a second to start. What a slow server takes comes on top of
        that second, so who waits for one is answered first, and meanwhile nobody else is held up."""
        self._finishing = True
        self._rest()
        await self._drain(within_s)
        self._deafen()
        while self._turns:
            self._on_turn()
        for _ in range(_ACCEPTING):
            await asyncio.sleep(0)
        self._drained.clear()
        self._rest()
        await self._drain(_LAST_S)

    async def _drain(self, within_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._drained.wait()

    def _rest(self) -> None:
        """If we are to go and nobody waits just now, this is the moment."""
        if self._finishing and not (self._session.in_flight or self._turns or self._unasked):
            self._deafen()
            self._drained.set()

    def _deafen(self) -> None:
        for descriptor in self._listeners:
            self._ready.unregister(descriptor)
        for server in self._servers:  # not closed: what it has just accepted would be reset
            for sock in server.sockets:
                self._loop.remove_reader(sock)
        self._listeners = {}

    # ---- UDP ----

    def _on_ready(self) -> None:
        for _ in range(_ROUNDS):
            if not (events := self._ready.poll(0, _BATCH)):
                break
            self._refresh()
            now = self._loop.time()
            for descriptor, _ in events:
                if (listener := self._listeners.get(descriptor)) is not None:
                    self._on_datagrams(listener, now)
                elif (upstream := self._upstreams.at(descriptor)) is not None:  # not closed by what came before
                    self._on_answer(upstream, now)

    def _on_datagrams(self, listener: sockets.Listener, now: float) -> None:
        for _ in range(_READ):
            try:
                received = listener.receive()
            except OSError as error:  # an ICMP error of an earlier answer: the pod has closed its socket
                _log.debug("receive: %s", error)
                continue
            if received is None:
                break
            if not self._turns.add(*received):
                self._session.counters[Reason.POD_BUSY] += 1
        self._serve(now)

    def _serve(self, now: float) -> None:
        for _ in range(_BATCH):
            if (question := self._turns.take()) is None:
                return
            self._run(self._session.query(*question, now), now)
        if self._turns and self._next_turn is None:
            self._next_turn = self._loop.call_soon(self._on_turn)

    def _on_turn(self) -> None:
        self._next_turn = None
        self._refresh()
        self._serve(self._loop.time())

    def _on_answer(self, upstream: Upstream, now: float) -> None:
        try:
            payload = self._buffer[: upstream.sock.recv_into(self._buffer)].tobytes()
        except BlockingIOError:
            return
        except OSError as error:
            if upstream.key is None:
                self._upstreams.close(upstream)
            else:
                self._unreachable(upstream.key, error)
            return
        if upstream.key is None:
            self._upstreams.close(upstream)
        else:
            self._run(self._session.answer(upstream.key, payload, now), now)

    # ---- pods ----

    def _refresh(self) -> None:
        """Before each batch of messages: judged is by what is known now."""
        changed = self._rules.refresh()
        self._session.refresh(self._rules.rules)
        if changed:
            self._heed()
            self._recall.apply(self._loop.time())

    def _heed(self) -> None:
        self._learned.tried, self._learned.ruled = self._rules.rules.tried, self._rules.rules.selectors

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer, asked = writer.get_extra_info("peername"), writer.get_extra_info("sockname")
        pod = pack(peer[0])
        if self._of_pod[pod] >= self._settings.max_connections_per_pod:
            writer.transport.abort()
            return
        self._next_connection += 1
        client = Client(pod, peer[1], pack(asked[0]), asked[1], Transport.TCP, self._next_connection)
        self._connections[client.connection] = writer
        self._asking[client.connection] = set()
        self._unasked.add(client.connection)
        self._of_pod[pod] += 1
        try:
            while True:
                await self._one_question(client, reader, writer)
        except (OSError, EOFError) as error:  # closed, reset, or idle (TimeoutError is an OSError)
            _log.debug("connection of %s: %s", unpack(pod), error or type(error).__name__)
            if asking := self._asking[client.connection]:  # it has said all, and may still listen
                await asyncio.wait(asking)
        finally:
            del self._asking[client.connection]
            self._unasked.discard(client.connection)
            self._rest()
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
        self._unasked.discard(client.connection)
        self._refresh()
        now = self._loop.time()
        self._run(self._session.query(client, payload, now), now)
        await asyncio.sleep(0)  # a buffer full of questions would else be one pod's turn

    # ---- commands ----

    def _run(self, commands: list[Command], now: float) -> None:
        for command in commands:
            match command:
                case Forward():
                    self._forward(command, now)
                case Reply():
                    self._reply(command, now)
                case Close():
                    self._close(command, now)
                case Drop():
                    _log.debug("dropped: %s %s", command.reason, command.detail)
        self._rest()
        if self._timer is None and (deadline := self._session.deadline()) is not None:
            self._timer = self._loop.call_at(deadline, self._on_deadline)  # the one timer

    def _on_deadline(self) -> None:
        self._timer = None
        now = self._loop.time()
        self._run(self._session.tick(now), now)

    def _reply(self, reply: Reply, now: float) -> None:
        if reply.unopened is not None:
            self._recall.note(reply.unopened, now)
        payload = reply.payload
        for credit in reply.credits:
            try:
                self._learned.credit(credit, now)
            except (Refused, OSError) as error:
                if credit.on_trial:
                    _log.debug("not learned for policies on trial: %s", error)
                    continue
                self._session.counters[Reason.TABLE_REFUSED] += 1
                self._say_held_back(reply.client.address, error)
                payload = reply.otherwise()
                break
        self._send(reply.client, payload)

    def _say_held_back(self, pod: bytes, error: Exception) -> None:
        """Now and then, for a pod may ask a thousand times a second."""
        if pod not in self._held_back:
            self._held_back.add(pod)
            _log.warning("an answer for %s is held back: %s", unpack(pod), error)

    def _send(self, client: Client, payload: bytes) -> None:
        if client.transport is Transport.TCP:
            if (writer := self._connections.get(client.connection)) is not None and not writer.is_closing():
                writer.write(len(payload).to_bytes(2) + payload)
                if writer.transport.get_write_buffer_size() > _UNREAD:
                    writer.transport.abort()
            return
        try:
            self._udp[is_v4(client.address)].send(client, payload)
        except OSError as error:  # the pod is gone, or its queue is full: it asks again
            _log.debug("answer to %s: %s", unpack(client.address), error)

    # ---- servers ----

    def _forward(self, forward: Forward, now: float) -> None:
        client = forward.client
        if client.transport is Transport.TCP:
            self._asked[forward.key] = None
            asking = self._asking[client.connection]
            task = self._spawn(self._ask_by_tcp(forward), f"dns question {forward.key}")
            asking.add(task)
            task.add_done_callback(asking.discard)
            return
        try:
            place = Place(client.server, client.server_port, forward.source)
            self._asked[forward.key] = self._upstreams.ask(forward.key, place, forward.payload, now)
        except OSError as error:
            self._unreachable(forward.key, error)

    async def _ask_by_tcp(self, forward: Forward) -> None:
        client = forward.client
        with contextlib.ExitStack() as stack:
            try:
                async with asyncio.timeout(self._settings.upstream_timeout_s):
                    sock = sockets.speaking(client.server, forward.source, socket.SOCK_STREAM)
                    stack.callback(sock.close)
                    await self._loop.sock_connect(sock, (unpack(client.server), client.server_port))
                    reader, writer = await asyncio.open_connection(sock=sock)
                    stack.callback(writer.close)
                    writer.write(len(forward.payload).to_bytes(2) + forward.payload)
                    while forward.key in self._asked:
                        payload = await _read_message(reader)
                        self._refresh()
                        now = self._loop.time()
                        self._run(self._session.answer(forward.key, payload, now), now)
            except (OSError, EOFError) as error:
                self._unreachable(forward.key, error)

    def _unreachable(self, key: int, error: Exception) -> None:
        _log.debug("question %d: %s", key, error)
        self._run(self._session.unreachable(key), self._loop.time())

    def _close(self, close: Close, now: float) -> None:
        if (upstream := self._asked.pop(close.key, None)) is None:
            return
        if close.clean:
            self._upstreams.release(upstream, now)
        else:
            self._upstreams.close(upstream)

    # ---- upkeep ----

    async def watch(self, every_s: float) -> None:
        """Look at the rules also while nobody asks, for ever: what pods were told before counts from then on."""
        while True:
            await asyncio.sleep(every_s)
            self._refresh()

    async def upkeep(self, every_s: float) -> None:
        """Sweep the table and keep a copy of the rules, for ever."""
        while True:
            self._refresh()
            self._upstreams.expire(self._loop.time())
            self._held_back.clear()
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
