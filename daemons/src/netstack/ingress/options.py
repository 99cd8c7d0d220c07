"""ingress-nginx's annotations: which are served, and what happens to an Ingress with one that is not.

Three kinds, and none is silent:

* served: parsed here, its value in `Options`.
* a guard (authentication, address lists, client certificates): what it would keep out must stay out, so the
  Ingress's paths answer 503 until the annotation is served or removed.
* anything else under the prefix: reported, without effect.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

PREFIX = "nginx.ingress.kubernetes.io/"

BOOLEANS = {"1": True, "t": True, "T": True, "true": True, "TRUE": True, "True": True}
BOOLEANS |= {"0": False, "f": False, "F": False, "false": False, "FALSE": False, "False": False}
"""Go's strconv.ParseBool."""

SIZE = re.compile(r"([0-9]{1,12})([kKmMgG]?)")
UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
MAX_TIMEOUT_S = 86400

GUARDS = re.compile(r"auth-.*|enable-global-auth|satisfy|(allowlist|whitelist|denylist)-source-range")


@dataclass(frozen=True, slots=True)
class Options:
    """What an Ingress asks for all its paths. None = the setting of the daemon."""

    ssl_redirect: bool | None = None
    force_ssl_redirect: bool = False
    body_size: int | None = None
    """Bytes; 0 = no limit."""
    read_timeout_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """One annotation without effect. `closes`: the paths of the Ingress must not be served. `guards`: nor by another
    Ingress what they mean."""

    name: str
    reason: str
    closes: bool
    guards: bool = False

    @property
    def field(self) -> str:
        return f"metadata.annotations[{self.name}]"


def parse(annotations: Mapping[str, str]) -> tuple[Options, tuple[Refusal, ...]]:
    """The options of an Ingress and every annotation under ingress-nginx's prefix that is not in force."""
    options = Options()
    refusals = []
    for name in sorted(annotations):
        if not name.startswith(PREFIX):
            continue
        short, value = name.removeprefix(PREFIX), annotations[name].strip()
        try:
            if short in SERVED:
                options = replace(options, **SERVED[short](value))
            elif GUARDS.fullmatch(short) and BOOLEANS.get(value) is not False:
                reason = "is not served; its paths are closed because it guards them"
                refusals.append(Refusal(name, reason, closes=True, guards=True))
            else:
                refusals.append(Refusal(name, "is not served and has no effect", closes=False))
        except ValueError as error:
            refusals.append(Refusal(name, str(error), closes=short == "backend-protocol"))
    return options, tuple(refusals)


def _boolean(value: str) -> bool:
    if value not in BOOLEANS:
        raise ValueError(f"must be true or false, not {value!r}")
    return BOOLEANS[value]


def _size(value: str) -> int:
    match = SIZE.fullmatch(value)
    if not match:
        raise ValueError(f"must be a size such as 8m, not {value!r}")
    return int(match[1]) * UNITS[match[2].lower()]


def _seconds(value: str) -> int:
    if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= MAX_TIMEOUT_S:
        raise ValueError(f"must be 1 to {MAX_TIMEOUT_S} seconds, not {value!r}")
    return int(value) * 1000


def _protocol(value: str) -> dict[str, Any]:
    if value.upper() not in ("", "HTTP", "AUTO_HTTP"):
        raise ValueError(f"{value} is not served; its paths are closed because plain HTTP would not reach the backend")
    return {}


SERVED: dict[str, Callable[[str], dict[str, Any]]] = {
    "ssl-redirect": lambda value: {"ssl_redirect": _boolean(value)},
    "force-ssl-redirect": lambda value: {"force_ssl_redirect": _boolean(value)},
    "proxy-body-size": lambda value: {"body_size": _size(value)},
    "proxy-read-timeout": lambda value: {"read_timeout_ms": _seconds(value)},
    "backend-protocol": _protocol,
}
