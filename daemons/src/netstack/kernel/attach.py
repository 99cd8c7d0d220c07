"""Programs on devices: tc filters of the clsact qdisc, by netlink. Replacing one loses no packet.

Ours are at preference 1, handle 1, for every protocol, direct-action, named `netstack/<program>`. A filter there that
is not ours, of whatever kind, is somebody else's network and is never replaced: `Occupied` names it.

The qdisc comes with our first filter and goes with our last ones, in one system call each: who is killed leaves none
behind that is empty, so that nobody could say whose it is.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from netstack.kernel.bpf import BpfError, Program
from netstack.kernel.netlink import ACK, CREATE, EXCL, Netlink, pack_attribute, read_attributes, read_integer
from netstack.kernel.programs import POD_EGRESS, POD_INGRESS, PROGRAMS, UPLINK_EGRESS, UPLINK_INGRESS

TRAFFIC = struct.Struct("=BxxxiIII")  # struct tcmsg: family, ifindex, handle, parent, info
NEWQDISC, DELQDISC, NEWFILTER, DELFILTER, GETFILTER = 36, 37, 44, 45, 46
CLSACT, CLSACT_HANDLE = 0xFFFFFFF1, 0xFFFF0000
INGRESS, EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
PREFERENCE, HANDLE = 1, 1
EVERY_PROTOCOL = socket.htons(3)  # ETH_P_ALL
KIND, OPTIONS, CHAIN = 1, 2, 11
BPF_FD, BPF_NAME, BPF_FLAGS, BPF_ID = 6, 7, 8, 11
DIRECT_ACTION = 1
OURS = "netstack/"

PARENT = {UPLINK_INGRESS: INGRESS, UPLINK_EGRESS: EGRESS, POD_INGRESS: INGRESS, POD_EGRESS: EGRESS}
POD = tuple(spec.name for spec in PROGRAMS.values() if spec.hook in (POD_INGRESS, POD_EGRESS))
UPLINK = tuple(spec.name for spec in PROGRAMS.values() if spec.hook in (UPLINK_INGRESS, UPLINK_EGRESS))


class Occupied(Exception):
    """A device carries a filter where ours belongs."""

    def __init__(self, device: str, direction: str, name: str) -> None:
        super().__init__(
            f"{device}: {direction} carries the filter {name!r} at preference {PREFERENCE}, which is not ours"
        )
        self.device = device
        self.name = name


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter of one device. `name`: its program's, "" without one. `id`: the kernel's number of its eBPF program, 0
    without one. `chain`: packets begin in 0."""

    preference: int
    handle: int
    name: str
    id: int
    kind: str = "bpf"
    protocol: int = EVERY_PROTOCOL
    chain: int = 0

    @property
    def ours(self) -> bool:
        return self.name.startswith(OURS)

    @property
    def in_our_place(self) -> bool:
        """All filters of one preference are of one kind and for one protocol, so others than bpf take all of it."""
        if (self.preference, self.chain) != (PREFERENCE, 0):
            return False
        return self.handle == HANDLE or (self.kind, self.protocol) != ("bpf", EVERY_PROTOCOL)


