"""A board: a node of a lab that is a whole machine, with a kernel of its own.

    with Lab("mine", nodes=1) as lab:
        board = join(lab, "arm64")
        board.run("systemctl status netstack-agent")

What nspawn's nodes share with the machine a board has for itself: modules, all sysctls, cgroup v2 with its
controllers, its clock. Its root is that of a guest, read-only, under a disk in the lab's folder that lives as long as
the lab, so that what was written survives a reboot. Its network cards are taps in the lab's LAN, the first with the MAC
and the address that a node of its number has. It is reached by ssh alone, as a real one. Its processes are not the
machine's, so a pod on it is a BoardPod.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import cgroups, image, inventory, network, objects, programs
from lab.lab import Lab
from lab.names import SHARE
from lab.node import Boot, Node, NotRunning
from lab.pods import Pod
from lab.shell import alive, run, wait_until
from lab.tls import authority

from . import compiled, initramfs
from .guest import root
from .kernel import Kernel, find
from .machine import MACHINES, Machine, Share, command, kernel_parameters

MEMORY_MB, CPUS = 1536, 2
DISK_SIZE = "2G"
DISK = "/dev/vda"

# With a folder's content, as a tar, on standard input: makes the node's folder of objects hold that. Files change by
# rename, so none is ever read half; what roles and daemons put there stays.
MIRROR = """
set -e
cd /etc/netstack/manifests
rm -rf .incoming
mkdir .incoming
tar -C .incoming -x --touch
touch .taken
while read -r file; do
    [ -e ".incoming/$file" ] || rm -f "$file"
