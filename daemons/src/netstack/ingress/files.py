"""The files that HAProxy starts from. They are written before the running process is changed: they hold the truth.

Written in an order in which a start at any moment works: nothing names a file or pool that is not there yet, and
key pairs that no list names any more are removed last.
"""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path

from netstack.core.files import write_atomic
from netstack.ingress import certificates, render, slots
from netstack.ingress.render import Wanted
from netstack.ingress.settings import IngressSettings
from netstack.ingress.slots import Slots

SECRET_MODE = 0o640
"""Key pairs are readable for HAProxy's group, which the folders hand down (set-group-id, made by the role)."""

CHECK_TIMEOUT_S = 40.0
"""A slow board that was busy has needed more than 20 s. In a start it all counts, and systemd gives that 90 s."""

log = logging.getLogger("files")


class ConfigurationRefused(Exception):
    """HAProxy does not accept a new haproxy.cfg, or not in time; the text says why. The old one stays."""


def load_slots(settings: IngressSettings) -> Slots:
    """The assignments of the last run; none if there was none, or if the file does not hold any."""
    path = settings.state / "slots.json"
    try:
        return slots.load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Slots()
    except ValueError as error:
        log.warning("%s: %s; backends get new pools", path, error)
        return Slots()


def write(wanted: Wanted, assigned: Slots, settings: IngressSettings) -> bool:
    """Make the files hold `wanted`; True if any held anything else.

    OSError passes: no file is half-written then. ConfigurationRefused: all but haproxy.cfg are as wanted.
    """
    folder = settings.state
    (folder / "certs").mkdir(parents=True, exist_ok=True)
    changed = [write_atomic(folder / "slots.json", slots.dump(assigned))]
    for path, pem in wanted.pems.items():
        changed.append(write_atomic(Path(path), pem, mode=SECRET_MODE))
    changed += [
        write_atomic(folder / "default.pem", wanted.default_pem, mode=SECRET_MODE),
        write_atomic(folder / "default-crt-list", render.default_crt_list(settings)),
        write_atomic(folder / "pools.cfg", render.pools_cfg(wanted.state.pools)),
        write_atomic(folder / "crt-list", render.crt_list(wanted.state.certificates)),
        write_atomic(folder / "routes.map", render.routes_map(wanted.state.routes)),
        _write_configuration(folder, render.haproxy_cfg(settings)),
    ]
    for file in (folder / "certs").glob("*.pem"):
        if str(file) not in wanted.pems:
            file.unlink()
            changed.append(True)
    return any(changed)


def _write_configuration(folder: Path, text: str) -> bool:
    """haproxy.cfg, once HAProxy has read it without complaint: what it cannot start from must not be its start.

    Only another release or another setting changes it, so nothing of a user's object is tested here.
    """
    path, candidate = folder / "haproxy.cfg", folder / "haproxy.cfg.new"
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    write_atomic(candidate, text)
    command = ["haproxy", "-c", "-f", str(candidate), "-f", str(folder / "pools.cfg")]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CHECK_TIMEOUT_S, check=False)
        if done.returncode:
            raise ConfigurationRefused(f"haproxy.cfg is refused: {' '.join(done.stderr.split())}")
    except subprocess.TimeoutExpired as error:
        raise ConfigurationRefused(f"haproxy.cfg was not checked within {CHECK_TIMEOUT_S:g} s") from error
    except FileNotFoundError:
        log.warning("haproxy is not installed here: haproxy.cfg is written unchecked")
    candidate.replace(path)
    return True


def default_certificate(settings: IngressSettings, now: float) -> certificates.KeyPair:
    """The self-signed certificate, kept over restarts and replaced before it ends. `now`: seconds since the epoch."""
    path = settings.state / "self-signed.pem"
    try:
        pair = certificates.parse(path.read_text(encoding="utf-8"))
        if not certificates.expires_soon(pair, now):
            return pair
    except FileNotFoundError:
        log.info("making a self-signed default certificate")
    except ValueError as error:
        log.warning("%s: %s; making a new one", path, error)
    pair = certificates.self_signed("ingress.local", now)
    write_atomic(path, pair.pem, mode=0o600)
    return pair
