"""One websocket conversation: echo.py ADDRESS NAME. Prints what came back for `light.on`."""

from __future__ import annotations

import asyncio
import base64
import os
import sys


async def main() -> None:
    address, name = sys.argv[1:]
    reader, writer = await asyncio.wait_for(asyncio.open_connection(address, 80), 5)
    key = base64.b64encode(os.urandom(16)).decode()
    head = f"GET /ws HTTP/1.1\r\nHost: {name}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    writer.write(f"{head}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode())
    status = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    mask, message = os.urandom(4), b"light.on"
    masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(message))
    writer.write(bytes([0x81, 0x80 | len(message)]) + mask + masked)  # RFC 6455 section 5.2: text, masked
    frame = await asyncio.wait_for(reader.readexactly(2 + len(message)), 5)
    print(status.split(b"\r\n")[0].decode(), "echo:", frame[2:].decode())
    writer.close()


asyncio.run(main())
