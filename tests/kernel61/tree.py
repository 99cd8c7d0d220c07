"""The root of arm64 guests: packages laid out as files. Made on any machine, with no program of arm64 run for it.

mmdebstrap's variant `extract` unpacks and runs no maintainer script; tree-finish.sh does what a guest of ours needs of
their work. Kernel, modules and headers come with it, so that they always fit one another.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from pathlib import Path

from lab.image import SUITE, UNPACK_WITHOUT, cache, words
from lab.shell import run

PACKAGES = (
    # what the jobs of a guest run
    "linux-image-arm64 linux-headers-arm64 python3 python3-bpfcc python3-venv bpftool iproute2 procps ethtool",
    "iputils-ping busybox-static coreutils dash findutils grep gzip libc-bin mount sed tar util-linux haproxy",
    # a bootable system that ansible can manage
    "apt base-files base-passwd bash dbus hostname kmod openssh-server python3-apt systemd systemd-sysv",
)

# The recipe's last hook, with the new tree as $1.
FINISH = Path(__file__).with_name("tree-finish.sh")


def recipe(finish: str, target: str) -> list[str]:
    """The command line that makes the tree in `target`."""
    return [
        *("mmdebstrap", "--quiet", "--arch=arm64", "--variant=extract", "--skip=download/empty"),
        f"--include={','.join(words(PACKAGES))}",
        '--aptopt=Acquire::Languages "none"',
        *(f"--dpkgopt=path-exclude={path}" for path in UNPACK_WITHOUT),
        f"--extract-hook={finish}",
        SUITE,
        target,
    ]


def tree() -> Path:
    """The tree's folder, whether it has been made or not."""
    text = "\n".join([*recipe("finish", "tree"), FINISH.read_text()])
    return cache() / f"tree-arm64-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def build() -> Path:
    """The tree's folder; makes it first if it is missing (a minute). Safe to call from several processes."""
    target = tree()
    with (cache() / "tree.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            unfinished = target.with_suffix(".new")
            shutil.rmtree(unfinished, ignore_errors=True)
            run(recipe(str(FINISH), str(unfinished)), timeout_s=900)
            unfinished.rename(target)
    return target
