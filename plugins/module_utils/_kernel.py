# Copyright (c) 2026, The netstack developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node's kernel offers, and what is missing for netstack.

Two halves. `look` and the functions above it read the node (files below `root`, so that a test can hand them a folder);
`missing` is a pure function from what was seen to a list of (feature, reason, remedy). What was *tried* outranks what
the configuration says: a vendor kernel often ships without its configuration, and a container's kernel is not its own.
"""

from __future__ import annotations

import gzip
import os
import re
from dataclasses import asdict, dataclass, field
from typing import Any

# option -> what it is for; y or m will do
CONFIG_OPTIONS = {
    "CONFIG_BPF_SYSCALL": "bpf(2)",
    "CONFIG_BPF_JIT": "eBPF compiled to machine code",
    "CONFIG_CGROUP_BPF": "translation of services at the socket",
    "CONFIG_NET_CLS_ACT": "tc programs",
    "CONFIG_NET_CLS_BPF": "tc programs",
    "CONFIG_NET_SCH_INGRESS": "the clsact hook that tc programs sit on",
    "CONFIG_VETH": "the interface of a pod",
    "CONFIG_NET_NS": "pods",
    "CONFIG_DEBUG_INFO_BTF": "type information for whoever looks with bpftool",
    "CONFIG_IKHEADERS": "kernel headers inside the kernel",
    "CONFIG_MODULES": "loadable modules",
}


@dataclass(frozen=True, slots=True)
class Armbian:
    """/etc/armbian-release and /boot/armbianEnv.txt, as far as they matter here."""

    board: str
    branch: str
    family: str
    version: str
    extraargs: str

    @property
    def headers_package(self) -> str:
        return f"linux-headers-{self.branch}-{self.family}"


@dataclass(frozen=True, slots=True)
class Headers:
    """Where bcc finds kernel headers; headers of another release that are on the disk; packages that bring some, and
    the one by which those of later kernels come with these.

    Debian and Ubuntu split headers in two: `fallback` holds what was generated for one machine, `fallback_source` the
    rest. Elsewhere both are one folder.
    """

    path: str | None = None
    fallback: str | None = None
    fallback_source: str | None = None
    packages: tuple[str, ...] = ()
    following: str | None = None


@dataclass(frozen=True, slots=True)
class Kernel:
    """Everything `kernel_facts` returns except `missing`."""

    release: str
    arch: str
    bpf: dict[str, Any]
    config_source: str | None = None
    config: dict[str, str] = field(default_factory=dict)
    btf: bool = False
    cgroup2: str | None = None
    bpffs: bool = False
    jit: bool = True
    clsact: bool = False
    transparent_sockets: bool = False
    headers: Headers = Headers()
    commands: dict[str, bool] = field(default_factory=dict)
    bcc: bool = False
    armbian: Armbian | None = None
    modules: dict[str, str] = field(default_factory=dict)
    sysctls: dict[str, dict[str, object]] = field(default_factory=dict)

    def facts(self) -> dict[str, object]:
        return {**asdict(self), "missing": missing(self)}


def _text(path: str) -> str:
    """The file's text; empty when it cannot be read."""
    try:
        if path.endswith(".gz"):
            with gzip.open(path, "rt") as packed:
                return packed.read()
        with open(path, errors="replace") as plain:
            return plain.read()
    except OSError:
        return ""


def read_config(root: str, release: str) -> tuple[str | None, dict[str, str]]:
    """(the file that was read, {option: y | m | n}); (None, {}) when this kernel hides its configuration."""
    for path in (
        "/proc/config.gz",
        f"/boot/config-{release}",
        f"/lib/modules/{release}/config",
        f"/lib/modules/{release}/build/.config",
    ):
        text = _text(root + path)
        if text:
            found = dict(re.findall(r"^(CONFIG_\w+)=([ym])$", text, re.MULTILINE))
            return path, {option: found.get(option, "n") for option in CONFIG_OPTIONS}
    return None, {}


def read_mounts(root: str) -> list[tuple[str, str]]:
    """(mount point, file system type) of every mount this process sees."""
    rows = (line.split() for line in _text(root + "/proc/self/mounts").splitlines())
    return [(row[1], row[2]) for row in rows if len(row) > 2]


