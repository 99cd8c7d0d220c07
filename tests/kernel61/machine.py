"""The two kinds of board as QEMU plays them, interpreted: what a processor is told by, and nothing about what runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Machine:
    architecture: str  # as Debian calls it
    qemu: str
    processor: tuple[str, ...]
    console: str
    parameters: str = ""  # of the kernel


MACHINES = {
    machine.architecture: machine
    for machine in (
        Machine(
            "amd64",
            "qemu-system-x86_64",
            ("-M", "q35", "-cpu", "Nehalem"),  # wider registers cost more, interpreted
            "ttyS0",
            "tsc=reliable",  # else it asks the HPET for the time, and every answer holds up the other processors
        ),
        # The large cores of the boards' RK3588.
        Machine("arm64", "qemu-system-aarch64", ("-M", "virt,gic-version=3", "-cpu", "cortex-a76"), "ttyAMA0"),
    )
}


@dataclass(frozen=True, slots=True)
class Share:
    """A folder of the host that the guest sees."""

    tag: str
    host: Path
    guest: Path
    writable: bool = False

    @property
    def arguments(self) -> tuple[str, str]:
        path = str(self.host).replace(",", ",,")
        readonly = "off" if self.writable else "on"
        return "-virtfs", (
            f"local,path={path},mount_tag={self.tag},security_model=none,readonly={readonly},multidevs=remap"
        )


def kernel_parameters(machine: Machine) -> str:
    """What the kernel of every guest is told."""
    return f"console={machine.console} panic=-1 quiet mitigations=off nokaslr {machine.parameters}"


def command(machine: Machine, memory_mb: int, processors: int, arguments: Sequence[str]) -> list[str]:
    """QEMU gives way to everything else on the machine."""
    return [
        *("nice", "-n", "5"),
        *(machine.qemu, "-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg,thread=multi"),
        *machine.processor,
        *("-smp", str(processors), "-m", str(memory_mb)),
        *arguments,
    ]
