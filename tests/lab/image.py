"""The node image: a Debian 12 tree that every node uses as the read-only lower layer of its disk.

The image is what a board's operating system is to netstack: Debian with the packages that the roles would install
(nodes reach no package mirror), and nothing of ours, nor any running service that competes with ours. It is built
once and kept as `<cache>/image-<key>`; the key is a hash of the recipe below, so that a changed recipe is another
image. The Debian packages themselves are kept in `<cache>/debs` for the next build.

The lab's keys are not in the image but beside it (`<cache>/lab`): nodes get the public one by bind mount.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
from pathlib import Path

from .shell import run

SUITE = "bookworm"

PACKAGES = (
    # a bootable system that ansible can manage
    "systemd systemd-sysv dbus libpam-systemd kmod procps openssh-server ca-certificates",
    "python3 python3-apt python3-venv",
    # what the roles install on a board
    "python3-bpfcc bpftool linux-headers-amd64 haproxy iproute2",
    # what nodes and pods are looked at with
    "bind9-dnsutils busybox-static curl ethtool iputils-arping iputils-ping jq netcat-openbsd nftables socat tcpdump",
    # what pods of the lab run
    "dnsmasq-base openssl",
)

# Units that would start work of their own in the middle of a test.
DISABLED = (
    "apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer",
    "getty@.service systemd-pstore.service haproxy.service",
)

# Documentation is a third of the tree's files.
UNPACK_WITHOUT = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*")

ARCHIVES = "var/cache/apt/archives"  # where apt keeps package files

# The recipe's last hook, with the new tree as $1 and the kernel's release as $KERNEL.
FINISH = Path(__file__).with_name("image-finish.sh")


def cache() -> Path:
    """Where everything that can be made again is kept."""
    return Path(os.environ.get("NETSTACK_CACHE") or Path.home() / ".cache" / "netstack")


def words(groups: tuple[str, ...]) -> list[str]:
    return [word for group in groups for word in group.split()]


def recipe(debs: str, finish: str, target: str) -> list[str]:
    """The command line that makes the image in `target`, with the package files kept in `debs`."""
    return [
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        "--skip=download/empty",
        "--skip=cleanup/apt/cache",
        f"--include={','.join(words(PACKAGES))}",
        '--aptopt=Acquire::Languages "none"',
        *(f"--dpkgopt=path-exclude={path}" for path in UNPACK_WITHOUT),
        f'--setup-hook=mkdir -p "$1"/{ARCHIVES}; cp -n {debs}/*.deb "$1"/{ARCHIVES}/ 2>/dev/null || true',
        f'--customize-hook=cp -n "$1"/{ARCHIVES}/*.deb {debs}/; rm -f "$1"/{ARCHIVES}/*.deb',
        f'--customize-hook=chroot "$1" systemctl disable -q {" ".join(words(DISABLED))}',
        f"--customize-hook={finish}",
        SUITE,
        target,
    ]


def image() -> Path:
    """The image's folder, whether it has been built or not."""
    text = "\n".join([*recipe("debs", "finish", "image"), FINISH.read_text(), platform.release()])
    return cache() / f"image-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def build() -> Path:
    """The image's folder; builds it first if it is missing (about a minute). Safe to call from several processes."""
    target = image()
    if target.exists():
        return target
    debs = cache() / "debs"
    debs.mkdir(parents=True, exist_ok=True)
    with (cache() / "image.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():  # another process was faster
            return target
        for abandoned in cache().glob("image-*.new"):
            shutil.rmtree(abandoned)
        unfinished = target.with_suffix(".new")
        environment = {**os.environ, "KERNEL": platform.release()}
        run(recipe(str(debs), str(FINISH), str(unfinished)), timeout_s=900, env=environment)
        unfinished.rename(target)
    return target


def ssh_key() -> Path:
    """The private key that opens every node as root; its public half is beside it as `.pub`."""
    key = cache() / "lab" / "id_ed25519"
    key.parent.mkdir(parents=True, exist_ok=True)
    with (key.parent / "key.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not key.exists():
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "netstack-lab", "-f", str(key)])
    return key
