import asyncio
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from netstack.core.unit import Unit, ask, listen


def live(tmp_path: Path, serve: Any) -> Unit:
    """Run a daemon in this process until it ends."""

    async def main() -> Unit:
        unit = Unit("sample", run=tmp_path)
        await asyncio.wait_for(unit.live(serve), 10)
        return unit

    return asyncio.run(main())


def test_a_command_is_answered_and_errors_keep_their_words(tmp_path: Path) -> None:
    answers: list[Any] = []

    def fail(request: dict[str, Any]) -> None:
        raise ValueError(f"no such pod {request['pod']}")

    async def serve(unit: Unit) -> None:
        unit.command("status", lambda request: {"services": 3})
        unit.command("pod", fail)
        answers.append(await asyncio.to_thread(ask, "sample", {"command": "status"}, run=tmp_path))
        for request in ({"command": "pod", "pod": "a/b"}, {"command": "nope"}, {}):
            with pytest.raises(RuntimeError) as error:
                await asyncio.to_thread(ask, "sample", request, run=tmp_path)
            answers.append(str(error.value))

    live(tmp_path, serve)
    assert answers[:2] == [{"services": 3}, "no such pod a/b"]
    assert answers[2].startswith("unknown command 'nope'; known are pod, status")
    assert not (tmp_path / "sample.sock").exists()


def test_half_an_answer_is_none(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "sample.sock"))
        server.listen()

        def die_within_the_answer() -> None:
            with server.accept()[0] as connection:
                connection.recv(1 << 10)
                connection.sendall(b'{"ok": {"ready"')

        thread = threading.Thread(target=die_within_the_answer)
        thread.start()
        with pytest.raises(ConnectionResetError, match="sample ended within its answer"):
            ask("sample", {"command": "status"}, run=tmp_path)
        thread.join()


def test_text_that_is_no_request_gets_an_answer(tmp_path: Path) -> None:
    async def serve(unit: Unit) -> None:
        reader, writer = await asyncio.open_unix_connection(str(unit.socket_path))
        writer.write(b"hello\n")
        assert b"one JSON object a line" in await reader.readline()
        writer.close()

    live(tmp_path, serve)


def test_a_signal_stops_it(tmp_path: Path) -> None:
    async def serve(unit: Unit) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await unit.stopping.wait()

    assert live(tmp_path, serve).stopping.is_set()


def test_a_task_that_fails_stops_the_daemon_with_its_error(tmp_path: Path) -> None:
    async def broken() -> None:
        raise RuntimeError("the wire is cut")

    async def serve(unit: Unit) -> None:
        unit.spawn(broken(), "wire")
        await unit.stopping.wait()

    with pytest.raises(RuntimeError, match="the wire is cut"):
        live(tmp_path, serve)


def test_systemd_hears_ready_watchdog_and_stopping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    heard.bind(str(tmp_path / "notify"))
    heard.settimeout(5)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "100000")

    async def serve(unit: Unit) -> None:
        unit.ready("3 services")
        await asyncio.to_thread(heard.recv, 100)

    live(tmp_path, serve)
    heard.setblocking(False)
    messages = []
    while True:
        try:
            messages.append(heard.recv(100).decode())
        except BlockingIOError:
            break
    heard.close()
    assert "WATCHDOG=1" in messages and messages[-1] == "STOPPING=1"


def test_a_command_may_answer_line_by_line_until_who_asked_is_gone(tmp_path: Path) -> None:
    heard: list[Any] = []
    ended = asyncio.Event()

    async def endless(request: dict[str, Any]) -> Any:
        try:
            number = 0
            while True:
                yield number
                number += 1
                await asyncio.sleep(0)
        finally:
            ended.set()

    def take(count: int) -> None:
        for item in listen("sample", {"command": "count"}, run=tmp_path, timeout_s=5):
            heard.append(item)
            if len(heard) == count:
                return

    async def serve(unit: Unit) -> None:
        unit.command("count", endless)
        await asyncio.to_thread(take, 3)
        await ended.wait()

    live(tmp_path, serve)
    assert heard == [0, 1, 2]


def test_who_waits_in_silence_is_let_go_when_it_hangs_up(tmp_path: Path) -> None:
    ended = asyncio.Event()

    async def silent(request: dict[str, Any]) -> Any:
        try:
            yield "first"
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def serve(unit: Unit) -> None:
        unit.command("wait", silent)
        reader, writer = await asyncio.open_unix_connection(str(unit.socket_path))
        writer.write(b'{"command": "wait"}\n')
        assert await reader.readline() == b'{"ok": "first"}\n'
        writer.close()
        await ended.wait()

    live(tmp_path, serve)


def test_a_stream_that_breaks_says_why(tmp_path: Path) -> None:
    async def broken(request: dict[str, Any]) -> Any:
        yield 1
        raise ValueError("filter pod: unknown")

    heard: list[Any] = []

    def take() -> None:
        with pytest.raises(RuntimeError, match="filter pod: unknown"):
            heard.extend(listen("sample", {"command": "go"}, run=tmp_path, timeout_s=5))

    async def serve(unit: Unit) -> None:
        unit.command("go", broken)
        await asyncio.to_thread(take)

    live(tmp_path, serve)
