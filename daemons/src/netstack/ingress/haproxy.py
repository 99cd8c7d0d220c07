"""The runtime socket of HAProxy (management.txt, section 9.3): one persistent connection, each command answered.

The only place that changes a running HAProxy. Nothing is believed: after the changes the state is read back, and if
it is not the wanted one, HAProxy is reloaded from the files, which hold the same state. Reloads are counted with
their reasons; in normal life there are none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from netstack.core.address import pack
from netstack.ingress.changes import (
    AddCertificate,
    Change,
    DropCertificate,
    Reload,
    ReplaceDefault,
    ReplaceRoutes,
    SetSlot,
    changes,
    chunks,
    slot_commands,
)
from netstack.ingress.render import State, Wanted, crt_list_line
from netstack.ingress.routes import Target
from netstack.ingress.settings import IngressSettings

PROMPT = b"\n> "
PAYLOAD_PROMPT = re.compile(r"\A(\n*\+ )+")
"""HAProxy asks for each line of a payload."""
ANSWER_LIMIT = 64 << 20
"""Longest answer, bytes: 100,000 routes are about 10 MB."""
TIMEOUT_S = 10.0
RELOAD_TIMEOUT_S = 15.0
MAINTENANCE = 1
"""SRV_ADMF_FMAINT in srv_admin_state."""

log = logging.getLogger("haproxy")


class Refused(Exception):
    """HAProxy did not do what a command asked for."""


@dataclass(frozen=True, slots=True)
class Process:
    """The worker that answers on the socket."""

    pid: int
    version: str
    config: str


def escape(word: str) -> str:
    """One word of a command line: backslash, semicolon and space end or join commands otherwise."""
    if "\n" in word or "\r" in word:
        raise ValueError("a word of a command cannot hold a line end")
    return re.sub(r"([\\; ])", r"\\\1", word)


class Runtime:
    """A connection in prompt mode. OSError or EOFError from any call: it is gone, `close` it and connect anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def connect(self) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            self._reader, self._writer = await asyncio.open_unix_connection(str(self._path), limit=ANSWER_LIMIT)
        await self.ask("prompt")

    @property
    def connected(self) -> bool:
        return self._writer is not None

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def ask(self, command: str, payload: str = "") -> str:
        """One command, with its payload if it takes one, and the text that it answers."""
        if self._reader is None or self._writer is None:
            raise ConnectionError("not connected")
        if payload and ("\n\n" in payload or not payload.endswith("\n")):
            raise ValueError("an empty line ends a payload, and only that")
        text = f"{command} <<\n{payload}\n" if payload else f"{command}\n"
        self._writer.write(text.encode())
        async with asyncio.timeout(TIMEOUT_S):
            await self._writer.drain()
            try:
                answer = await self._reader.readuntil(PROMPT)
            except asyncio.LimitOverrunError as error:
                raise ConnectionError(f"{command}: an answer of more than {ANSWER_LIMIT} bytes") from error
        said = answer.decode(errors="replace").removesuffix(PROMPT.decode())
        if payload:
            said = PAYLOAD_PROMPT.sub("", said)
        return said.strip("\n")

    async def order(self, command: str, payload: str = "", *, expect: str = "") -> str:
        """Like `ask`; Refused unless the answer matches the pattern `expect` (empty: no answer at all)."""
        answer = await self.ask(command, payload)
        if not re.search(expect, answer) if expect else answer:
            raise Refused(f"{command}: {' '.join(answer.split())}")
        return answer


async def process(runtime: Runtime) -> Process:
    info = dict(line.split(": ", 1) for line in (await runtime.ask("show info")).splitlines() if ": " in line)
    return Process(int(info["Pid"]), info["Version"], info.get("description", "").removeprefix("netstack "))


async def read_state(runtime: Runtime, settings: IngressSettings) -> State:
    """What the running process holds."""
    state = settings.state
    return State(
        config=(await process(runtime)).config,
        pools=parse_servers(await runtime.ask("show servers state")),
        routes=parse_map(await runtime.ask(f"show map {state}/routes.map")),
        certificates=parse_crt_list(await runtime.ask(f"show ssl crt-list {state}/crt-list")),
        default_certificate=parse_fingerprint(await runtime.ask(f"show ssl cert {state}/default.pem")),
    )


def parse_servers(text: str) -> tuple[tuple[Target | None, ...], ...]:
    """`show servers state`: the slots of each pool, in order. A server in maintenance is a free slot."""
    pools: dict[int, dict[int, Target | None]] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) < 19 or not re.fullmatch(r"p\d+", words[1]):
            continue
        free = int(words[6]) & MAINTENANCE
        target = None if free else Target(pack(words[4]), int(words[18]))
        pools.setdefault(int(words[1][1:]), {})[int(words[3][1:])] = target
    return tuple(tuple(slots[index] for index in sorted(slots)) for _, slots in sorted(pools.items()))


def parse_map(text: str) -> dict[str, str]:
    """`show map FILE`: lines of address, key and value."""
    entries = {}
    for line in text.splitlines():
        words = line.split(" ", 2)
        if len(words) == 3:
            entries[words[1]] = words[2]
    return entries


