"""The question check in the kernel (question.c): its table made of a pod's rules, its programs, what they say and cost.

python -m instruments.question OUTPUT       compiles it: in a process of its own, for LLVM stays where it was loaded
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Self

from netstack.core.address import pack
from netstack.core.files import write_atomic
from netstack.dns.names import Name, Rule
from netstack.kernel.bpf import SCHED_CLS, Map, Program
from netstack.kernel.layout import Number
from netstack.kernel.programs import Compiled, ProgramSpec, flatten

TESTS = Path(__file__).parents[1]
SOURCE = Path(__file__).with_suffix(".c")
CACHE = Path(os.environ.get("NETSTACK_CACHE") or Path.home() / ".cache" / "netstack") / "programs"
PROGRAMS = {name: ProgramSpec(name, SOURCE.name, "") for name in ("headers", "judge", "refuse")}
ENTRIES = 1 << 14
NAME_BYTES = 252
CONTEXT_BYTES = 192
POD, SERVER = "10.244.1.5", "10.96.0.10"
POD_MAC, HOST_MAC = bytes.fromhex("020000000105"), bytes.fromhex("0200000001fe")


class Said(IntEnum):
    """What the program returns."""

    ALLOWED = 1
    REFUSED = 2
    PROXY = 3


# ---- the table ----


@dataclass(frozen=True, slots=True)
class Suffix:
    """What is said of names that end in it and in no longer suffix of the table: of itself, of names with one label
    more, of those with more than one."""

    here: Said = Said.REFUSED
    child: Said = Said.REFUSED
    below: Said = Said.REFUSED


def suffixes(rules: Iterable[Rule]) -> dict[Name, Suffix]:
    """The rules of one pod, by suffix; what is said of longer names is said again where it has to be found."""
    own: dict[Name, Suffix] = {(): Suffix()}
    for rule in rules:
        suffix, said = _said(rule.labels())
        own[suffix] = _both(own.get(suffix, Suffix()), said)
    found: dict[Name, Suffix] = {}
    for suffix in sorted(own, key=len):
        found[suffix] = own[suffix]
        above = next((up for cut in range(1, len(suffix) + 1) if (up := suffix[cut:]) in found), None)
        if above is not None:
            over = found[above]
            here = over.child if len(suffix) == len(above) + 1 else over.below
            found[suffix] = _both(own[suffix], Suffix(here, over.below, over.below))
    return found


def _said(labels: Name) -> tuple[Name, Suffix]:
    """What one rule says, and of which suffix. A star beside letters is for the proxy to judge."""
    yes = Said.ALLOWED
    first = labels[0] if labels else b""
    if len(labels) == 1 and not first.strip(b"*"):
        return (), Suffix(yes, yes, yes if first == b"*" else Said.REFUSED)
    stars = [at for at, label in enumerate(labels) if b"*" in label]
    if not stars:
        return labels, Suffix(here=yes)
    suffix = labels[stars[-1] + 1 :]
    if stars == [0] and not first.strip(b"*"):
        return suffix, Suffix(child=yes, below=yes) if first == b"**" else Suffix(child=yes)
    return suffix, Suffix(child=Said.PROXY, below=Said.PROXY)


def _best(one: Said, other: Said) -> Said:
    return next(said for said in (Said.ALLOWED, Said.PROXY, Said.REFUSED) if said in (one, other))


def _both(one: Suffix, other: Suffix) -> Suffix:
    return Suffix(_best(one.here, other.here), _best(one.child, other.child), _best(one.below, other.below))


def table(scope: int, rules: Iterable[Rule]) -> dict[bytes, bytes]:
    """Key -> value of `names`. A suffix that no key can hold is left out: names that end in it are the proxy's."""
    entries = {}
    for suffix, said in suffixes(rules).items():
        text = b"".join(b"." + label for label in suffix)[::-1]
        if len(text) <= NAME_BYTES:
            key = struct.pack("=II", 32 + 8 * len(text), scope) + text.ljust(NAME_BYTES, b"\0")
            entries[key] = bytes((len(suffix), said.here, said.child, said.below))
    return entries


