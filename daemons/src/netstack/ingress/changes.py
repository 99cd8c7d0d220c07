"""From the state that HAProxy is in to the one that it should be in: an ordered list of changes, or a reload.

The order never points at what is not there: endpoints into slots, certificates, then all routes at once; what is no
longer used goes after that, in reverse. A slot that gets another endpoint is in maintenance in between (maint, addr,
ready), or requests for the new one could still go to the old.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from netstack.ingress.render import State, Wanted, crt_list_line
from netstack.ingress.routes import Target

PAYLOAD = 15_000
"""Most bytes in one command. HAProxy silently drops a payload that does not fit its buffer (tune.bufsize, 16384)."""


@dataclass(frozen=True, slots=True)
class SetSlot:
    """Give a slot an endpoint, or take it away (None)."""

    pool: int
    slot: int
    target: Target | None


@dataclass(frozen=True, slots=True)
class AddCertificate:
    path: str
    pem: str
    hosts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReplaceDefault:
    """Another key pair in the place of the default one."""

    pem: str


@dataclass(frozen=True, slots=True)
class ReplaceRoutes:
    """All routes, in one step."""

    entries: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class DropCertificate:
    path: str


@dataclass(frozen=True, slots=True)
class Reload:
    """The runtime socket cannot do it."""

    reason: str


Change = SetSlot | AddCertificate | ReplaceDefault | ReplaceRoutes | DropCertificate | Reload


def changes(live: State, wanted: Wanted) -> list[Change]:
    """What turns `live` into `wanted`, in order; a Reload stands alone. Empty if they are equal."""
    state = wanted.state
    if live.config != state.config:
        return [Reload("haproxy.cfg is another one")]
    if [len(pool) for pool in live.pools] != [len(pool) for pool in state.pools]:
        return [Reload(f"{len(state.pools)} pools with {sum(map(len, state.pools))} slots are needed")]
    added = [path for path in sorted(state.certificates) if path not in live.certificates]
    dropped = [path for path in sorted(live.certificates) if path not in state.certificates]
    for path in added:
        if max(len(wanted.pems[path]), len(crt_list_line(path, state.certificates[path]))) > PAYLOAD:
            return [Reload(f"{path} is too long for the runtime socket")]
    taken, freed = _slots(live, state)
    plan: list[Change] = [*taken]
    plan += [AddCertificate(path, wanted.pems[path], state.certificates[path]) for path in added]
    if live.default_certificate != state.default_certificate:
        plan.append(ReplaceDefault(wanted.default_pem))
    if live.routes != state.routes:
        plan.append(ReplaceRoutes(state.routes))
    return [*plan, *[DropCertificate(path) for path in dropped], *freed]


def _slots(live: State, state: State) -> tuple[list[SetSlot], list[SetSlot]]:
    """Slots that get an endpoint, and those that lose theirs."""
    taken: list[SetSlot] = []
    freed: list[SetSlot] = []
    for pool, (before, after) in enumerate(zip(live.pools, state.pools, strict=True)):
        for slot, (old, new) in enumerate(zip(before, after, strict=True)):
            if old != new:
                (freed if new is None else taken).append(SetSlot(pool, slot, new))
    return taken, freed


def slot_commands(change: SetSlot) -> Iterator[str]:
    """`maint` first also for a free slot: its state may be anything after somebody else's hands were on it."""
    server = f"p{change.pool}/s{change.slot}"
    yield f"set server {server} state maint"
    if change.target is not None:
        yield f"set server {server} addr {change.target.host} port {change.target.port}"
        yield f"set server {server} state ready"


def chunks(entries: Mapping[str, str]) -> Iterator[str]:
    """The map's lines in payloads of at most PAYLOAD bytes."""
    lines: list[str] = []
    size = 0
    for key, value in sorted(entries.items()):
        line = f"{key} {value}\n"
        if lines and size + len(line) > PAYLOAD:
            yield "".join(lines)
            lines, size = [], 0
        lines.append(line)
        size += len(line)
    if lines:
        yield "".join(lines)
