"""What the datapath needs of a kernel, whether this one has it, and what to do if not.

`probe` asks the kernel by trying (nothing stays behind); `missing` is pure: results in, a list of what lacks, why it is
needed and how to get it, out.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from netstack.kernel import layout
from netstack.kernel.bpf import CGROUP_SOCK_ADDR, SCHED_CLS, BpfError, Map, MapDefinition, Program
from netstack.kernel.programs import PROGRAMS

_EXIT, _ZERO = (struct.pack("=BBhi", *parts) for parts in ((0x95, 0, 0, 0), (0xB7, 0, 0, 0)))
_ONE = struct.pack("=BBhi", 0xB7, 0, 0, 1)  # r0 = 1: what a cgroup program returns

_NEWER = "a kernel of 6.1 or later (Armbian: linux-image-vendor-rk35xx or linux-image-current-rockchip64)"


@dataclass(frozen=True, slots=True)
class Feature:
    """One need; `why` and `remedy` are for the user."""

    name: str
    why: str
    remedy: str

    @property
    def lacking(self) -> str:
        return f"this kernel lacks {self.name} ({self.why}): {self.remedy}"


FEATURES: tuple[Feature, ...] = (
    Feature("bpf", "every packet is handled by eBPF", "run as root or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON; "
            "in a container allow bpf(2); kernel option CONFIG_BPF_SYSCALL=y"),
    Feature("map hash", "services, endpoints", _NEWER),
    Feature("map lru_hash", "connections", _NEWER),
    Feature("map lpm_trie", "identities and policy", _NEWER),
    Feature("map percpu_array", "counters", _NEWER),
    Feature("helper sk_assign", "DNS goes to the proxy", _NEWER + " with CONFIG_NET_CLS_BPF and CONFIG_INET"),
    Feature("helper skc_lookup_tcp", "DNS over TCP goes to the proxy", _NEWER),
    Feature("helper redirect_neigh", "traffic for a LoadBalancer address reaches the backend's node", _NEWER),
    Feature("helper set_retval", "a service without backends refuses connections", _NEWER),
    Feature("attach getpeername", "applications see the service that they connected to", _NEWER + " with "
            "CONFIG_CGROUP_BPF=y"),
    Feature("bpffs", "programs stay when daemons go", "mount -t bpf bpf /sys/fs/bpf"),
    Feature("cgroup2", "service translation at the socket", "boot with systemd.unified_cgroup_hierarchy=1"),
)  # fmt: skip


def missing(results: Mapping[str, bool]) -> list[Feature]:
    """What lacks, in the order of FEATURES. Without bpf(2) nothing else could be asked, so it is named alone."""
    if not results["bpf"]:
        return [FEATURES[0]]
    return [feature for feature in FEATURES if not results[feature.name]]


def _map(kind: int, flags: int = 0) -> bool:
    try:
        Map.create("probe", MapDefinition(kind, 8 if kind == layout.LPM_TRIE else 4, 8, 1, flags)).close()
    except BpfError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def _helper(kind: int, number: int, attach_type: int = 0) -> bool:
    """Load a program that calls the helper with nothing in its registers: what matters is why it is refused."""
    call = struct.pack("=BBhi", 0x85, 0, 0, number)
    try:
        Program.load("probe", kind, call + _ONE + _EXIT, attach_type=attach_type).close()
    except BpfError as error:
        refusals = ("invalid func", "unknown func", "cannot use helper", "program of this type")
        return not any(text in error.log for text in refusals)
    return True


def _attach(name: str) -> bool:
    spec = PROGRAMS[name]
    try:
        Program.load("probe", spec.kind, _ONE + _EXIT, attach_type=spec.attach_type).close()
    except BpfError:
        return False
    return True


def _filesystem(path: Path, kind: str) -> bool:
    """statfs(2) is not in os: /proc/self/mountinfo names the type of the mount that holds `path`."""
    best, found = -1, ""
    target = str(path.resolve())
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        left, _, right = line.partition(" - ")
        mount = left.split()[4].encode().decode("unicode_escape")
        if (target == mount or target.startswith(mount.rstrip("/") + "/")) and len(mount) >= best:
            best, found = len(mount), right.split()[0]
    return found == kind


def probe(bpffs: Path, cgroup: Path) -> dict[str, bool]:
    """Feature name -> whether this kernel has it. What is not asked for, such as clsact, shows when it is used."""
    try:
        Program.load("probe", SCHED_CLS, _ZERO + _EXIT).close()
    except BpfError as error:
        if error.errno in (errno.EPERM, errno.ENOSYS):
            return {"bpf": False}
        raise
    connect4 = PROGRAMS["connect4"].attach_type
    checks: dict[str, Callable[[], bool]] = {
        "map hash": lambda: _map(layout.HASH),
        "map lru_hash": lambda: _map(layout.LRU_HASH),
        "map lpm_trie": lambda: _map(layout.LPM_TRIE, layout.NO_PREALLOC),
        "map percpu_array": lambda: _map(layout.PERCPU_ARRAY),
        "helper sk_assign": lambda: _helper(SCHED_CLS, 124),
        "helper skc_lookup_tcp": lambda: _helper(SCHED_CLS, 99),
        "helper redirect_neigh": lambda: _helper(SCHED_CLS, 152),
        "helper set_retval": lambda: _helper(CGROUP_SOCK_ADDR, 187, connect4),
        "attach getpeername": lambda: _attach("getpeername4"),
        "bpffs": lambda: _filesystem(bpffs, "bpf"),
        "cgroup2": lambda: _filesystem(cgroup, "cgroup2"),
    }
    return {"bpf": True} | {name: check() for name, check in checks.items()}
