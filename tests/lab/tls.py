"""The lab's certificate authority, and one certificate for all the names of its internet. Kept in the cache."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .image import cache
from .shell import run

NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]


@dataclass(frozen=True, slots=True)
class Pair:
    certificate: Path
    key: Path


def authority() -> Pair:
    """Nodes trust it; clients get it by `--cacert`."""
    return _make("ca", ["-days", "3650", "-subj", "/CN=netstack lab"])


def certificate(names: Iterable[str]) -> Pair:
    """A server certificate for these DNS names."""
    ca = authority()
    alternatives = ",".join(f"DNS:{name}" for name in sorted(names))
    key = hashlib.sha256((alternatives + ca.certificate.read_text()).encode()).hexdigest()[:12]
    return _make(
        f"server-{key}",
        [
            *("-CA", str(ca.certificate), "-CAkey", str(ca.key), "-days", "800", "-subj", "/CN=the internet"),
            *("-addext", f"subjectAltName={alternatives}", "-addext", "basicConstraints=critical,CA:FALSE"),
        ],
    )


def _make(name: str, options: list[str]) -> Pair:
    folder = cache() / "lab"
    folder.mkdir(parents=True, exist_ok=True)
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
    with (folder / "tls.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not pair.certificate.exists():
            unfinished = pair.certificate.with_suffix(".new")
            run(["openssl", "req", "-x509", *NEW_KEY, "-keyout", str(pair.key), "-out", str(unfinished), *options])
            unfinished.rename(pair.certificate)
    return pair
