"""The machine: one run of QEMU, from power on to power off."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab import image

from . import initramfs, tree
from .kernel import Kernel, NotPrepared, find
from .machine import MACHINES, Machine, Share, command, kernel_parameters

REPOSITORY = Path(__file__).parents[2]
PROCESS_1 = Path(__file__).with_name("guest.sh")
SETTINGS = initramfs.Settings(become="/bin/sh /exchange/guest.sh")
MEMORY_MB, CPUS = 2048, 2


class GuestFailed(Exception):
    """The guest did not come to its end; the text holds the last it said on its console."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job: its exit code, and all that it said."""

    exit: int
    log: str


def root(machine: Machine, kernel: Kernel) -> list[Share]:
    """The root comes first: the others are mounted into it."""
    if machine.architecture == "arm64":  # the kernel's modules come with the tree
        return [Share("image", tree.build(), Path("/"))]
    modules = Share("modules", kernel.modules, Path("/lib/modules") / kernel.release)
    return [Share("image", image.build(), Path("/")), modules]


def shares(machine: Machine, kernel: Kernel, exchange: Path) -> list[Share]:
    """What a guest sees of the host, root first."""
    environment = (REPOSITORY / ".venv").resolve()
    programs = image.cache() / "programs"
    programs.mkdir(parents=True, exist_ok=True)
    return [
        *root(machine, kernel),
        Share("repository", REPOSITORY, REPOSITORY),
        # Made for this machine, and enough for arm64 too: what the Packet tests import of it is Python alone.
        Share("environment", environment, environment),
        # compiled programs are kept by kernel release
        Share("programs", programs, programs, writable=True),
        Share("exchange", exchange, Path("/exchange"), writable=True),
    ]


@contextmanager
def _alone() -> Iterator[None]:
    """One guest at a time on a machine: two would each take more than twice as long."""
    with (image.cache() / "qemu.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Guest:
    """`exchange` is a folder of the host's, seen at /exchange: the jobs, what they say, and what they write there."""

    def __init__(self, exchange: Path, architecture: str = "amd64") -> None:
        self.exchange = exchange
        self.machine = MACHINES[architecture]
        self.kernel = find(architecture)
        if shutil.which(self.machine.qemu) is None:
            raise NotPrepared(f"no {self.machine.qemu}: run tests/setup.sh kernels")
        self.console = exchange / "console.log"

    def run(self, jobs: Mapping[str, str], timeout_s: float = 600.0) -> dict[str, Outcome]:
        """Boots, runs the jobs (name -> shell script, started in the repository; the first failing command ends one),
        CPUS of them at once, and powers off. GuestFailed if it did not come to that in time."""
        numbered = {name: self.exchange / f"{number:02}-{name}.job" for number, name in enumerate(jobs)}
        prelude = f"cd {REPOSITORY}\nPATH={REPOSITORY}/.venv/bin:$PATH\nexport NETSTACK_CACHE={image.cache()}\n"
        for name, path in numbered.items():
            path.write_text(f"{prelude}{jobs[name]}\n")
        shutil.copy(PROCESS_1, self.exchange)
        self._boot(timeout_s)
        missing = [name for name, path in numbered.items() if not path.with_suffix(".exit").exists()]
        if missing:
            raise GuestFailed(f"the guest ended before {', '.join(missing)}:\n{self._last_words()}")
        return {
            name: Outcome(int(path.with_suffix(".exit").read_text()), path.with_suffix(".log").read_text())
            for name, path in numbered.items()
        }

    def _boot(self, timeout_s: float) -> None:
        shared = shares(self.machine, self.kernel, self.exchange)
        archive = self.exchange / "initramfs"
        table = [(share.tag, str(share.guest), "rw" if share.writable else "ro") for share in shared[1:]]
        archive.write_bytes(initramfs.archive(self.kernel, shared[0].host / "bin" / "busybox", table, SETTINGS))
        with _alone():
            # it dies with the process that started it
            process = subprocess.Popen(
                [
                    "setpriv",
                    "--pdeathsig",
                    "KILL",
                    *command(self.machine, MEMORY_MB, CPUS, self._arguments(shared, archive)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            try:
                _, complaint = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                raise GuestFailed(f"the guest still ran after {timeout_s:g} s:\n{self._last_words()}") from None
            finally:
                process.kill()
                process.wait()
        if process.returncode:
            raise GuestFailed(f"{self.machine.qemu}: exit {process.returncode}: {complaint.strip()}")

    def _arguments(self, shared: list[Share], archive: Path) -> list[str]:
        return [
            *("-no-reboot", "-serial", f"file:{self.console}"),
            *("-kernel", str(self.kernel.image), "-initrd", str(archive)),
            *("-append", kernel_parameters(self.machine)),
            *(argument for share in shared for argument in share.arguments),
        ]

    def _last_words(self) -> str:
        """The end of the console, and of the job that ran."""
        last = [self.console, *sorted(self.exchange.glob("[0-9]*.log"))[-1:]]
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in last if path.exists())
