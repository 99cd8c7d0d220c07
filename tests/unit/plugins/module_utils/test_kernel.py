from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.kubelab.netstack.plugins.module_utils import _bpf, _kernel

RELEASE = "6.1.115-vendor-rk35xx"
EVERYTHING: dict[str, Any] = {
    "allowed": True,
    "map_types": dict.fromkeys(_bpf.MAP_TYPES, True),
    "prog_types": dict.fromkeys(_bpf.PROG_TYPES, True),
    "helpers": dict.fromkeys(_bpf.HELPERS, True),
}
WHOLE = _kernel.Kernel(
    release=RELEASE,
    arch="aarch64",
    bpf=EVERYTHING,
    cgroup2="/sys/fs/cgroup",
    bpffs=True,
    clsact=True,
    transparent_sockets=True,
    headers=_kernel.Headers(path=f"/lib/modules/{RELEASE}/build", packages=("linux-headers-vendor-rk35xx",)),
    commands={"tc": True},
    bcc=True,
)
BOARD = _kernel.Armbian("orangepi5", "vendor", "rk35xx", "25.8.1", "")


def write(root: Path, path: str, text: str) -> None:
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def needs(kernel: _kernel.Kernel) -> list[tuple[str | None, str | None]]:
    return [(need["feature"], need["remedy"]) for need in _kernel.missing(kernel)]


def test_a_whole_kernel_lacks_nothing() -> None:
    assert needs(WHOLE) == []


@pytest.mark.parametrize(
    ("change", "feature", "remedy"),
    [
        ({"bcc": False}, "bcc", "apt install python3-bpfcc"),
        ({"commands": {"tc": False}}, "tc", "apt install iproute2"),
        ({"clsact": False}, "clsact", "boot a kernel with CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF"),
        ({"jit": False}, "BPF JIT", "sysctl net.core.bpf_jit_enable=1"),
        (
            {"cgroup2": None},
            "cgroup v2",
            "add systemd.unified_cgroup_hierarchy=1 to the kernel command line and reboot",
        ),
        (
            {"cgroup2": None, "armbian": BOARD},
            "cgroup v2",
            "add systemd.unified_cgroup_hierarchy=1 to extraargs in /boot/armbianEnv.txt and reboot",
        ),
        (
            {"headers": _kernel.Headers(packages=("linux-headers-vendor-rk35xx", "linux-headers-arm64"))},
            "kernel headers",
            "apt install linux-headers-vendor-rk35xx or linux-headers-arm64",
        ),
        (
            {"bpf": {"allowed": False, "map_types": {}, "prog_types": {}, "helpers": {}}},
            "bpf(2)",
            "run as root; inside a container, let its seccomp filter pass bpf",
        ),
        (
            {"bpf": {**EVERYTHING, "helpers": {**EVERYTHING["helpers"], "redirect_neigh": False}}},
            "helper redirect_neigh",
            "boot a kernel with CONFIG_BPF_SYSCALL, CONFIG_CGROUP_BPF and version 6.1 or newer",
        ),
    ],
)
def test_what_is_missing_is_named_with_its_remedy(change: dict[str, Any], feature: str, remedy: str) -> None:
    assert needs(replace(WHOLE, **change)) == [(feature, remedy)]


def test_only_what_a_package_mends_names_one() -> None:
    broken = replace(WHOLE, bcc=False, clsact=False)
    assert [need["package"] for need in _kernel.missing(broken)] == [None, "python3-bpfcc"]


def test_the_configuration_is_read_from_the_kernel_or_from_boot(tmp_path: Path) -> None:
    root = str(tmp_path)
    assert _kernel.read_config(root, RELEASE) == (None, {})
    write(tmp_path, f"/boot/config-{RELEASE}", "CONFIG_BPF_SYSCALL=y\nCONFIG_VETH=m\n# CONFIG_NET_CLS_BPF is not set\n")
    source, config = _kernel.read_config(root, RELEASE)
    assert source == f"/boot/config-{RELEASE}"
    assert (config["CONFIG_BPF_SYSCALL"], config["CONFIG_VETH"], config["CONFIG_NET_CLS_BPF"]) == ("y", "m", "n")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/config.gz").write_bytes(gzip.compress(b"CONFIG_VETH=y\n"))
    source, config = _kernel.read_config(root, RELEASE)
    assert (source, config["CONFIG_VETH"]) == ("/proc/config.gz", "y")


def test_armbian_is_known_by_its_files(tmp_path: Path) -> None:
    assert _kernel.read_armbian(str(tmp_path)) is None
    write(tmp_path, "/etc/armbian-release", 'BOARD=orangepi5\nBRANCH="vendor"\nLINUXFAMILY=rk35xx\nVERSION=25.8.1\n')
    write(tmp_path, "/boot/armbianEnv.txt", "verbosity=1\nextraargs=cma=256M cgroup_enable=memory\n")
    board = _kernel.read_armbian(str(tmp_path))
    assert board == _kernel.Armbian("orangepi5", "vendor", "rk35xx", "25.8.1", "cma=256M cgroup_enable=memory")
    assert board.headers_package == "linux-headers-vendor-rk35xx"


