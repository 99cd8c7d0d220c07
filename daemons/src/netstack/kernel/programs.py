"""The programs as data: which there are, where each is attached, and the compiled form that is kept on disk.

A compiled set (`Compiled`) holds instructions whose map references are indices into the program's own list of map
names, so that loading needs nothing but bpf(2): open or create the maps, put their descriptors in, load. It is valid
for one source, one kernel release and one bcc: `key` is all three in one hash, and the file's name.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from netstack.kernel.bpf import CGROUP_SOCK_ADDR, SCHED_CLS, MapDefinition

INSTRUCTION = struct.Struct("=BBhi")  # opcode, registers (source in the high half), offset, immediate
LOAD_WIDE = 0x18  # BPF_LD | BPF_IMM | BPF_DW: with PSEUDO_MAP_FD as its source the immediate is a map's descriptor
PSEUDO_MAP_FD = 1

CGROUP, UPLINK_INGRESS, UPLINK_EGRESS, POD_INGRESS, POD_EGRESS = (
    "cgroup",
    "uplink in",
    "uplink out",
    "pod in",
    "pod out",
)


@dataclass(frozen=True, slots=True)
class ProgramSpec:
    """One program: its name is its C function's, its pin's and, with `netstack/` before it, its tc filter's."""

    name: str
    source: str
    hook: str
    kind: int = SCHED_CLS
    attach_type: int = 0  # enum bpf_attach_type, for cgroup hooks


def _socket(name: str, attach_type: int) -> ProgramSpec:
    return ProgramSpec(name, "sock.c", CGROUP, CGROUP_SOCK_ADDR, attach_type)


PROGRAMS: dict[str, ProgramSpec] = {
    spec.name: spec
    for spec in (
        _socket("connect4", 10),
        _socket("connect6", 11),
        _socket("sendmsg4", 14),
        _socket("sendmsg6", 15),
        _socket("recvmsg4", 19),
        _socket("recvmsg6", 20),
        _socket("getpeername4", 29),
        _socket("getpeername6", 30),
        ProgramSpec("uplink_ingress", "uplink_ingress.c", UPLINK_INGRESS),
        ProgramSpec("uplink_egress", "uplink_egress.c", UPLINK_EGRESS),
        ProgramSpec("pod_ingress", "pod_ingress.c", POD_INGRESS),
        ProgramSpec("pod_egress", "pod_egress.c", POD_EGRESS),
    )
}


@dataclass(frozen=True, slots=True)
class CompiledProgram:
    """Instructions whose map references are indices into `maps`."""

    instructions: bytes
    maps: tuple[str, ...]

    def linked(self, descriptors: Mapping[str, int]) -> bytes:
        """Instructions that the kernel takes: each map reference is the descriptor of that name. KeyError if none."""
        return _map_references(self.instructions, lambda index: descriptors[self.maps[index]])


@dataclass(frozen=True, slots=True)
class Compiled:
    """Everything that a load needs: programs by name, and how each map was declared (with one entry)."""

    programs: dict[str, CompiledProgram]
    maps: dict[str, MapDefinition]

    def to_json(self) -> str:
        programs = {
            name: {"instructions": base64.b64encode(program.instructions).decode(), "maps": list(program.maps)}
            for name, program in sorted(self.programs.items())
        }
        maps = {name: asdict(definition) for name, definition in sorted(self.maps.items())}
        return json.dumps({"programs": programs, "maps": maps}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Compiled:
        """ValueError or KeyError if the text is no compiled set."""
        data = json.loads(text)
        programs = {
            name: CompiledProgram(base64.b64decode(item["instructions"], validate=True), tuple(item["maps"]))
            for name, item in data["programs"].items()
        }
        return cls(programs, {name: MapDefinition(**item) for name, item in data["maps"].items()})


def unlinked(instructions: bytes, names: Mapping[int, str]) -> CompiledProgram:
    """The reverse of `linked`: `names` tells which map each descriptor in the instructions is."""
    maps: list[str] = []

    def index(descriptor: int) -> int:
        name = names[descriptor]
        if name not in maps:
            maps.append(name)
        return maps.index(name)

    return CompiledProgram(_map_references(instructions, index), tuple(maps))


def _map_references(instructions: bytes, replace: Callable[[int], int]) -> bytes:
    result = bytearray(instructions)
    for offset in range(0, len(instructions), INSTRUCTION.size):
        code, registers, jump, immediate = INSTRUCTION.unpack_from(instructions, offset)
        if code == LOAD_WIDE and registers >> 4 == PSEUDO_MAP_FD:
            INSTRUCTION.pack_into(result, offset, code, registers, jump, replace(immediate))
    return bytes(result)


def flatten(path: Path) -> str:
    """One text out of a .c file: every `#include "..."` is replaced by the file, once each (bcc rewrites calls on maps
    in the main file only, so there must be no other)."""
    seen: set[Path] = set()

    def lines(file: Path) -> list[str]:
        result = []
        for line in file.read_text(encoding="utf-8").splitlines():
            if not line.startswith('#include "'):
                result.append("" if line == "#pragma once" else line)
                continue
            target = Path(os.path.normpath(file.parent / line.split('"')[1]))
            if target not in seen:
                seen.add(target)
                result += lines(target)
        return result

    return "\n".join(lines(path.resolve())) + "\n"


def key(sources: Path, kernel: str, compiler: str) -> str:
    """The name of the compiled set of these sources for this kernel release by this compiler. OSError if they cannot
    be read."""
    digest = hashlib.sha256(f"{kernel}\0{compiler}\0".encode())
    for name in sorted({spec.source for spec in PROGRAMS.values()}):
        digest.update(f"{name}\0{flatten(sources / name)}\0".encode())
    return digest.hexdigest()[:32]
