"""The socket against a HAProxy of words: what is said, and what is understood. The real one: tests/integration."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from netstack.core.address import pack
from netstack.ingress.haproxy import (
    Refused,
    Runtime,
    escape,
    parse_crt_list,
    parse_fingerprint,
    parse_map,
    parse_servers,
    process,
)
from netstack.ingress.routes import Target

SERVERS = """1
# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight
4 p1 1 s0 10.0.0.1 2 4 1 1 0 1 0 0 8 0 0 0 - 8080 - 0 0 - - 0
3 p0 2 s1 127.0.0.1 0 5 1 1 2 1 0 0 8 0 0 0 - 1 - 0 0 - - 0
3 p0 1 s0 fd00::1 2 0 1 1 2 1 0 0 8 0 0 0 - 80 - 0 0 - - 0
2 gone 1 s0 10.0.0.9 2 0 1 1 2 1 0 0 8 0 0 0 - 80 - 0 0 - - 0
"""


def test_servers_in_maintenance_are_free_slots() -> None:
    first = (Target(pack("fd00::1"), 80), None)
    assert parse_servers(SERVERS) == (first, (Target(pack("10.0.0.1"), 8080),))


def test_maps_lists_and_fingerprints() -> None:
    assert parse_map("0x55 a.lab/ p0|-|1|0|-|a/b/0/0\n0x56 b.lab/x/? 404|-\n") == {
        "a.lab/": "p0|-|1|0|-|a/b/0/0",
        "b.lab/x/?": "404|-",
    }
    assert parse_crt_list("# /c/crt-list\n/c/a.pem a.lab *.b.lab\n") == {"/c/a.pem": ("a.lab", "*.b.lab")}
    assert parse_fingerprint(f"Filename: x\nSHA1 FingerPrint: {'AB' * 20}\n") == "AB" * 20
    assert parse_fingerprint("Can't display") == ""


def test_a_word_stays_one_word() -> None:
    assert escape(r"/c/a b;c\d") == r"/c/a\ b\;c\\d"
    with pytest.raises(ValueError, match="line end"):
        escape("a\nb")


def talk(folder: Path, answers: dict[str, str], work: Callable[[Runtime], Awaitable[None]]) -> list[str]:
    """Run `work` against a socket that answers commands from a table; everything that was said on it."""
    heard: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := (await reader.readline()).decode():
            heard.append(line)
            prompts = ""
            if line.endswith(" <<\n"):
                while (more := (await reader.readline()).decode()) != "\n":
                    heard.append(more)
                    prompts += "\n+ "
            answer = answers.get(line.split(" <<")[0].strip(), "")
            if answer == "(gone)":
                break
            writer.write(f"{prompts}{answer}\n> ".encode() if not answer else f"{prompts}{answer}\n\n> ".encode())
        writer.close()

    async def run() -> None:
        server = await asyncio.start_unix_server(serve, folder / "sock")
        runtime = Runtime(folder / "sock")
        await runtime.connect()
        try:
            await work(runtime)
        finally:
            runtime.close()
            server.close()

    asyncio.run(run())
    return heard


def test_one_connection_carries_commands_and_payloads(tmp_path: Path) -> None:
    async def work(runtime: Runtime) -> None:
        assert (await process(runtime)).config == "hash"
        assert await runtime.order("add map @1 /m", "a b\nc d\n") == ""
        await runtime.order("commit ssl cert x", expect="Success!")

    info = "Name: HAProxy\nVersion: 2.6.12\nPid: 7\ndescription: netstack hash"
    heard = talk(tmp_path, {"show info": info, "commit ssl cert x": "Committing x.\nSuccess!"}, work)
    assert heard == ["prompt\n", "show info\n", "add map @1 /m <<\n", "a b\n", "c d\n", "commit ssl cert x\n"]


def test_an_unexpected_answer_is_a_refusal_in_its_words(tmp_path: Path) -> None:
    async def work(runtime: Runtime) -> None:
        with pytest.raises(Refused, match="add map @1 /m: Unknown map identifier"):
            await runtime.order("add map @1 /m", "a b\n")
        with pytest.raises(Refused, match="prepare map /m: "):
            await runtime.order("prepare map /m", expect="New version created")

    talk(tmp_path, {"add map @1 /m": "Unknown map identifier.\n"}, work)


def test_a_payload_that_would_end_early_is_not_sent(tmp_path: Path) -> None:
    async def work(runtime: Runtime) -> None:
        for payload in ("a\n\nb\n", "a"):
            with pytest.raises(ValueError, match="payload"):
                await runtime.ask("set ssl cert x", payload)

    assert talk(tmp_path, {}, work) == ["prompt\n"]


def test_a_process_that_goes_away_is_an_end_of_file(tmp_path: Path) -> None:
    async def work(runtime: Runtime) -> None:
        with pytest.raises((EOFError, OSError)):
            await runtime.ask("show info")

    talk(tmp_path, {"show info": "(gone)"}, work)


def test_nothing_is_asked_without_a_connection() -> None:
    with pytest.raises(ConnectionError):
        asyncio.run(Runtime(Path("/nowhere")).ask("show info"))
