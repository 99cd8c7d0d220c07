"""The life of a daemon: signals, systemd's notify protocol and watchdog, a control socket, and the journal.

A daemon's `__main__` is then short:

    async def serve(settings: AgentSettings, unit: Unit) -> None:
        unit.command("status", lambda request: {...})
        ...
        unit.ready("3 services")
        await unit.stopping.wait()

    def main() -> None:
        start("agent", "what it does", AgentSettings, serve)  # start.py

The control socket (/run/netstack/<daemon>.sock, mode 0600) takes one JSON object a line, with a `command`, and
answers one JSON object a line: `{"ok": ...}` or `{"error": "..."}`. A command whose handler is an async generator is
answered by a line for each item, until it ends or whoever asked is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from pathlib import Path
from typing import Any

Handler = Callable[[dict[str, Any]], Any | Awaitable[Any]]

RUN = Path("/run/netstack")
LINE_LIMIT = 1 << 20
"""Longest request or answer on a control socket, bytes."""


class Unit:
    """One daemon's process, as systemd and its operator see it."""

    def __init__(self, name: str, run: Path = RUN) -> None:
        self.name = name
        self.log = logging.getLogger(name)
        self.stopping = asyncio.Event()
        self.socket_path = run / f"{name}.sock"
        self._commands: dict[str, Handler] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None

    def command(self, name: str, handler: Handler) -> None:
        """Answer control requests whose `command` is `name` with what `handler(request)` returns."""
        self._commands[name] = handler

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run `work` beside the daemon. If it fails, the daemon stops with its error: no task dies unseen."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error
            self.stopping.set()

    def ready(self, status: str) -> None:
        notify(f"READY=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        notify(f"STATUS={status}")

    async def live(self, serve: Callable[[Unit], Awaitable[None]]) -> None:
        """Open the control socket, run `serve` until it returns or a signal asks to stop, then tidy up."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopping.set)
        self.socket_path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self.socket_path.unlink()
        server = await asyncio.start_unix_server(self._connection, str(self.socket_path), limit=LINE_LIMIT)
        self.socket_path.chmod(0o600)
        self.spawn(self._watchdog(), "watchdog")
        try:
            await serve(self)
        finally:
            notify("STOPPING=1")
            server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self.socket_path.unlink(missing_ok=True)
        if self._failure is not None:
            raise self._failure

    async def _watchdog(self) -> None:
        """Tell systemd that the event loop turns, at half of the interval that it asks for."""
        interval_s = int(os.environ.get("WATCHDOG_USEC", 0)) / 2e6
        while interval_s:
            notify("WATCHDOG=1")
            await asyncio.sleep(interval_s)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ValueError):  # ValueError: a line over the limit
            while line := await reader.readline():
                answer = await self._answer(line)
                if isinstance(answer.get("ok"), AsyncGenerator):
                    await self._stream(answer["ok"], reader, writer)
                    break
                await _say(writer, answer)
        writer.close()

    async def _stream(
        self, items: AsyncGenerator[Any, None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Every item a line, until they end or who asked hangs up."""
        async with asyncio.TaskGroup() as group:
            saying = group.create_task(self._say_all(items, writer))
            hanging_up = group.create_task(_silence(reader))
            await asyncio.wait((saying, hanging_up), return_when=asyncio.FIRST_COMPLETED)
            saying.cancel()
            hanging_up.cancel()

    async def _say_all(self, items: AsyncGenerator[Any, None], writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            try:
                async with contextlib.aclosing(items):
                    async for item in items:
                        await _say(writer, {"ok": item})
            except ConnectionError:
                raise
            except Exception as error:
                self.log.exception("a stream of answers broke")
                await _say(writer, {"error": str(error) or type(error).__name__})

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            handler = self._commands[request["command"]]
        except (ValueError, TypeError):
            return {"error": "a request is one JSON object a line, with a command"}
        except KeyError as unknown:
            return {"error": f"unknown command {unknown}; known are {', '.join(sorted(self._commands))}"}
        try:
            result = handler(request)
            return {"ok": await result if inspect.isawaitable(result) else result}
        except Exception as error:
            self.log.exception("command %s failed", request["command"])
            return {"error": str(error) or type(error).__name__}


async def _silence(reader: asyncio.StreamReader) -> None:
    """Until the other end says anything, or hangs up."""
    with contextlib.suppress(ConnectionError):
        await reader.read(1)


async def _say(writer: asyncio.StreamWriter, answer: dict[str, Any]) -> None:
    writer.write(json.dumps(answer).encode() + b"\n")
    await writer.drain()


def ask(name: str, request: dict[str, Any], *, run: Path = RUN, timeout_s: float = 5.0) -> Any:
    """One control request to a local daemon. OSError if it is not there, RuntimeError in its words if it refuses."""
    for answer in listen(name, request, run=run, timeout_s=timeout_s):
        return answer
    raise ConnectionResetError(f"{name} closed its control socket without an answer")


def listen(
    name: str, request: dict[str, Any], *, run: Path = RUN, timeout_s: float | None = None
) -> Generator[Any, None, None]:
    """Every answer to one control request, as they come. `timeout_s`: the longest silence. Errors as of `ask`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        sock.connect(str(run / f"{name}.sock"))
        sock.sendall(json.dumps(request).encode() + b"\n")
        with sock.makefile("rb") as answers:
            for line in answers:
                if not line.endswith(b"\n"):
                    raise ConnectionResetError(f"{name} ended within its answer")
                answer = json.loads(line)
                if "error" in answer:
                    raise RuntimeError(answer["error"])
                yield answer["ok"]


def notify(message: str) -> None:
    """sd_notify(3): nothing happens where no service manager listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(message.encode(), "\0" + address[1:] if address.startswith("@") else address)


class _JournalFormatter(logging.Formatter):
    """`<level>text`, which journald understands (sd-daemon(3)); the journal adds time, unit and host."""

    LEVELS = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{self.LEVELS.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def log_to_journal() -> None:
    handler = logging.StreamHandler(sys.stderr)
    if os.environ.get("JOURNAL_STREAM"):
        handler.setFormatter(_JournalFormatter("%(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def run(name: str, serve: Callable[[Unit], Awaitable[None]]) -> None:
    """Live as the daemon `name` until told to stop; exit code 1 with the reason in the journal if it fails."""
    log_to_journal()

    async def live() -> None:
        await Unit(name).live(serve)

    try:
        asyncio.run(live())
    except Exception as error:
        logging.getLogger(name).exception("stopped: %s", error)
        sys.exit(1)
