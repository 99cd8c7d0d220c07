"""The initramfs: busybox, the modules that reach the root over 9p, and `init` beside this file.

The archive is cpio's "newc" (kernel, Documentation/driver-api/early-userspace/buffer-format.rst): for every member a
header of 13 fields of 8 hex digits, its name, its content, the last two padded to 4 bytes; a member named TRAILER!!!
ends it.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .kernel import Kernel

INIT = Path(__file__).with_name("init")
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
BOARD_MODULES = ("virtio_net", "virtio_blk", "crc32c_generic", "ext4")
APPLETS = ("sh", "echo", "insmod", "ip", "mkdir", "mount", "switch_root", "umount")
FOLDERS = ("bin", "changes", "dev", "image", "modules", "proc", "root")


@dataclass(frozen=True, slots=True)
class Settings:
    """What `init` is told beside the shares."""

    become: str  # process 1 of the guest
    disk: str = ""  # device with the changes to the root; none = they are gone with the guest
    address: str = ""  # "192.168.86.22/24" of eth0; none = no network
    gateway: str = ""

    def text(self) -> str:
        return f"become='{self.become}'\ndisk='{self.disk}'\naddress='{self.address}'\ngateway='{self.gateway}'\n"


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def _member(name: str, mode: int, content: bytes = b"") -> bytes:
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name.encode() + b"\0") + _padded(content)


def archive(kernel: Kernel, busybox: Path, shares: Sequence[tuple[str, str, str]], settings: Settings) -> bytes:
    """`shares`: (tag, path in the guest, "ro" or "rw") to be mounted below the root, in this order."""
    modules = kernel.closure(MODULES + BOARD_MODULES if settings.disk else MODULES)
    order = "".join(f"{path.name}\n" for path in modules)
    mounts = "".join(f"{' '.join(share)}\n" for share in shares)
    members = [_member(name, stat.S_IFDIR | 0o755) for name in FOLDERS]
    members.append(_member("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes()))
    members += [_member(f"bin/{name}", stat.S_IFLNK | 0o777, b"busybox") for name in APPLETS]
    members += [_member(f"modules/{path.name}", stat.S_IFREG | 0o644, path.read_bytes()) for path in modules]
    for name, text in {"modules/order": order, "shares": mounts, "settings": settings.text()}.items():
        members.append(_member(name, stat.S_IFREG | 0o644, text.encode()))
    members.append(_member("init", stat.S_IFREG | 0o755, INIT.read_bytes()))
    return b"".join(members) + _member("TRAILER!!!", 0)
