"""A node: a whole Debian, booted by systemd-nspawn, that stands for one board.

A node's disk (overlay over the image) and its MAC live as long as the lab. Everything else lives as long as one boot,
as on metal: the network namespace with its cable, the bpffs and the cgroups, and with them every attached program,
pinned map, route, rule and pod. `supervise` is the mains: a process per running node that makes these anew, boots,
does it again when the node asks for a reboot, and ends when it powers off. `cut` is the other way to end.

What was found to matter (each was an evening):
- SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1: the node sees cgroup v2 alone, like a board, although the machine is hybrid.
- SYSTEMD_NSPAWN_API_VFS_WRITABLE=network: /proc/sys/net is writable, the rest of /proc/sys is the machine's and is not.
  /sys/fs/bpf is then no directory, so each boot gets its own bpffs by bind mount.
- the system call filter of nspawn refuses bpf(2) unless told otherwise.
- without CAP_SYS_TIME dropped, `date -s` or chrony in a node sets the machine's clock.
- killing the nspawn process leaves its payload running: only cgroup.kill of the whole tree is a power cut.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import cgroups, network, programs
from .image import image, ssh_key
from .names import SHARE, Names
from .shell import alive, run, wait_until
from .tls import authority

REBOOT = 133  # nspawn's exit code when the node asked for a reboot and nspawn was told to keep its unit

NSPAWN_ENVIRONMENT = {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"}

NSPAWN_FLAGS = (
    *("--quiet", "--boot", "--register=no", "--keep-unit", "--notify-ready=yes", "--private-users=no"),
    *("--resolv-conf=off", "--link-journal=no", "--console=pipe"),
    *("--capability=all", "--drop-capability=CAP_SYS_TIME,CAP_SYS_MODULE,CAP_SYS_RAWIO"),
    "--system-call-filter=bpf perf_event_open @keyring",
)

# Of commands that are run in a node.
ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "TERM": os.environ.get("TERM", "dumb"),
}


class NotRunning(Exception):
    """The node has no power."""


@dataclass(frozen=True, slots=True)
class Boot:
    """One boot of a node, as its supervisor last wrote it down."""

    count: int  # boots since the lab was made; the first is 1
    leader: int  # the node's PID 1, as the machine numbers it; 0 until there is one
    ready: bool  # the node's systemd reached its default target


@dataclass(frozen=True, slots=True)
class Node:
    names: Names
    number: int

    @property
    def name(self) -> str:
        return f"n{self.number}"

    @property
    def address(self) -> str:
        return f"192.168.86.{20 + self.number}"

    @property
    def pod_cidr(self) -> str:
        return f"10.244.{self.number}.0/24"

    @property
    def port(self) -> network.Port:
        return network.Port(self.name, self.address)

    @property
    def mac(self) -> str:
        return self.port.mac

    @property
    def folder(self) -> Path:
        return self.names.run / "nodes" / self.name

    @property
    def root(self) -> Path:
        """The node's disk as the machine sees it. Mounts made in the node (/run, /tmp, /sys) are not visible here."""
        return self.folder / "root"

    @property
    def cgroup(self) -> str:
        return f"{self.names.cgroup}/{self.name}"

    @property
    def payload(self) -> str:
        """The cgroup that is the node's root cgroup, /sys/fs/cgroup in it."""
        return f"{self.cgroup}/payload"

    @property
    def own_kubelet(self) -> Path:
        """Is there while a real kubelet runs in the node (containers.py)."""
        return self.folder / "kubelet"

    def boot_state(self) -> Boot | None:
        """The current boot; None while the node is off."""
        try:
            return Boot(**json.loads((self.folder / "boot.json").read_text()))
        except FileNotFoundError:
            return None

    @property
    def leader(self) -> int:
        """The node's PID 1 in the machine's numbers. Raises NotRunning."""
        boot = self.boot_state()
        if boot is None or not boot.leader:
            raise NotRunning(self.name)
        return boot.leader

    def enter(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs argv in the node: all its namespaces, and a cgroup below its root, so that its
        socket programs see what argv does."""
        cgroup = cgroups.unified() / self.payload / "lab"
        cgroup.mkdir(exist_ok=True)
        environment = (f"{name}={value}" for name, value in ENVIRONMENT.items())
        inside = ["nsenter", f"--target={self.leader}", "--all", "--", "env", "-i", "-C", "/root", *environment, *argv]
        return cgroups.joined([cgroup / "cgroup.procs"], inside)

    def run(
        self, command: str | Sequence[str], *, stdin: str | None = None, check: bool = True, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell line, or an argument list, as root in the node. Raises CommandFailed (if check), NotRunning."""
        argv = ["sh", "-c", command] if isinstance(command, str) else command
        return run(self.enter(argv), stdin=stdin, check=check, timeout_s=timeout_s)

    def prepare(self) -> None:
        """Make the node's disk; once per lab."""
        for part in ("root", "upper", "work", "bpf"):
            (self.folder / part).mkdir(parents=True)
        layers = f"lowerdir={image()},upperdir={self.folder / 'upper'},workdir={self.folder / 'work'}"
        run(["mount", "-t", "overlay", "-o", layers, self.names.netns(self.name), str(self.root)])
        (self.root / "etc/hostname").write_text(f"{self.name}\n")
        # Some programs look up their own host's name when they start (curl, through libldap), in pods too.
        (self.root / "etc/hosts").write_text(f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        (self.root / "etc/netstack/manifests").mkdir(parents=True)
        programs.seed(self.root)
        with (self.root / "etc/ssl/certs/ca-certificates.crt").open("a") as trusted:
            trusted.write(authority().certificate.read_text())

    def start(self) -> None:
        """Switch the node on; returns at once."""
        tests = Path(__file__).parent.parent
        supervisor = cgroups.spawn(
            [sys.executable, "-m", "lab.supervisor", self.names.prefix, str(self.number)],
            cgroup=self.cgroup,
            log=self.folder / "console.log",
            env={**os.environ, "PYTHONPATH": str(tests)},
        )
        (self.folder / "supervisor.pid").write_text(str(supervisor))

    def wait_booted(self, boot: int = 0, timeout_s: float = 60.0) -> None:
        """Wait until boot number `boot` (or a later one) has reached its default target, sshd included.

        Raises NotRunning with the end of the console if the node has gone off meanwhile, and TimedOut.
        """
        supervisor = int((self.folder / "supervisor.pid").read_text())

        def booted() -> bool:
            state = self.boot_state()
            if not alive(supervisor):
                console = (self.folder / "console.log").read_text(errors="replace")
                raise NotRunning(f"{self.name}; its console ended with\n{console[-2000:]}")
            return state is not None and state.ready and state.count >= boot

        wait_until(booted, f"{self.name} to boot (console: {self.folder / 'console.log'})", timeout_s)

    def reboot(self) -> None:
        """An orderly restart, as `reboot` typed on the node; returns when it is booted again."""
        before = self.boot_state()
        if before is None:
            raise NotRunning(self.name)
        self.run(["systemctl", "reboot"])
        self.wait_booted(before.count + 1)

    def cut(self) -> float:
        """Cut the power: the cable goes dead and every process with it. Returns when, in time.monotonic() seconds."""
        run(["ip", "-n", self.names.netns(network.LAN), "link", "set", self.port.link, "down"], check=False)
        (cgroups.unified() / self.cgroup / "cgroup.kill").write_text("1")
        when = time.monotonic()
        cgroups.kill(self.cgroup)
        self.forget_boot()
        return when

    def forget_boot(self) -> None:
        """Destroy what lives as long as a boot. The node's processes are gone already."""
        (self.folder / "boot.json").unlink(missing_ok=True)
        self.own_kubelet.unlink(missing_ok=True)
        network.unplug(self.names, self.port)
        while run(["umount", str(self.folder / "bpf")], check=False).returncode == 0:
            continue
        cgroups.kill(self.payload)
        cgroups.remove(self.payload)

    def count_boot(self) -> int:
        """The number of the boot that begins."""
        path = self.folder / "boots"
        count = int(path.read_text()) + 1 if path.exists() else 1
        path.write_text(str(count))
        return count

    def make_boot(self) -> None:
        """Make what lives as long as a boot: namespace and cable, bpffs."""
        network.plug(self.names, self.port)
        options = "nosuid,nodev,noexec,mode=700"
        run(["mount", "-t", "bpf", "-o", options, f"bpf-{self.name}", str(self.folder / "bpf")])

    def nspawn(self) -> list[str]:
        binds = {
            self.folder / "bpf": "/sys/fs/bpf",
            self.names.manifests: "/etc/netstack/manifests",
        }
        read_only = {
            ssh_key().with_suffix(".pub"): "/root/.ssh/authorized_keys",
            self.names.run / "shared": "/opt/lab/shared",
            SHARE: "/opt/lab/share",
        }
        return [
            "systemd-nspawn",
            *NSPAWN_FLAGS,
            f"--directory={self.root}",
            f"--machine={self.name}",
            f"--network-namespace-path={self.names.netns_path(self.name)}",
            *(f"--bind={source}:{target}" for source, target in binds.items()),
            *(f"--bind-ro={source}:{target}" for source, target in read_only.items()),
        ]


def supervise(node: Node) -> None:
    """Boot the node, again whenever it asks for a reboot, until it powers off."""
    while True:
        count = node.count_boot()
        node.forget_boot()
        node.make_boot()
        if boot_once(node, count) != REBOOT:
            node.forget_boot()
            return


def boot_once(node: Node, count: int) -> int:
    """One boot from power on to power off or reboot; keeps the node's boot.json. Returns nspawn's exit code."""
    path = node.folder / "notify"
    path.unlink(missing_ok=True)
    leader, ready = 0, False
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify,
        selectors.DefaultSelector() as selector,
    ):
        notify.bind(str(path))
        environment = {**os.environ, **NSPAWN_ENVIRONMENT, "NOTIFY_SOCKET": str(path)}
        nspawn = subprocess.Popen(node.nspawn(), env=environment, stdin=subprocess.DEVNULL)
        ended = os.pidfd_open(nspawn.pid)
        selector.register(notify, selectors.EVENT_READ)
        selector.register(ended, selectors.EVENT_READ)
        while True:
            if any(key.fd == ended for key, _ in selector.select()):
                os.close(ended)
                return nspawn.wait()
            for line in notify.recv(4096).decode().splitlines():
                name, _, value = line.partition("=")
                leader = int(value) if name == "X_NSPAWN_LEADER_PID" else leader
                ready = ready or line == "READY=1"
            unfinished = node.folder / ".boot.json"
            unfinished.write_text(json.dumps({"count": count, "leader": leader, "ready": ready}))
            unfinished.rename(node.folder / "boot.json")
