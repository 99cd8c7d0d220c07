"""The root of the arm64 guest: packages laid out as files. Made on any machine, with no program of arm64 run for it.

mmdebstrap's variant `extract` unpacks and configures nothing: there is no user, no init, no alternative. Python, bcc,
tc and bpftool do not mind. Kernel, modules and headers come with it, so that they always fit one another.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from pathlib import Path

from lab.image import SUITE, UNPACK_WITHOUT, cache, words
from lab.shell import run

PACKAGES = (
    "linux-image-arm64 linux-headers-arm64 python3 python3-bpfcc python3-venv bpftool iproute2 procps ethtool",
    "busybox-static coreutils dash findutils grep gzip libc-bin mount sed tar util-linux haproxy",
)


def recipe(target: str) -> list[str]:
    """The command line that makes the tree in `target`."""
    return [
        *("mmdebstrap", "--quiet", "--arch=arm64", "--variant=extract", "--skip=download/empty"),
        f"--include={','.join(words(PACKAGES))}",
        '--aptopt=Acquire::Languages "none"',
        *(f"--dpkgopt=path-exclude={path}" for path in UNPACK_WITHOUT),
        SUITE,
        target,
    ]


def tree() -> Path:
    """The tree's folder, whether it has been made or not."""
    return cache() / f"tree-arm64-{hashlib.sha256(' '.join(recipe('tree')).encode()).hexdigest()[:12]}"


def build() -> Path:
    """The tree's folder; makes it first if it is missing (half a minute). Safe to call from several processes."""
    target = tree()
    with (cache() / "tree.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            unfinished = target.with_suffix(".new")
            shutil.rmtree(unfinished, ignore_errors=True)
            run(recipe(str(unfinished)), timeout_s=900)
            for modules in (unfinished / "lib/modules").iterdir():
                run(["depmod", "-b", str(unfinished), modules.name])
            unfinished.rename(target)
    return target
