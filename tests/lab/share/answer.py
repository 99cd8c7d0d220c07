"""A server that answers who was asked, by whom, and how: the internet of the lab, and its pods' web applications.

It has no dependency beyond Python's own library, so that it runs in the nodes as it is:

    answer.py --name web-1 --http 8080 --https 8443 --cert cert.pem --key key.pem --tcp 7 --udp 7

HTTP and HTTPS (HTTP/1.1, kept alive):
    /bytes/N      N bytes of body
    /wait/S       the answer comes after S seconds
    /ws           RFC 6455 websocket that sends every message back (an upgrade request)
    anything      a JSON object: name, method, path, host, sni, client, client_port, server, server_port, headers
TCP and UDP ports echo what they get; a UDP datagram comes back with "<name> <client> " before it.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import json
import ssl
from typing import Any

WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10  # RFC 6455 section 5.2, opcodes


class Hangup(Exception):
    """The peer ended the connection or said something that is not HTTP."""


async def read_request(reader: asyncio.StreamReader) -> tuple[str, str, dict[str, str]]:
    """Method, path and headers (names in lower case) of the next request; its body is read and dropped."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        method, path, _ = first.split(" ", 2)
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        await reader.readexactly(int(headers.get("content-length", "0")))
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, ValueError) as error:
        raise Hangup from error
    return method, path, headers


def who(writer: asyncio.StreamWriter) -> dict[str, Any]:
    client, server = writer.get_extra_info("peername"), writer.get_extra_info("sockname")
    tls = writer.get_extra_info("ssl_object")
    return {
        "sni": getattr(tls, "asked_name", None),
        "client": client[0],
        "client_port": client[1],
        "server": server[0],
        "server_port": server[1],
    }


async def websocket(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str) -> None:
    """Answer the opening handshake and echo every message until the peer closes."""
    accept = base64.b64encode(hashlib.sha1(key.encode() + WEBSOCKET_GUID).digest())
    writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )
    while True:
        first, second = await reader.readexactly(2)
        opcode, size = first & 0x0F, second & 0x7F
        if size > 125:
            size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8), "big")
        mask = await reader.readexactly(4)  # a client must mask (section 5.1)
        data = bytes(byte ^ mask[i % 4] for i, byte in enumerate(await reader.readexactly(size)))
        reply = {PING: PONG}.get(opcode, opcode)
        length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2, "big")
        writer.write(bytes([first & 0xF0 | reply]) + length + data)
        await writer.drain()
        if opcode == CLOSE:
            return


class Answer:
    def __init__(self, name: str) -> None:
        self.name = name

    async def http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(Hangup, ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            while True:
                method, path, headers = await read_request(reader)
                if key := headers.get("sec-websocket-key"):
                    await websocket(reader, writer, key)
                    break
                await self.respond(writer, method, path, headers)
                if headers.get("connection", "").lower() == "close":
                    break
        writer.close()

    async def respond(self, writer: asyncio.StreamWriter, method: str, path: str, headers: dict[str, str]) -> None:
        verb, _, argument = path.strip("/").partition("/")
        kind = "application/json"
        if verb == "bytes" and argument.isdigit():
            body, kind = b"n" * int(argument), "application/octet-stream"
        else:
            if verb == "wait":
                await asyncio.sleep(float(argument))
            facts = {"name": self.name, "method": method, "path": path, "host": headers.get("host"), **who(writer)}
            body = json.dumps({**facts, "headers": headers}).encode() + b"\n"
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nServer: {self.name}\r\n\r\n"
        writer.write(head.encode() + (b"" if method == "HEAD" else body))
        await writer.drain()

    async def tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()


class UdpEcho(asyncio.DatagramProtocol):
    def __init__(self, name: str) -> None:
        self.name = name

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport  # asyncio's own class is no DatagramTransport in Debian's Python 3.11

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(f"{self.name} {addr[0]} ".encode() + data, addr)


def tls(cert: str, key: str) -> ssl.SSLContext:
    def remember(connection: Any, name: str | None, _: ssl.SSLContext) -> None:
        connection.asked_name = name

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    context.sni_callback = remember
    return context


async def serve(options: argparse.Namespace) -> None:
    answer, loop = Answer(options.name), asyncio.get_running_loop()
    for port in options.udp:
        await loop.create_datagram_endpoint(lambda: UdpEcho(options.name), (options.bind, port))
    for port in options.http:
        await asyncio.start_server(answer.http, options.bind, port)
    for port in options.https:
        await asyncio.start_server(answer.http, options.bind, port, ssl=tls(options.cert, options.key))
    for port in options.tcp:
        await asyncio.start_server(answer.tcp, options.bind, port)
    await loop.create_future()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True)
    parser.add_argument("--bind", default="0.0.0.0")
    parser.add_argument("--cert")
    parser.add_argument("--key")
    for kind in ("http", "https", "tcp", "udp"):
        parser.add_argument(f"--{kind}", type=int, nargs="*", default=[], metavar="PORT")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
