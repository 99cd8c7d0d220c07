"""Tables as data: what a compiler wants a kernel map to hold, and the difference that `apply` has to write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class Op(Enum):
    PUT = "put"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Table:
    """The wanted content of one map: packed key -> packed value."""

    name: str
    entries: Mapping[bytes, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Change:
    """One write to one map. `value` is the new value of a put and the old value of a delete."""

    table: str
    op: Op
    key: bytes
    value: bytes


def diff(old: Table, new: Table) -> list[Change]:
    """The writes that turn `old` into `new`: puts first, then deletes, each in key order.

    Puts first is the order that never takes away what both tables hold; who needs another order (policy) sorts.
    """
    before, after = old.entries, new.entries
    if before == after:  # most tables at most changes, and the fastest way to see it
        return []
    puts = sorted(item for item in after.items() if before.get(item[0]) != item[1])
    deletes = sorted(item for item in before.items() if item[0] not in after)
    return [Change(new.name, op, *item) for op, items in ((Op.PUT, puts), (Op.DELETE, deletes)) for item in items]


def replay(table: Table, changes: list[Change]) -> Table:
    """`table` after `changes`: what a map that held `table` holds then."""
    entries = dict(table.entries)
    for change in changes:
        if change.op is Op.PUT:
            entries[change.key] = change.value
        else:
            del entries[change.key]
    return Table(table.name, entries)
