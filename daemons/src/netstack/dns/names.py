"""Which selectors a DNS name satisfies, by Cilium's rules for matchName and matchPattern.

A name is a tuple of lower-case labels as they stood on the wire, leftmost first, root = (). Labels stay apart because
a label may contain any byte, a dot too: joined into text, `evil\\.x.io` would read as a name below `x.io`.

    matchName     api.x.io    that name
    matchPattern  *           every name
                  *.x.io      one label before x.io; `*` is any run of [-a-z0-9_], also an empty one, never a dot
                  a*b.x.io    ... anywhere in a label, several times; `**` inside a label is no more than `*`
                  **.x.io     one or more labels before x.io (Cilium 1.19); only as the whole first label

Case and one trailing dot do not matter. A name with any other byte than [-a-z0-9_] in a label satisfies nothing, `*`
included. matchName takes no `*`.

All patterns of an endpoint share one trie, walked from the root label down: the cost of a look-up follows the number
of labels asked, not the number of rules. Stars are matched by searching the literal parts from left to right, without
backtracking: a hostile name cannot make it slow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

Name = tuple[bytes, ...]

_PLAIN = re.compile(rb"[-a-z0-9_]+")
_STARRED = re.compile(rb"[-a-z0-9_*]+")

MAX_LABEL = 63
MAX_NAME = 255
"""Bytes on the wire, length bytes and the root included (RFC 1035, section 2.3.4)."""


class Match(StrEnum):
    """How a rule names what it allows; the values are the field names of CiliumNetworkPolicy."""

    NAME = "matchName"
    PATTERN = "matchPattern"


@dataclass(frozen=True, slots=True)
class Rule:
    """One matchName or matchPattern, and the id under which its matches are known."""

    selector: int
    match: Match
    text: str

    def labels(self) -> Name:
        """The rule's labels; ValueError says what is wrong with its text."""
        allowed = _STARRED if self.match is Match.PATTERN else _PLAIN
        text = self.text.strip().lower()
        if text == ".":
            return ()
        labels = tuple(text.removesuffix(".").encode("utf-8").split(b"."))
        for label in labels:
            if not allowed.fullmatch(label):
                raise ValueError(f"{self.text!r} is no {self.match}: {_wrong(label)}")
            if len(label.replace(b"*", b"")) > MAX_LABEL:
                raise ValueError(f"{self.text!r} is no {self.match}: a label has at most {MAX_LABEL} bytes")
        if sum(len(label.replace(b"*", b"")) + 1 for label in labels) + 1 > MAX_NAME:
            raise ValueError(f"{self.text!r} is no {self.match}: a name has at most {MAX_NAME} bytes")
        return labels


def _wrong(label: bytes) -> str:
    if not label:
        return "it has an empty label"
    return f"label {label.decode()!r} has characters beyond letters, digits, '-' and '_'"


def text(name: Name) -> str:
    """A name for people: presentation form with a trailing dot, odd bytes as \\DDD (RFC 4343, section 2.1)."""
    return "".join(f"{''.join(map(_presented, label))}." for label in name) or "."


def _presented(byte: int) -> str:
    plain = 0x21 <= byte <= 0x7E and byte not in b'.\\"();@$'
    return chr(byte) if plain else f"\\{byte:03d}"


@dataclass(slots=True)
class _Node:
    """A place in the trie: all names that end in the labels on the way here."""

    exact: dict[bytes, _Node] = field(default_factory=dict)
    globs: dict[tuple[bytes, ...], _Node] = field(default_factory=dict)
    """By the literal parts between the stars: `a*b*` is (a, b, '')."""
    here: set[int] = field(default_factory=set)
    below: set[int] = field(default_factory=set)
    """Selectors of every name with at least one more label."""


KEPT, KEPT_LABELS = 1024, 16
"""Answers of one matcher, for names of no more labels: a pod that asks for ever new names costs no more than 2 MB."""


class Matcher:
    """The compiled rules of one endpoint. Programs ask for the same few names again and again: answers are kept."""

    __slots__ = ("_known", "_root")

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._root = _Node()
        self._known: dict[Name, frozenset[int]] = {}
        for rule in rules:
            self._add(rule)

    def _add(self, rule: Rule) -> None:
        labels = rule.labels()
        if len(labels) == 1 and not labels[0].strip(b"*"):
            self._root.here.add(rule.selector)  # the root too: stars also stand for nothing
            if labels[0] == b"*":
                self._root.below.add(rule.selector)
                return
        deep = len(labels) > 1 and labels[0] == b"**"
        node = self._root
        for label in reversed(labels[1:] if deep else labels):
            if b"*" in label:
                node = node.globs.setdefault(_parts(label), _Node())
            else:
                node = node.exact.setdefault(label, _Node())
        (node.below if deep else node.here).add(rule.selector)

    def __call__(self, name: Name) -> frozenset[int]:
        """Selectors that `name` (lower case) satisfies; empty if none."""
        found = self._known.get(name)
        if found is None:
            if len(name) > KEPT_LABELS:
                return self._find(name)
            if len(self._known) == KEPT:
                self._known.clear()
            found = self._known[name] = self._find(name)
        return found

    def _find(self, name: Name) -> frozenset[int]:
        if not all(map(_PLAIN.fullmatch, name)):
            return frozenset()
        found: set[int] = set()
        places = [self._root]
        for label in reversed(name):
            deeper: list[_Node] = []
            for node in places:
                found |= node.below
                if (known := node.exact.get(label)) is not None:
                    deeper.append(known)
                deeper += (to for parts, to in node.globs.items() if _fits(parts, label))
            places = deeper
        return frozenset(found.union(*(node.here for node in places)))


def _parts(label: bytes) -> tuple[bytes, ...]:
    """`a**b*` as (a, b, ''): runs of stars are one star."""
    return tuple(re.sub(rb"\*+", b"*", label).split(b"*"))


def _fits(parts: tuple[bytes, ...], label: bytes) -> bool:
    """Whether `label` begins with the first part, ends with the last, and has the others between them in order."""
    first, *middle, last = parts
    if len(label) < len(first) + len(last) or not (label.startswith(first) and label.endswith(last)):
        return False
    at, end = len(first), len(label) - len(last)
    for part in middle:
        found = label.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True
