"""A packet through the real programs, leaving no trace: what `netstack explain` asks.

The programs are loaded a second time. The tables that daemons write are the pinned ones, read as they are now; those
that programs write are private and empty. So every packet is judged as the first of its flow, by the rules in force,
and no flow, translation or counter of the node is touched.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, cast

from netstack.core.verdict import Verdict
from netstack.kernel import layout
from netstack.kernel.bpf import Map, Program
from netstack.kernel.flows import FlowTables
from netstack.kernel.loader import LoaderSettings, compiled_set, load_program
from netstack.kernel.programs import PROGRAMS

WRITTEN = tuple(name for name, spec in layout.MAPS.items() if spec.writer == "programs" or spec.inner)
"""The tables that programs write, and those that hold such tables."""
SCRATCH = "scratch"
"""What a program knows of the packet that it is looking at: struct packet of files/bpf/lib/parse.h ..."""
JUDGED = struct.Struct("=104xI9xBx?12xI")
"""... and what policies said of it: its members `rule`, `direction`, `audited` and `audit_rule`."""
CONTEXT_BYTES = 192
"""struct __sk_buff"""
IPV6 = b"\x86\xdd"
"""EtherType"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`rule` 0: no rule decided. `direction`: in which policies were asked last; 0: none was. `audited`: it passes, but
    policies on trial would deny it, by `audit_rule` or (0) because no rule of theirs allows it. `frame`: as it left the
    program."""

    verdict: Verdict
    rule: int
    direction: int
    audited: bool
    audit_rule: int
    frame: bytes


def proxy_listens(*, v6: bool) -> bool:
    """Whether the DNS proxy's UDP socket is there, in the network namespace that this thread is in."""
    words = (layout.PROXY_V6_FIRST, 0, 0, layout.PROXY_V6_LAST) if v6 else (layout.PROXY_V4,)
    place = "".join(f"{socket.htonl(word):08X}" for word in words) + f":{layout.PROXY_PORT:04X}"
    try:
        lines = Path("/proc/thread-self/net", "udp6" if v6 else "udp").read_text(encoding="ascii").splitlines()
    except FileNotFoundError:  # a kernel without IPv6
        return False
    return any(line.split()[1] == place for line in lines)


class Trial:
    """LoaderError or BpfError if the node's tables are not there, or programs cannot be had."""

    def __init__(self, settings: LoaderSettings) -> None:
        self._compiled = compiled_set(settings)
        self._pins = Path(settings.pins)
        self.maps: dict[str, Map] = {}
        for name in layout.MAPS:
            private = name in WRITTEN
            self.maps[name] = settings.create(name) if private else Map.open(self._pins / "maps" / name)
        tables = FlowTables(self.maps["conntrack"], settings.definition("flows"))
        for _, value in self.maps["endpoints"].items():
            tables.add(layout.Endpoint.unpack(value).id)
        self.maps[SCRATCH] = Map.create(SCRATCH, self._compiled.maps[SCRATCH])
        self._programs: dict[str, Program] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for opened in (*self.maps.values(), *self._programs.values()):
            opened.close()

    def run(self, name: str, frame: bytes, *, device: int, came_by: int) -> Outcome:
        """`frame` through a tc program on `device`, having entered the node by `came_by` (0: this node made it)."""
        program = self._program(name)
        context = bytearray(CONTEXT_BYTES)
        struct.pack_into("=II", context, 36, came_by, device)  # ingress_ifindex, ifindex
        before = self.maps["counters"].sums()
        _, out, _, _ = program.test_run(frame, bytes(context))
        after = self.maps["counters"].sums()
        (number,) = (number for number, packets in after.items() if packets != before.get(number, 0))
        verdict, v6 = Verdict(number), frame[12:14] == IPV6
        if verdict is Verdict.NO_PROXY and proxy_listens(v6=v6):
            verdict = Verdict.REDIRECTED_DNS  # bpf_sk_assign takes no packet of a test run: none came by an interface
        return Outcome(verdict, *self._judged(), out)

    def differing(self) -> Iterator[str]:
        """The programs that were run here and are not what is attached on the node, for that is another release's."""
        for name, program in self._programs.items():
            with Program.open(self._pins / "progs" / name) as running:
                if running.tag != program.tag:
                    yield name

    def _program(self, name: str) -> Program:
        if name not in self._programs:
            assert PROGRAMS[name].attach_type == 0, "socket hooks cannot be run on a packet"  # noqa: S101
            self._programs[name] = load_program(name, self._compiled, self.maps)
        return self._programs[name]

    def _judged(self) -> tuple[int, int, bool, int]:
        """JUDGED of the packet just run; the scratch of every CPU is clean again."""
        table = self.maps[SCRATCH]
        key = layout.Number(0).pack()
        values = table.get(key) or b""
        table.put(key, bytes(len(values)))
        size = (table.definition.value_size + 7) // 8 * 8
        used = next(at for at in range(0, len(values), size) if any(values[at : at + size]))
        return cast("tuple[int, int, bool, int]", JUDGED.unpack_from(values, used))