done < .taken
ls .incoming > .taken
find .incoming -type f -exec mv -t . {} +
rm -r .incoming
"""


@dataclass(frozen=True, slots=True)
class Board(Node):
    """Node number `number` of the lab; none of nspawn's may have it."""

    architecture: str = "amd64"

    @property
    def machine(self) -> Machine:
        return MACHINES[self.architecture]

    @property
    def kernel(self) -> Kernel:
        return find(self.architecture)

    @property
    def taps(self) -> dict[str, str]:
        """Network cards, eth0 and eth1: name of the tap -> MAC. Nothing uses the second unless told to."""
        return {self.port.link: self.mac, f"{self.port.link}b": self.mac.replace("02:", "06:", 1)}

    @property
    def console(self) -> Path:
        return self.folder / "console.log"

    def enter(self, argv: Sequence[str]) -> list[str]:
        return [*self._ssh, f"root@{self.address}", shlex.join(argv)]

    @property
    def _ssh(self) -> list[str]:
        patience = ["-o", "ConnectTimeout=3", "-o", "ServerAliveInterval=3", "-o", "ServerAliveCountMax=5"]
        return ["ssh", "-i", str(image.ssh_key()), *patience, *shlex.split(inventory.ssh_options(self.names))]

    def prepare(self) -> None:
        self.folder.mkdir(parents=True)
        with tempfile.TemporaryDirectory() as folder:
            upper = Path(folder) / "upper"
            (upper / "etc/ssl/certs").mkdir(parents=True)
            (upper / "root/.ssh").mkdir(parents=True)
            (upper / "root").chmod(0o700)
            (upper / "root/.ssh").chmod(0o700)
            shutil.copy(image.ssh_key().with_suffix(".pub"), upper / "root/.ssh/authorized_keys")
            (upper / "etc/hostname").write_text(f"{self.name}\n")
            (upper / "etc/hosts").write_text(f"127.0.0.1 localhost\n{self.address} {self.name}\n")
            trusted = (image.image() / "etc/ssl/certs/ca-certificates.crt").read_text()
            (upper / "etc/ssl/certs/ca-certificates.crt").write_text(trusted + authority().certificate.read_text())
            compiled.seed(self.kernel)
            programs.seed(upper)
            run(["mke2fs", "-q", "-t", "ext4", "-d", folder, str(self.folder / "disk"), DISK_SIZE])

    def start(self) -> None:
        shares = [
            *root(self.machine, self.kernel),
            Share("share", SHARE, Path("/opt/lab/share")),
            Share("shared", self.names.run / "shared", Path("/opt/lab/shared"), writable=True),
        ]
        settings = initramfs.Settings("/sbin/init", DISK, f"{self.address}/24", network.GATEWAY)
        table = [(share.tag, str(share.guest), "rw" if share.writable else "ro") for share in shares[1:]]
        busybox = shares[0].host / "bin/busybox"
        (self.folder / "initramfs").write_bytes(initramfs.archive(self.kernel, busybox, table, settings))
        pid = cgroups.spawn(
            command(self.machine, MEMORY_MB, CPUS, self._arguments(shares)),
            cgroup=self.cgroup,
            log=self.folder / "qemu.log",
            netns=self.names.netns_path(network.LAN),
        )
        (self.folder / "supervisor.pid").write_text(str(pid))

    def _arguments(self, shares: Sequence[Share]) -> list[str]:
        lan = self.names.netns(network.LAN)
        mask = f"systemd.mask=serial-getty@{self.machine.console}.service"
        cards: list[str] = []
        for number, (tap, mac) in enumerate(self.taps.items()):
            network.ip([f"tuntap add {tap} mode tap", f"link set {tap} master {network.BRIDGE} up"], lan)
            cards += ["-netdev", f"tap,id=n{number},ifname={tap},script=no,downscript=no"]
            cards += ["-device", f"virtio-net-pci,netdev=n{number},mac={mac},romfile="]
        return [
            *("-serial", f"file:{self.console}"),
            *("-kernel", str(self.kernel.image), "-initrd", str(self.folder / "initramfs")),
            *("-append", f"{kernel_parameters(self.machine)} net.ifnames=0 {mask}"),
            *("-drive", f"file={self.folder / 'disk'},format=raw,if=virtio,cache=unsafe"),
            *cards,
            *(argument for share in shares for argument in share.arguments),
        ]

    def wait_booted(self, boot: int = 0, timeout_s: float = 480.0) -> None:
        """Wait until systemd has reached its default target in another boot than the last one waited for.

        Raises NotRunning with the end of the console if QEMU has ended meanwhile, and TimedOut.
        """
        qemu = int((self.folder / "supervisor.pid").read_text())
        known = self.folder / "boot_id"
        before = known.read_text() if known.exists() else ""

        def booted() -> bool:
            if not alive(qemu):
                said = "\n".join(path.read_text(errors="replace") for path in (self.folder / "qemu.log", self.console))
                raise NotRunning(f"{self.name}; its console ended with\n{said[-3000:]}")
            question = "cat /proc/sys/kernel/random/boot_id; systemctl is-system-running --wait"
            answer = self.run(question, check=False, timeout_s=timeout_s)
            boot_id, _, state = answer.stdout.partition("\n")
            if boot_id in ("", before) or state.strip() not in ("running", "degraded"):
                return False
            known.write_text(boot_id)
            return True

        wait_until(booted, f"{self.name} to boot (console: {self.console})", timeout_s, step_s=0.2)
        state = Boot(self.count_boot(), 0, True)
        (self.folder / "boot.json").write_text(json.dumps(dataclasses.asdict(state)))

    def reboot(self) -> None:
        """An orderly restart; returns when it is booted again."""
        self.run("systemctl reboot", check=False)  # the connection may end before the answer
        subprocess.run([*self._ssh, "-O", "exit", self.address], capture_output=True, check=False)
        self.wait_booted()

    def take(self, manifests: Path) -> None:
        """Make the board's objects those of the lab, as its folder of objects is not shared."""
        packed = subprocess.run(["tar", "-C", str(manifests), "-c", "."], capture_output=True, check=True).stdout
        subprocess.run(self.enter(["sh", "-c", MIRROR]), input=packed, check=True, timeout=300)


class BoardPod(Pod):
    """A pod on a board: its process is reached through the board."""

    def enter(self, argv: Sequence[str]) -> list[str]:
        return self._node.enter(["nsenter", f"--target={self.sandbox.pid}", "--net", "--mount", "--", *argv])

    def _main_process(self) -> int:
        return int(self._node.run(["systemctl", "show", "--property=MainPID", "--value", self._unit]).stdout)

    def _wait_listening(self) -> None:
        ports = self.object["spec"]["containers"][0]["ports"]
        wanted = {port["containerPort"] for port in ports if port["protocol"] == "TCP"}

        def listening() -> bool:
            sockets = self.exec(["ss", "-Hltn"]).stdout.splitlines()
            return wanted <= {int(line.split()[3].rpartition(":")[2]) for line in sockets}

        wait_until(listening, f"pod {self.namespace}/{self.name} to listen on {sorted(wanted)}", 60)


def join(lab: Lab, architecture: str = "amd64") -> Board:
    """One more node for a lab that is up; booted, known to its API, and without netstack."""
    board = Board(lab.names, len(lab.nodes) + 1, architecture)
    lab.apply(objects.node(board.name, board.address, board.pod_cidr))
    board.prepare()
    board.start()
    board.wait_booted()
    board.run("mkdir -p /etc/netstack/manifests")
    board.take(lab.names.manifests)
    return board