def parse_crt_list(text: str) -> dict[str, tuple[str, ...]]:
    """`show ssl crt-list FILE`: lines of file and hosts."""
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    return {words[0]: tuple(words[1:]) for words in lines}


def parse_fingerprint(text: str) -> str:
    match = re.search(r"^SHA1 FingerPrint: ([0-9A-F]{40})", text, re.MULTILINE)
    return match[1] if match else ""


@dataclass(slots=True)
class Proxy:
    """HAProxy as the daemon sees it: brought to a wanted state, watched, and reloaded when nothing else helps."""

    settings: IngressSettings
    runtime: Runtime
    reloads: list[str] = field(default_factory=list)
    """Reasons of the reloads so far. Meant to stay empty."""
    changed: int = 0
    """Changes made over the socket so far."""
    live: State | None = None
    """The state that was read back last."""
    pid: int = 0

    async def alive(self) -> Process | None:
        """The worker that answers now, None if there is none. Another worker's state is not known yet."""
        for _ in range(2):  # the second time on a new connection: the worker of the old one may be gone
            try:
                if not self.runtime.connected:
                    await self.runtime.connect()
                found = await process(self.runtime)
            except (OSError, EOFError):
                self.runtime.close()
                continue
            if found.pid != self.pid:
                self.pid, self.live = found.pid, None
            return found
        self.pid, self.live = 0, None
        return None

    async def reach(self, wanted: Wanted) -> None:
        """Make the running process hold `wanted`, whose files are on disk already.

        Raises OSError or EOFError if HAProxy goes away meanwhile (it starts from the files then), Refused if even
        after a reload it holds something else.
        """
        live = self.live or await read_state(self.runtime, self.settings)
        plan = changes(live, wanted)
        if not plan:
            self.live = live
            return
        self.live = None
        reason = await self._perform(plan)
        if reason is None:
            self.live = await read_state(self.runtime, self.settings)
            if self.live == wanted.state:
                return
            reason = "the state read back is not the wanted one"
        await self._reload(reason)
        self.live = await read_state(self.runtime, self.settings)
        if self.live != wanted.state:
            self.live = None
            raise Refused("HAProxy holds another state than its files, even after a reload")

    async def _perform(self, plan: Iterable[Change]) -> str | None:
        """Make the changes; why a reload is needed if that did not work."""
        for change in plan:
            if isinstance(change, Reload):
                return change.reason
            try:
                await self._change(change)
            except Refused as refused:
                return str(refused)
            self.changed += 1
        return None

    async def _change(self, change: Change) -> None:
        state, runtime = self.settings.state, self.runtime
        if isinstance(change, SetSlot):
            for command in slot_commands(change):
                await runtime.ask(command)
        elif isinstance(change, ReplaceRoutes):
            await self._replace_map(f"{state}/routes.map", change)
        elif isinstance(change, AddCertificate):
            path = escape(change.path)
            await self._forget(path)
            await runtime.order(f"new ssl cert {path}", expect="^New empty")
            await self._load(path, change.pem)
            line = crt_list_line(change.path, change.hosts) + "\n"
            await runtime.order(f"add ssl crt-list {state}/crt-list", line, expect="Success!")
        elif isinstance(change, ReplaceDefault):
            await self._load(f"{state}/default.pem", change.pem)
        elif isinstance(change, DropCertificate):
            path = escape(change.path)
            await runtime.order(f"del ssl crt-list {state}/crt-list {path}", expect="deleted")
            await runtime.order(f"del ssl cert {path}", expect="deleted")

    async def _forget(self, path: str) -> None:
        """Drop what an interrupted earlier attempt may have left: a store that no list uses."""
        await self.runtime.ask(f"abort ssl cert {path}")
        await self.runtime.ask(f"del ssl cert {path}")

    async def _load(self, path: str, pem: str) -> None:
        await self.runtime.order(f"set ssl cert {path}", pem, expect="^Transaction (created|updated)")
        await self.runtime.order(f"commit ssl cert {path}", expect="Success!")

    async def _replace_map(self, path: str, change: ReplaceRoutes) -> None:
        """Fill a new version of the map, count it, and make it the one that is asked, in one step."""
        answer = await self.runtime.order(f"prepare map {path}", expect=r"New version created: \d+")
        version = answer.rsplit(": ", 1)[1]
        for chunk in chunks(change.entries):
            await self.runtime.order(f"add map @{version} {path}", chunk)
        filled = len(parse_map(await self.runtime.ask(f"show map @{version} {path}")))
        if filled != len(change.entries):
            raise Refused(f"{filled} of {len(change.entries)} routes arrived in the new version of the map")
        await self.runtime.order(f"commit map @{version} {path}")

    async def _reload(self, reason: str) -> None:
        """Ask the master for a new worker and wait until it answers."""
        log.warning("reload: %s", reason)
        self.reloads.append(reason)
        old = self.pid
        async with asyncio.timeout(TIMEOUT_S):
            _, writer = await asyncio.open_unix_connection(str(self.settings.master_socket))
            with contextlib.closing(writer):
                writer.write(b"reload\n")
                await writer.drain()
        async with asyncio.timeout(RELOAD_TIMEOUT_S):
            while True:
                self.runtime.close()
                found = await self.alive()
                if found is not None and found.pid != old:
                    return
                await asyncio.sleep(0.05)
