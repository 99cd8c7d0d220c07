"""A short name for what a policy says: the same for every way to write it, another for every other meaning. Pure.

It is made of the specs as read, so what the API server fills in (a protocol, policyTypes) changes nothing. Whoever has
applied a policy compares it with what a node says is in force.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from netstack.agent.policy.rules import Spec

LENGTH = 16
"""Hexadecimal digits."""


def digest(specs: Iterable[Spec]) -> str:
    """Of all specs of one policy, in their order; with its name, and whether it is on trial."""
    text = json.dumps([_plain(spec) for spec in specs], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, tuple):
        return list(map(_plain, value))
    if isinstance(value, frozenset):
        return sorted(map(_plain, value), key=json.dumps)
    if isinstance(value, bytes):
        return value.hex()
    return [type(value).__name__, *(_plain(getattr(value, name)) for name in value.__dataclass_fields__)]