class TrafficControl(Netlink):
    """Filters of the network namespace in which it was opened."""

    def filters(self, ifindex: int, parent: int) -> list[Filter]:
        """The filters at one of INGRESS, EGRESS; none if the device is gone or has no clsact."""
        try:
            bodies = self._dump(GETFILTER, TRAFFIC.pack(0, ifindex, 0, parent, 0))
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.EINVAL, errno.EOPNOTSUPP):
                return []
            raise
        return [found for found in map(_filter, bodies) if found is not None]

    def attach(self, ifindex: int, program: Program) -> bool:
        """Put the program where its hook says; False if it was there. Occupied; OSError ENODEV."""
        parent = PARENT[PROGRAMS[program.name].hook]
        for present in self.filters(ifindex, parent):
            if not present.in_our_place:
                continue
            if not present.ours:
                device, direction = socket.if_indextoname(ifindex), "ingress" if parent == INGRESS else "egress"
                raise Occupied(device, direction, present.name or present.kind)
            if present.id == program.id:
                return False
        options = pack_attribute(BPF_FD, struct.pack("=I", program.fd))
        options += pack_attribute(BPF_NAME, f"{OURS}{program.name}\0".encode())
        options += pack_attribute(BPF_FLAGS, struct.pack("=I", DIRECT_ACTION))
        head = TRAFFIC.pack(0, ifindex, HANDLE, parent, PREFERENCE << 16 | EVERY_PROTOCOL)
        body = head + pack_attribute(KIND, b"bpf\0") + pack_attribute(OPTIONS, options)
        # A clsact that is there is what we want; a device's real queueing is left alone.
        self._ask(NEWFILTER, ACK | CREATE, body, after=(NEWQDISC, CREATE | EXCL, _clsact(ifindex)))
        return True

    def detach(self, ifindex: int) -> bool:
        """Take our filters off a device, both directions; the clsact qdisc with them if nothing else is in it."""
        found = [(parent, one) for parent in (INGRESS, EGRESS) for one in self.filters(ifindex, parent)]
        ours = [(parent, one) for parent, one in found if one.ours]
        if ours == found:
            return bool(ours) and self._gone(DELQDISC, _clsact(ifindex))
        gone = False
        for parent, one in ours:
            head = TRAFFIC.pack(0, ifindex, one.handle, parent, one.preference << 16 | EVERY_PROTOCOL)
            gone |= self._gone(DELFILTER, head + pack_attribute(KIND, b"bpf\0"))
        return gone


def _filter(body: bytes) -> Filter | None:
    """As the kernel sends it; None if it is only the classifier that filters of one preference are in."""
    _, _, handle, _, info = TRAFFIC.unpack_from(body)
    attributes = read_attributes(body[TRAFFIC.size :])
    if OPTIONS not in attributes:
        return None
    kind = attributes[KIND].rstrip(b"\0").decode()
    options = read_attributes(attributes[OPTIONS]) if kind == "bpf" else {}
    name = options.get(BPF_NAME, b"").rstrip(b"\0").decode(errors="replace")
    id, chain = (read_integer(found) for found in (options.get(BPF_ID, b""), attributes.get(CHAIN, b"")))
    return Filter(info >> 16, handle, name, id, kind, info & 0xFFFF, chain)


def _clsact(ifindex: int) -> bytes:
    """The body of a request about it: two hooks without a queue."""
    return TRAFFIC.pack(0, ifindex, CLSACT_HANDLE, CLSACT, 0) + pack_attribute(KIND, b"clsact\0")


def attach_pinned(traffic: TrafficControl, pins: Path, ifindex: int, names: Iterable[str] = POD) -> None:
    """Programs on a device, by default a pod's, from their pins. BpfError ENOENT if the loader never ran; Occupied."""
    for name in names:
        with Program.open(pins / "progs" / name) as program:
            traffic.attach(ifindex, program)


def carried(traffic: TrafficControl, ifindex: int) -> set[str]:
    """Names of our programs on a device, of whatever release."""
    return {
        present.name.removeprefix(OURS)
        for parent in set(PARENT.values())
        for present in traffic.filters(ifindex, parent)
        if present.ours
    }


def pinned_ids(pins: Path) -> dict[str, int]:
    """Of the pod programs that are pinned: name -> the kernel's number."""
    found = {}
    for name in POD:
        try:
            with Program.open(pins / "progs" / name) as program:
                found[name] = program.id
        except BpfError as error:
            if error.errno != errno.ENOENT:
                raise
    return found


def guarded(traffic: TrafficControl, pinned: Mapping[str, int], ifindex: int) -> bool:
    """Does this device carry both pod programs, the very ones that are pinned?"""
    for name in POD:
        wanted, parent = (PREFERENCE, HANDLE, pinned.get(name)), PARENT[PROGRAMS[name].hook]
        if not any((f.preference, f.handle, f.id) == wanted for f in traffic.filters(ifindex, parent)):
            return False
    return True