def read_shell_variables(text: str) -> dict[str, str]:
    """KEY=value lines of armbian-release, armbianEnv.txt or os-release."""
    return {key: value.strip("\"'") for key, value in re.findall(r"^\s*(\w+)=(.*?)\s*$", text, re.MULTILINE)}


def read_armbian(root: str) -> Armbian | None:
    release = read_shell_variables(_text(root + "/etc/armbian-release"))
    if not release:
        return None
    boot = read_shell_variables(_text(root + "/boot/armbianEnv.txt"))
    return Armbian(
        board=release.get("BOARD", ""),
        branch=release.get("BRANCH", ""),
        family=release.get("LINUXFAMILY", ""),
        version=release.get("VERSION", ""),
        extraargs=boot.get("extraargs", ""),
    )


def distribution_headers(root: str, arch: str) -> str:
    """The package that follows the distribution's own kernel, for boards whose vendor ships no headers."""
    system = read_shell_variables(_text(root + "/etc/os-release")).get("ID", "debian")
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(arch, arch)
    return "linux-headers-generic" if system == "ubuntu" else f"linux-headers-{machine}"


def following_headers(root: str, release: str) -> str | None:
    """The package that an upgrade of the distribution's own kernel brings new headers by. Without it a node that starts
    with its next kernel cannot compile the programs for that."""
    system = read_shell_variables(_text(root + "/etc/os-release")).get("ID", "debian")
    flavours = r"-[0-9]+-([a-z][a-z0-9-]*)$" if system == "ubuntu" else r"-((?:cloud-|rt-)?(?:amd64|arm64))$"
    found = re.search(flavours, release)
    return f"linux-headers-{found[1]}" if found else None


def read_headers(root: str, release: str, arch: str, armbian: Armbian | None) -> Headers:
    """bcc looks in /lib/modules/RELEASE/build, then /lib/modules/RELEASE/source, then the kernel's own archive."""
    places = (f"/lib/modules/{release}/build", f"/lib/modules/{release}/source", "/sys/kernel/kheaders.tar.xz")
    path = next((place for place in places if os.path.exists(root + place)), None)
    vendor = armbian.headers_package if armbian else f"linux-headers-{release}"
    fallback, source = newest_headers(root)
    following = None if armbian else following_headers(root, release)  # Armbian's vendor package follows its kernels
    return Headers(path, fallback, source, (vendor, distribution_headers(root, arch)), following)


def newest_headers(root: str) -> tuple[str | None, str | None]:
    """The highest release below /usr/src whose headers are complete: (generated part, rest)."""
    folder = root + "/usr/src"
    trees = os.listdir(folder) if os.path.isdir(folder) else []
    whole = [tree for tree in trees if os.path.exists(f"{folder}/{tree}/include/generated/autoconf.h")]
    if not whole:
        return None, None
    newest = max(whole, key=lambda tree: [int(number) for number in re.findall(r"\d+", tree)])
    parts = (re.sub(r"-[a-z0-9]+$", "-common", newest), re.sub(r"-[a-z]+$", "", newest))
    rest = next((part for part in parts if os.path.isdir(f"{folder}/{part}")), newest)
    return f"/usr/src/{newest}", f"/usr/src/{rest}"


def read_modules(root: str, release: str, names: list[str]) -> dict[str, str]:
    """name -> loaded, builtin, available (modprobe would find it) or absent."""
    folder = f"{root}/lib/modules/{release}"

    def listed(text: str) -> set[str]:
        return {path.replace("-", "_") for path in re.findall(r"([\w-]+)\.ko(?:\.\w+)?(?::|$)", text, re.MULTILINE)}

    loaded = {line.split()[0] for line in _text(root + "/proc/modules").splitlines()}
    builtin = listed(_text(folder + "/modules.builtin"))
    available = listed(_text(folder + "/modules.dep"))
    states = (("loaded", loaded), ("builtin", builtin), ("available", available))
    return {
        name: next((state for state, those in states if name.replace("-", "_") in those), "absent") for name in names
    }


