"""netstack-loader: put the programs into the kernel, where they stay; then end.

The order never leaves a gap and never half a set: probe the kernel, have the compiled set (from the cache, else from a
short-lived compiler), open or create every map, load every program, and only then pin and attach. A second start finds
the same maps and the same programs (by the kernel's tag, and by the maps they use) and touches nothing; a changed
program replaces its predecessor at each hook in one step.

A map whose pinned definition differs from ours is an error that names both: its content belongs to programs that run,
and nothing is changed then.

The kernel needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON for this, and nothing else.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib.metadata
import logging
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from netstack.core import documents, settings
from netstack.core.errors import BadConfig
from netstack.kernel import layout, probe, programs
from netstack.kernel.attach import POD, UPLINK, Occupied, TrafficControl, carried
from netstack.kernel.bpf import (
    BpfError,
    Map,
    MapDefinition,
    Program,
    attach_cgroup,
    detach_cgroup,
    query_cgroup,
)
from netstack.kernel.netlink import Link
from netstack.kernel.programs import CGROUP, PROGRAMS, Compiled

ALL_MAPS = layout.MAPS | layout.INNER
KEPT = 16
"""Compiled sets, of 250 kB each: those that were used last, so that another kernel or the release before needs no
compiler."""
log = logging.getLogger("netstack-loader")


class LoaderError(Exception):
    """The programs cannot be put in force. The text says what lacks; what was in force still is."""


@dataclass(frozen=True, slots=True)
class LoaderSettings:
    """The key `datapath` of agent.yaml."""

    uplink: str = "eth0"
    """Device towards the LAN and the other nodes."""

    bpf_source: str = ""
    """Folder of the programs' sources; by default that of the release that is running."""

    pins: str = "/sys/fs/bpf/netstack"
    """Folder below a bpffs: maps in maps/, programs in progs/."""

    cache: str = "/var/cache/netstack/programs"
    """Folder of compiled programs. May be emptied at any time: the next start compiles."""

    cgroup: str = "/sys/fs/cgroup"
    """cgroup v2 folder whose processes' sockets are translated: the root, so that pods and node alike."""

    sizes: dict[str, int] = field(default_factory=dict)
    """Entries of maps that shall differ from kernel/layout.py, by map name. A running node needs a reboot to change;
    `flows`, the budget of each endpoint, counts for endpoints that come."""

    def __post_init__(self) -> None:
        for name, entries in self.sizes.items():
            if name not in ALL_MAPS:
                raise ValueError(f"sizes: there is no map {name!r}; there are {', '.join(sorted(ALL_MAPS))}")
            if not 1 <= entries <= 1 << 24:
                raise ValueError(f"sizes: {name} must have 1 to {1 << 24} entries, not {entries}")

    @property
    def sources(self) -> Path:
        return Path(self.bpf_source or Path(sys.prefix) / "share" / "netstack" / "bpf")

    def definition(self, name: str) -> MapDefinition:
        """How the map of this name shall be."""
        spec = ALL_MAPS[name]
        return MapDefinition(
            spec.kind, spec.key.size(), spec.value.size(), self.sizes.get(name, spec.entries), spec.flags
        )

    def create(self, name: str) -> Map:
        """A new map as `definition` says."""
        inner = layout.MAPS[name].inner
        if not inner:
            return Map.create(name, self.definition(name))
        with Map.create(inner, replace(self.definition(inner), entries=1)) as like:
            return Map.create(name, self.definition(name), like)


