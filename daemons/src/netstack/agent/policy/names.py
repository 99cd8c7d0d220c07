"""Name-selectors of toFQDNs and rules.dns (cilium pkg/fqdn/matchpattern): reading, and what a pattern matches.

A selector's number is a hash of its text, in the space of identities (identities.py): the same on every node and after
every restart, so that what the DNS proxy has learned under it stays true.
"""

from __future__ import annotations

import re

from netstack.agent.identities import BITS
from netstack.agent.policy.rules import Name
from netstack.source.fields import Fields

BASE = 3 << 30
LABELS = re.compile(r"^([a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}$")
PATTERN = re.compile(r"^(\*\*\.)?([a-z0-9_*-]{1,63}\.)*[a-z0-9_*-]{1,63}$")

OWN_NAMESPACE = "<namespace>"
"""Stands for a pod's namespace in a search domain."""


def read_name(fields: Fields) -> Name:
    """`{matchName}` or `{matchPattern}`, exactly one."""
    exact, pattern = fields.string("matchName", ""), fields.string("matchPattern", "")
    fields.close()
    if bool(exact) == bool(pattern):
        fields.fail("matchName", "exactly one of matchName and matchPattern must be given")
    text = (exact or pattern).lower().removesuffix(".")
    if len(text) > 253 or not (LABELS if exact else PATTERN).match(text):
        field = "matchName" if exact else "matchPattern"
        fields.fail(field, f"{exact or pattern!r} is not a DNS name{'' if exact else ' with wildcards'}")
    return Name(text, bool(pattern))


def key(name: Name) -> str:
    """The text whose hash is the selector's number."""
    return f"{name.field} {name.text}{' lan' if name.lan else ''}"


__all__ = ["BASE", "BITS", "LABELS", "OWN_NAMESPACE", "key", "read_name"]