@pytest.mark.parametrize(
    ("system", "arch", "package"),
    [
        ("ID=debian", "aarch64", "linux-headers-arm64"),
        ("ID=debian", "x86_64", "linux-headers-amd64"),
        ("ID=ubuntu", "aarch64", "linux-headers-generic"),
    ],
)
def test_headers_of_the_distribution_are_the_way_out(tmp_path: Path, system: str, arch: str, package: str) -> None:
    write(tmp_path, "/etc/os-release", f"NAME=x\n{system}\n")
    headers = _kernel.read_headers(str(tmp_path), RELEASE, arch, BOARD)
    assert headers == _kernel.Headers(None, None, None, ("linux-headers-vendor-rk35xx", package))


@pytest.mark.parametrize(
    ("system", "release", "package"),
    [
        ("ID=debian", "6.1.0-56-arm64", "linux-headers-arm64"),
        ("ID=debian", "6.1.0-56-cloud-amd64", "linux-headers-cloud-amd64"),
        ("ID=debian", "6.12.43+deb13-rt-arm64", "linux-headers-rt-arm64"),
        ("ID=ubuntu", "6.8.0-31-generic", "linux-headers-generic"),
        ("ID=ubuntu", "6.8.0-1004-raspi", "linux-headers-raspi"),
        ("ID=debian", "6.18.5", None),
    ],
)
def test_headers_of_later_kernels_come_with_those_of_this(
    tmp_path: Path, system: str, release: str, package: str | None
) -> None:
    write(tmp_path, "/etc/os-release", f"NAME=x\n{system}\n")
    headers = _kernel.read_headers(str(tmp_path), release, "aarch64", None)
    assert (headers.packages[0], headers.following) == (f"linux-headers-{release}", package)
    assert _kernel.read_headers(str(tmp_path), release, "aarch64", BOARD).following is None


def test_complete_headers_of_the_newest_release_are_a_fallback(tmp_path: Path) -> None:
    for tree in ("linux-headers-6.1.0-9-arm64", "linux-headers-6.1.0-56-arm64"):
        write(tmp_path, f"/usr/src/{tree}/include/generated/autoconf.h", "")
    write(tmp_path, "/usr/src/linux-headers-6.1.0-56-common/Makefile", "")
    write(tmp_path, "/usr/src/linux-headers-7.0.0-1-arm64/Makefile", "")  # not complete
    headers = _kernel.read_headers(str(tmp_path), RELEASE, "aarch64", None)
    assert headers.fallback == "/usr/src/linux-headers-6.1.0-56-arm64"
    assert headers.fallback_source == "/usr/src/linux-headers-6.1.0-56-common"


def test_modules_are_loaded_built_in_available_or_absent(tmp_path: Path) -> None:
    write(tmp_path, "/proc/modules", "veth 36864 0 - Live 0x0\n")
    write(tmp_path, f"/lib/modules/{RELEASE}/modules.builtin", "kernel/net/sched/sch_ingress.ko\n")
    write(tmp_path, f"/lib/modules/{RELEASE}/modules.dep", "kernel/net/sched/cls-bpf.ko.xz: kernel/x.ko\n")
    names = ["veth", "sch_ingress", "sch-ingress", "cls_bpf", "wireguard"]
    assert _kernel.read_modules(str(tmp_path), RELEASE, names) == {
        "veth": "loaded",
        "sch_ingress": "builtin",
        "sch-ingress": "builtin",
        "cls_bpf": "available",
        "wireguard": "absent",
    }


def test_sysctls_that_are_not_there_have_no_value(tmp_path: Path) -> None:
    write(tmp_path, "/proc/sys/net/ipv4/ip_local_port_range", "32768\t49151\n")
    seen = _kernel.read_sysctls(str(tmp_path), ["net.ipv4.ip_local_port_range", "net.core.bpf_jit_enable"])
    assert seen == {
        "net.ipv4.ip_local_port_range": {"value": "32768 49151", "writable": True},
        "net.core.bpf_jit_enable": {"value": None, "writable": False},
    }


def test_a_dot_in_the_name_of_a_device_is_a_slash_in_that_of_its_sysctl(tmp_path: Path) -> None:
    write(tmp_path, "/proc/sys/net/ipv4/conf/eth0.100/rp_filter", "2\n")
    names = ["net.ipv4.conf.eth0/100.rp_filter", "net/ipv4/conf/eth0.100/rp_filter"]
    assert [seen["value"] for seen in _kernel.read_sysctls(str(tmp_path), names).values()] == ["2", "2"]


def test_text_of_another_encoding_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    write(tmp_path, "/etc/armbian-release", "")
    (tmp_path / "etc/armbian-release").write_bytes(b"BOARD=a\nVENDOR=\xc9t\xe9\nBRANCH=b\n")
    board = _kernel.read_armbian(str(tmp_path))
    assert board is not None and (board.board, board.branch) == ("a", "b")


def test_facts_are_plain_data_with_what_is_missing() -> None:
    facts = replace(WHOLE, armbian=BOARD, bcc=False).facts()
    assert facts["armbian"] == {
        "board": "orangepi5", "branch": "vendor", "family": "rk35xx", "version": "25.8.1", "extraargs": ""
    }  # fmt: skip
    assert [need["feature"] for need in facts["missing"]] == ["bcc"]  # type: ignore[attr-defined]