def load_settings(path: Path) -> LoaderSettings:
    """The key `datapath` of an agent.yaml; its other keys are the agent's. BadConfig, OSError."""
    try:
        data = documents.load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise BadConfig(str(path), f"is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, Mapping):
        raise BadConfig(str(path), "must be a mapping")
    return settings.parse(LoaderSettings, data.get("datapath", {}), "datapath")


# ---- the compiled set ----


def compiled_set(wanted: LoaderSettings) -> Compiled:
    """From the cache, else by a compiler in a process of its own. LoaderError with the compiler's words."""
    try:
        compiler = importlib.metadata.version("bcc")
    except importlib.metadata.PackageNotFoundError:
        compiler = "none"
    path = Path(wanted.cache) / f"{programs.key(wanted.sources, platform.release(), compiler)}.json"
    with suppress(FileNotFoundError, ValueError, KeyError):  # a damaged file is made anew
        compiled = Compiled.from_json(path.read_text(encoding="utf-8"))
        with suppress(OSError):
            path.touch()  # used now
        return compiled
    log.info("compiling %s for kernel %s", wanted.sources, platform.release())
    result = subprocess.run(
        [sys.executable, "-m", "netstack.kernel.compile", str(wanted.sources), str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if result.returncode:
        raise LoaderError(f"the programs do not compile: {_compile_hint()}{result.stderr.strip()}")
    compiled = Compiled.from_json(path.read_text(encoding="utf-8"))
    with suppress(OSError):  # or the next one finds them
        for unused in sorted(path.parent.glob(f"{'?' * len(path.stem)}.json"), key=_used, reverse=True)[KEPT:]:
            unused.unlink()
    return compiled


def _used(path: Path) -> float:
    return path.stat().st_mtime


def _compile_hint() -> str:
    release = platform.release()
    if not Path(f"/lib/modules/{release}/build").exists():
        return (
            f"the headers of kernel {release} are missing, install linux-headers-vendor-rk35xx (Armbian) "
            f"or linux-headers-{release} (Debian)\n"
        )
    return ""


def check_declarations(compiled: Compiled) -> None:
    """LoaderError if sources and kernel/layout.py do not agree on a map: then neither may write it."""
    for name, spec in ALL_MAPS.items():
        ours = MapDefinition(spec.kind, spec.key.size(), spec.value.size(), 1, spec.flags)
        theirs = compiled.maps.get(name)
        if theirs is not None and replace(theirs, entries=1) != ours:  # a ring's declaration has a page at least
            raise LoaderError(f"map {name} is declared as {theirs} by the programs, as {ours} by this release")


# ---- maps and programs ----


def _open_program(path: Path) -> Program | None:
    return Program.open(path) if path.exists() else None


def open_maps(wanted: LoaderSettings) -> dict[str, Map]:
    """Every pinned map, those that are missing made but not yet pinned. LoaderError names a clash."""
    opened: dict[str, Map] = {}
    for name in layout.MAPS:
        definition = wanted.definition(name)
        path = Path(wanted.pins) / "maps" / name
        found = Map.open(path) if path.exists() else wanted.create(name)
        if found.definition != definition:
            raise LoaderError(
                f"map {name} is pinned as ({found.definition}) but this release needs ({definition}); "
                "nothing was changed: restart the node, or drain it and run "
                "/opt/netstack/current/bin/netstack-loader --detach first"
            )
        opened[name] = found
    return opened


def load_program(name: str, compiled: Compiled, maps: Mapping[str, Map]) -> Program:
    """BpfError with the verifier's words. Maps that are not shared (scratch) are made for this program alone."""
    program, spec = compiled.programs[name], PROGRAMS[name]
    with ExitStack() as private:
        descriptors = {
            used: maps[used].fd if used in maps else private.enter_context(Map.create(used, compiled.maps[used])).fd
            for used in program.maps
        }
        instructions = program.linked(descriptors)
        return Program.load(name, spec.kind, instructions, attach_type=spec.attach_type)


def unchanged(old: Program, new: Program, maps: Mapping[str, Map], used: tuple[str, ...]) -> bool:
    """Same instructions, same shared maps."""
    return old.tag == new.tag and {maps[name].id for name in used if name in maps} <= old.map_ids()


def second_pin(pins: Path, name: str) -> Path:
    return pins / "progs" / f"{name}~"  # bpffs allows no dots


def settle(pins: Path, cgroup: int) -> None:
    """Finish what an interrupted load began: a second pin that runs takes the place of the first, else it goes."""
    for name, spec in PROGRAMS.items():
        path = second_pin(pins, name)
        second = _open_program(path)
        if second is None:
            continue
        if spec.hook == CGROUP and second.id in query_cgroup(cgroup, spec.attach_type):
            path.rename(pins / "progs" / name)
        else:
            path.unlink()


def pod_devices(traffic: TrafficControl, endpoints: Map | None, uplink: int) -> list[Link]:
    """Host-side veths: those that carry our programs, and those that `endpoints` names."""
    named = {layout.Endpoint.unpack(value).ifindex for _, value in endpoints.items()} if endpoints else set()
    return [
        link
        for link in traffic.links()
        if link.kind == "veth"
        and link.index != uplink
        and (link.index in named or carried(traffic, link.index) & set(POD))
    ]


class Datapath:
    """One load: opens everything first, then changes the node. Used once."""

    def __init__(self, wanted: LoaderSettings, traffic: TrafficControl) -> None:
        self.pins = Path(wanted.pins)
        self.cgroup = wanted.cgroup
        self.traffic = traffic
        self.uplink = _ifindex(wanted.uplink)
        compiled = compiled_set(wanted)
        check_declarations(compiled)
        self.maps = open_maps(wanted)
        with _folder(wanted.cgroup) as cgroup:
            settle(self.pins, cgroup)
        self.old = {name: _open_program(self.pins / "progs" / name) for name in PROGRAMS}
        self.programs: dict[str, Program] = {}
        for name in PROGRAMS:
            new, old = load_program(name, compiled, self.maps), self.old[name]
            kept = old is not None and unchanged(old, new, self.maps, compiled.programs[name].maps)
            self.programs[name] = old if old is not None and kept else new

    def publish(self) -> list[str]:
        """Pin and attach. The names of programs that were not in force before, uplink and pods' devices included."""
        for folder in ("maps", "progs"):
            (self.pins / folder).mkdir(parents=True, exist_ok=True)
        for name, shared in self.maps.items():
            path = self.pins / "maps" / name
            if not path.exists():
                shared.pin(path)
        changed = self._pin_and_attach_cgroup()
        for name in UPLINK:
            changed += [name] * self.traffic.attach(self.uplink, self.programs[name])
        for ifindex in self._former_uplinks():
            self.traffic.detach(ifindex)
        for link in pod_devices(self.traffic, self.maps["endpoints"], self.uplink):
            for name in POD:
                changed += [name] * self.traffic.attach(link.index, self.programs[name])
        return changed

    def _pin_and_attach_cgroup(self) -> list[str]:
        """A new program is pinned before it runs and takes over the old one's pin after: whatever runs has a pin."""
        changed = []
        with _folder(self.cgroup) as cgroup:
            for name, program in self.programs.items():
                old, attach_type = self.old[name], PROGRAMS[name].attach_type
                if program is not old:
                    program.pin(second_pin(self.pins, name))
                if PROGRAMS[name].hook == CGROUP:
                    present = query_cgroup(cgroup, attach_type)
                    if program.id not in present:
                        replaced = old if old is not None and old.id in present else None
                        attach_cgroup(cgroup, program, attach_type, replaced)
                        changed.append(name)
                if program is not old:
                    second_pin(self.pins, name).rename(self.pins / "progs" / name)
        return changed

    def _former_uplinks(self) -> list[int]:
        """Devices that another configuration named: a card that is now below a VLAN or in a bond still sees packets."""
        links = [link.index for link in self.traffic.links() if link.index != self.uplink]
        return [index for index in links if carried(self.traffic, index) & set(UPLINK)]


@contextmanager
def _folder(path: str | Path) -> Iterator[int]:
    """Its descriptor."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _alone(pins: Path) -> Iterator[None]:
    """Wait until no other loader is at work there: of two at once each made maps, and programs of one would run with
    maps of which nobody else knows."""
    with _folder(pins.parent) as bpffs:
        fcntl.flock(bpffs, fcntl.LOCK_EX)
        yield


def _ifindex(device: str) -> int:
    try:
        return socket.if_nametoindex(device)
    except OSError:
        raise LoaderError(f"datapath.uplink: there is no device {device!r}") from None


# ---- the two commands ----


def load(wanted: LoaderSettings) -> list[str]:
    """Put everything in force; the names of the programs that were not before. LoaderError, BpfError, Occupied."""
    bpffs = Path(wanted.pins).parent
    lacking = probe.missing(probe.probe(bpffs, Path(wanted.cgroup)))
    if lacking:
        raise LoaderError("\n".join(feature.lacking for feature in lacking))
    with _alone(Path(wanted.pins)), TrafficControl() as traffic:
        return Datapath(wanted, traffic).publish()


def detach(wanted: LoaderSettings) -> None:
    """Take everything of ours out of the kernel; pods' devices first, all of them, for without programs nothing guards
    them, and without the uplink's anybody on the LAN bears any address.

    They are deleted: only so does the kernel throw away what still waits in a device before its programs go.
    """
    pins = Path(wanted.pins)
    with _alone(pins), TrafficControl() as traffic:
        uplink, path = traffic.link(wanted.uplink), pins / "maps" / "endpoints"
        endpoints = Map.open(path) if path.exists() else None
        for link in pod_devices(traffic, endpoints, uplink.index if uplink else 0):
            traffic.delete_link(link.name)
        for link in traffic.links():
            traffic.detach(link.index)
        with _folder(wanted.cgroup) as cgroup:
            settle(pins, cgroup)
            for spec in PROGRAMS.values():
                program = _open_program(pins / "progs" / spec.name)
                if spec.hook == CGROUP and program is not None and program.id in query_cgroup(cgroup, spec.attach_type):
                    detach_cgroup(cgroup, program, spec.attach_type)
        for folder in (pins / "progs", pins / "maps", pins):
            if folder.is_dir():
                for path in folder.iterdir():
                    path.unlink()
                folder.rmdir()


def main() -> None:
    """Exit status 0: in force (or gone, with --detach). 1: not, and stderr says why."""
    parser = argparse.ArgumentParser(prog="netstack-loader", description="load and attach the eBPF programs")
    parser.add_argument("--config", type=Path, default=Path("/etc/netstack/agent.yaml"))
    parser.add_argument("--detach", action="store_true", help="remove programs, maps and pins; pods lose their network")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        wanted = load_settings(arguments.config)
        if arguments.detach:
            detach(wanted)
        else:
            changed = load(wanted)
            log.info("in force; new or changed: %s", ", ".join(changed) or "none")
    except (LoaderError, BpfError, Occupied, BadConfig, OSError) as error:
        log.error("%s", error)
        sys.exit(1)


if __name__ == "__main__":
    main()
