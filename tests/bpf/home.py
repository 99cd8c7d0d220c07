"""A node for the loader: a bpffs, a cgroup, a namespace with an uplink, all its own and all gone at the end."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bpf.namespaces import Namespace
from bpf.packet import SETTINGS
from netstack.kernel import layout as l
from netstack.kernel.attach import EGRESS, INGRESS, Filter, TrafficControl
from netstack.kernel.bpf import Map, Program, query_cgroup
from netstack.kernel.flows import FlowTables
from netstack.kernel.loader import LoaderSettings, load
from netstack.kernel.programs import CGROUP, PROGRAMS

CGROUPS = Path("/sys/fs/cgroup/unified")
if not CGROUPS.is_dir():
    CGROUPS = Path("/sys/fs/cgroup")


@dataclass
class Home:
    namespace: Namespace
    settings: LoaderSettings

    @property
    def pins(self) -> Path:
        return Path(self.settings.pins)

    def load(self) -> list[str]:
        with self.namespace.entered():
            return load(self.settings)

    def map(self, name: str) -> Map:
        return Map.open(self.pins / "maps" / name)

    def put(self, name: str, key: l.Record, value: l.Record) -> None:
        with self.map(name) as opened:
            opened.put(key.pack(), value.pack())

    def flows(self) -> FlowTables:
        return FlowTables(self.map("conntrack"), self.settings.definition("flows"))

    def filters(self, device: str = "eth0") -> list[Filter]:
        with self.namespace.entered(), TrafficControl() as traffic:
            link = traffic.link(device)
            assert link is not None
            return [f for parent in (INGRESS, EGRESS) for f in traffic.filters(link.index, parent)]

    def pinned(self) -> dict[str, int]:
        """Program name -> id."""
        found = {}
        for path in sorted((self.pins / "progs").iterdir()):
            with Program.open(path) as program:
                found[path.name] = program.id
        return found

    def in_cgroup(self) -> list[int]:
        descriptor = os.open(self.settings.cgroup, os.O_RDONLY | os.O_DIRECTORY)
        try:
            hooks = [spec.attach_type for spec in PROGRAMS.values() if spec.hook == CGROUP]
            return [number for hook in hooks for number in query_cgroup(descriptor, hook)]
        finally:
            os.close(descriptor)


@contextmanager
def home(folder: Path, namespace: Namespace) -> Iterator[Home]:
    """`namespace` must have a device eth0 before the load."""
    bpffs, cgroup = folder / "bpf", CGROUPS / f"{namespace.name}"
    bpffs.mkdir(parents=True)
    subprocess.run(["mount", "-t", "bpf", "bpf", str(bpffs)], check=True)
    try:
        cgroup.mkdir()
        try:
            yield Home(namespace, replace(SETTINGS, pins=str(bpffs / "netstack"), cgroup=str(cgroup)))
        finally:
            cgroup.rmdir()
    finally:
        subprocess.run(["umount", str(bpffs)], check=True)