def read_sysctls(root: str, names: list[str]) -> dict[str, dict[str, object]]:
    """name -> {value: text or None when this kernel or network namespace has no such key, writable: bool}."""
    found: dict[str, dict[str, object]] = {}
    for name in names:
        path = f"{root}/proc/sys/{_sysctl_path(name)}"
        present = os.path.exists(path)
        value = " ".join(_text(path).split()) if present else None
        # access(2) answers EROFS for a file on a read-only mount, also to root.
        found[name] = {"value": value, "writable": present and os.access(path, os.W_OK)}
    return found


def _sysctl_path(name: str) -> str:
    """As sysctl.d(5) reads a name: which of . and / comes first separates, and the other one is a dot, as in
    net.ipv4.conf.eth0/100.rp_filter for the device eth0.100."""
    dotted = re.match(r"[^/]*\.", name) is not None
    return name.translate(str.maketrans("./", "/.")) if dotted else name


def _need(feature: str, reason: str, remedy: str, package: str | None = None) -> dict[str, str | None]:
    return {"feature": feature, "reason": reason, "remedy": remedy, "package": package}


def _kernel_option(kernel: Kernel, options: str) -> str:
    """What to do when the kernel was built without `options`."""
    if kernel.armbian:
        return f"boot a kernel with {options}: on Armbian, choose the branch 'vendor' or 'current' in armbian-config"
    return f"boot a kernel with {options}"


def _missing_bpf(kernel: Kernel) -> list[dict[str, str | None]]:
    if not kernel.bpf["allowed"]:
        return [_need("bpf(2)", "the kernel refused every bpf(2) call: EPERM",
                      "run as root; inside a container, let its seccomp filter pass bpf")]  # fmt: skip
    needs = []
    for family, word in (("map_types", "map type"), ("prog_types", "program type"), ("helpers", "helper")):
        absent = sorted(name for name, there in kernel.bpf[family].items() if not there)
        needs += [_need(f"{word} {name}", f"kernel {kernel.release} does not have it",
                        _kernel_option(kernel, "CONFIG_BPF_SYSCALL, CONFIG_CGROUP_BPF and version 6.1 or newer"))
                  for name in absent]  # fmt: skip
    return needs


def _missing_mounts(kernel: Kernel) -> list[dict[str, str | None]]:
    needs = []
    if kernel.cgroup2 != "/sys/fs/cgroup":
        argument = "systemd.unified_cgroup_hierarchy=1"
        where = "extraargs in /boot/armbianEnv.txt" if kernel.armbian else "the kernel command line"
        needs.append(_need("cgroup v2", f"mounted at {kernel.cgroup2 or 'no place'}, not at /sys/fs/cgroup",
                           f"add {argument} to {where} and reboot"))  # fmt: skip
    return needs


def _missing_hooks(kernel: Kernel) -> list[dict[str, str | None]]:
    needs = []
    if not kernel.commands.get("tc", False):
        needs.append(_need("tc", "the command tc is not installed", "apt install iproute2", "iproute2"))
    elif not kernel.clsact:
        needs.append(_need("clsact", "a clsact queueing discipline with a bpf filter was refused",
                           _kernel_option(kernel, "CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF")))  # fmt: skip
    if not kernel.transparent_sockets:
        needs.append(_need("transparent sockets", "IP_TRANSPARENT was refused",
                           "run as root with CAP_NET_ADMIN in the node's own network namespace"))  # fmt: skip
    if not kernel.jit:
        needs.append(_need("BPF JIT", "net.core.bpf_jit_enable is 0", "sysctl net.core.bpf_jit_enable=1"))
    return needs


def _missing_compiler(kernel: Kernel) -> list[dict[str, str | None]]:
    needs = []
    if not kernel.bcc:
        needs.append(_need("bcc", "python3-bpfcc is not installed", "apt install python3-bpfcc", "python3-bpfcc"))
    if kernel.headers.path is None:
        package = kernel.headers.packages[0]
        others = " or ".join(kernel.headers.packages)
        needs.append(_need("kernel headers", f"/lib/modules/{kernel.release}/build does not exist",
                           f"apt install {others}", package))  # fmt: skip
    return needs


def missing(kernel: Kernel) -> list[dict[str, str | None]]:
    """What netstack needs and this node lacks; `package` is set where installing that package mends it."""
    return [need for look_for in (_missing_bpf, _missing_mounts, _missing_hooks, _missing_compiler)
            for need in look_for(kernel)]  # fmt: skip