# ---- the programs ----


def compiled() -> Compiled:
    """From the cache, else compiled. It includes nothing of the kernel but its interface, so one does for all."""
    path = CACHE / f"question-{hashlib.sha256(flatten(SOURCE).encode()).hexdigest()[:16]}.json"
    with suppress(FileNotFoundError, ValueError, KeyError):
        return Compiled.from_json(path.read_text())
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent / 'daemons/src'}:{TESTS}"}
    argv = [sys.executable, "-m", "instruments.question", str(path)]
    subprocess.run(argv, env=environment, check=True, stdout=subprocess.DEVNULL)
    return Compiled.from_json(path.read_text())


class Question:
    """The programs over a table of their own."""

    def __init__(self) -> None:
        made = compiled()
        definitions = made.maps | {
            "names": replace(made.maps["names"], entries=ENTRIES),
            "scopes": replace(made.maps["scopes"], entries=16),
        }
        self.maps = {name: Map.create(name, definition) for name, definition in definitions.items()}
        descriptors = {name: made_map.fd for name, made_map in self.maps.items()}
        self.programs = {
            name: Program.load(name, SCHED_CLS, program.linked(descriptors)) for name, program in made.programs.items()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for opened in (*self.programs.values(), *self.maps.values()):
            opened.close()

    def rules(self, *rules: Rule, scope: int = 1) -> None:
        """The pod's rules from now on. Those of other scopes stay."""
        names = self.maps["names"]
        names.delete_batch([key for key, _ in names.items() if key[4:8] == Number(scope).pack()])
        names.put_batch(table(scope, rules))
        self.maps["scopes"].put(pack(POD), Number(scope).pack())

    def judge(self, payload: bytes) -> Said:
        return Said(self._run("judge", payload)[0])

    def refuse(self, payload: bytes) -> bytes | None:
        """The answer that the kernel makes; None if it makes none, and leaves the packet as it was."""
        asked = frame(payload)
        returned, left = self._run("refuse", payload)
        if not returned:
            assert left == asked
            return None
        assert (left[:6], left[6:12], left[26:30], left[30:34]) == (
            POD_MAC,
            HOST_MAC,
            pack(SERVER)[12:],
            pack(POD)[12:],
        )
        assert left[34:38] == asked[36:38] + asked[34:36] and _sum(left[14:34]) == 0xFFFF
        assert struct.unpack("!H", left[16:18])[0] == len(left) - 14 == struct.unpack("!H", left[38:40])[0] + 20
        return left[42:]

    def _run(self, program: str, payload: bytes) -> tuple[int, bytes]:
        return self.programs[program].test_run(frame(payload), context())[:2]

    def ns(self, program: str, payload: bytes, repeat: int) -> int:
        """Nanoseconds a run. `refuse` changes the packet: only its first run is one of a question."""
        return self.programs[program].test_run(frame(payload), context(), repeat=repeat)[3]


def context() -> bytes:
    """struct __sk_buff of what came by a device: loopback, which every namespace has."""
    made = bytearray(CONTEXT_BYTES)
    struct.pack_into("=II", made, 36, 1, 1)  # ingress_ifindex, ifindex
    return bytes(made)


def frame(payload: bytes) -> bytes:
    """The pod's question as its device sees it."""
    udp = struct.pack("!4H", 40000, 53, 8 + len(payload), 0)
    unsummed = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp) + len(payload), 1, 0, 64, socket.IPPROTO_UDP, 0)
    ip = unsummed + pack(POD)[12:] + pack(SERVER)[12:]
    ip = ip[:10] + struct.pack("!H", ~_sum(ip) & 0xFFFF) + ip[12:]
    return HOST_MAC + POD_MAC + b"\x08\0" + ip + udp + payload


def _sum(data: bytes) -> int:
    """One's complement (RFC 1071); 0xffff over what holds its checksum."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def main(output: Path) -> None:
    from netstack.kernel.compile import compile_sources

    write_atomic(output, compile_sources(SOURCE.parent, PROGRAMS).to_json())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
