"""The initramfs: busybox, the modules that reach the root over 9p, and `init` beside this file.

The archive is cpio's "newc" (kernel, Documentation/driver-api/early-userspace/buffer-format.rst): for every member a
header of 13 fields of 8 hex digits, its name, its content, the last two padded to 4 bytes; a member named TRAILER!!!
ends it.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

from .kernel import Kernel

INIT = Path(__file__).with_name("init")
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
APPLETS = ("sh", "echo", "insmod", "mkdir", "mount", "switch_root", "umount")
FOLDERS = ("bin", "changes", "dev", "image", "modules", "proc", "root")


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def _member(name: str, mode: int, content: bytes = b"") -> bytes:
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name.encode() + b"\0") + _padded(content)


def archive(kernel: Kernel, busybox: Path, shares: Sequence[tuple[str, str, str]]) -> bytes:
    """`shares`: (tag, path in the guest, "ro" or "rw") to be mounted below the root, in this order."""
    modules = kernel.closure(MODULES)
    members = [_member(name, stat.S_IFDIR | 0o755) for name in FOLDERS]
    members.append(_member("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes()))
    members += [_member(f"bin/{name}", stat.S_IFLNK | 0o777, b"busybox") for name in APPLETS]
    members += [_member(f"modules/{path.name}", stat.S_IFREG | 0o644, path.read_bytes()) for path in modules]
    order = "".join(f"{path.name}\n" for path in modules)
    mounts = "".join(f"{' '.join(share)}\n" for share in shares)
    members.append(_member("modules/order", stat.S_IFREG | 0o644, order.encode()))
    members.append(_member("shares", stat.S_IFREG | 0o644, mounts.encode()))
    members.append(_member("init", stat.S_IFREG | 0o755, INIT.read_bytes()))
    return b"".join(members) + _member("TRAILER!!!", 0)
