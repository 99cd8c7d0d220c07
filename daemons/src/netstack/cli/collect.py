"""Looks at the node: control sockets, pinned maps, attached programs, the active release.

Everything but the daemons' own words comes from the kernel, so that a node whose daemons are down can still be asked.
"""

from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from netstack.cli.status import DAEMONS, Daemon, Facts, Vip
from netstack.core.address import unpack
from netstack.core.errors import BadConfig
from netstack.core.unit import RUN, ask
from netstack.kernel import layout
from netstack.kernel.attach import POD, UPLINK, TrafficControl, carried, guarded, pinned_ids
from netstack.kernel.bpf import BpfError, Map, Program, query_cgroup
from netstack.kernel.flows import FlowTables
from netstack.kernel.loader import LoaderSettings, load_settings
from netstack.kernel.programs import CGROUP, PROGRAMS

CONFIG = Path("/etc/netstack")
CURRENT = Path("/opt/netstack/current")
UNCOUNTED = (layout.ARRAY, layout.PERCPU_ARRAY, layout.RINGBUF)
"""Arrays are always full, and a ring has no entries."""


def collect(*, config: Path = CONFIG, current: Path = CURRENT, run: Path = RUN) -> Facts:
    """Everything that `netstack status` shows. What cannot be read is a reason in the answer, not an exception."""
    daemons = {name: _daemon(name, run) for name in DAEMONS if (config / f"{name}.yaml").exists()}
    try:
        datapath = load_settings(config / "agent.yaml")
    except (OSError, BadConfig):  # the agent says what is wrong with it
        datapath = LoaderSettings()
    tables = {name: table for name in layout.MAPS if (table := _table(Path(datapath.pins) / "maps" / name))}
    present, missing = _programs(datapath, tables)
    agent = daemons.get("agent", Daemon(None)).report or {}
    return Facts(
        node=agent.get("node") or platform.node(),
        release=current.resolve().name if current.exists() else None,
        daemons=daemons,
        missing_programs=tuple(missing),
        programs=tuple(present),
        maps={name: _fill(table) for name, table in tables.items() if layout.MAPS[name].kind not in UNCOUNTED}
        | _fullest(tables, datapath),
        vips=tuple(_vips(tables["vips"])) if "vips" in tables else (),
        counters=tables["counters"].sums() if "counters" in tables else {},
    )


def _daemon(name: str, run: Path) -> Daemon:
    try:
        return Daemon(ask(name, {"command": "status"}, run=run))
    except (FileNotFoundError, ConnectionRefusedError):
        return Daemon(None, "it does not run")
    except (OSError, RuntimeError) as error:
        return Daemon(None, str(error))


def _table(path: Path) -> Map | None:
    try:
        return Map.open(path)
    except BpfError:
        return None


def _fill(table: Map) -> tuple[int, int]:
    return sum(1 for _ in table.items()), table.definition.entries


def _fullest(tables: dict[str, Map], datapath: LoaderSettings) -> dict[str, tuple[int, int]]:
    """The flows of the endpoint that has come nearest to its budget."""
    if "conntrack" not in tables:
        return {}
    every = FlowTables(tables["conntrack"], datapath.definition("flows")).all()
    fills = [_fill(table) for _, table in every]
    return {"flows": max(fills, key=lambda fill: fill[0] / fill[1])} if fills else {}


def _programs(datapath: LoaderSettings, tables: dict[str, Map]) -> tuple[list[str], list[str]]:
    """(what is attached where, what should be and is not)."""
    present: list[str] = []
    missing: list[str] = []

    def note(found: bool, text: str) -> None:
        (present if found else missing).append(text)

    cgroup = os.open(datapath.cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name, spec in PROGRAMS.items():
            if spec.hook == CGROUP:
                path = Path(datapath.pins) / "progs" / name
                note(_pinned_id(path) in query_cgroup(cgroup, spec.attach_type), f"{name} at {datapath.cgroup}")
    finally:
        os.close(cgroup)
    with TrafficControl() as traffic:
        uplink = {name for name, index in _devices() if name == datapath.uplink for name in carried(traffic, index)}
        for name in UPLINK:
            note(name in uplink, f"{name} at {datapath.uplink}")
        names = {index: name for name, index in _devices()}
        for _, value in tables["endpoints"].items() if "endpoints" in tables else ():
            ifindex = layout.Endpoint.unpack(value).ifindex
            if ifindex in names:
                held = guarded(traffic, pinned_ids(Path(datapath.pins)), ifindex)
                note(held, f"{', '.join(POD)} at {names[ifindex]}")
    return present, missing


def _devices() -> list[tuple[str, int]]:
    return [(name, index) for index, name in socket.if_nameindex()]


def _pinned_id(path: Path) -> int | None:
    try:
        with Program.open(path) as program:
            return int(program.id)
    except BpfError:
        return None


def _vips(table: Map) -> Iterator[Vip]:
    now_ns = time.monotonic_ns()
    devices = {index: name for name, index in _devices()}
    for packed, value in sorted(table.items()):
        key, vip = layout.VipKey.unpack(packed), layout.Vip.unpack(value)
        left_s = (vip.deadline - now_ns) / 1e9
        yield Vip(unpack(key.address), devices.get(key.ifindex, f"#{key.ifindex}"), left_s, ever=vip.deadline > 0)
