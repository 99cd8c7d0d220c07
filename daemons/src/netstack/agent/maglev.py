"""Maglev's table: which backend has which slot, the same on every node (Eisenbud et al., NSDI 2016, section 3.4).

Every backend walks its own permutation of the slots, which only its name decides; they take turns in claiming the next
free slot of theirs. Shares differ by at most one slot, and a backend that leaves moves few slots of the others. Table
sizes are primes, so every step visits all slots, and few, so that the size (whose change moves everything) seldom
changes; with 16 slots a backend or more, shares differ by at most 7 %.
"""

from __future__ import annotations

from collections.abc import Sequence

from netstack.agent.numbers import hashed

SIZES = (1, 67, 251, 1021, 4093, 16381, 65521)
SLOTS_PER_BACKEND = 16


def size(backends: int) -> int:
    """How many slots `backends` of them get; the largest size there is for absurdly many."""
    if backends < 2:
        return backends
    return next((prime for prime in SIZES[1:] if prime >= backends * SLOTS_PER_BACKEND), SIZES[-1])


def order(names: Sequence[str]) -> tuple[int, ...]:
    """Slot -> index into `names`, which must be distinct and, to be the same everywhere, sorted."""
    slots = size(len(names))
    if slots <= 1:
        return (0,) * slots
    steps = [1 + hashed(f"step {name}") % (slots - 1) for name in names]
    cursors = [hashed(f"start {name}") % slots for name in names]
    table = [-1] * slots
    free = slots
    while True:
        for index, step in enumerate(steps):
            slot = cursors[index]
            while table[slot] >= 0:
                slot = (slot + step) % slots
            table[slot] = index
            cursors[index] = (slot + step) % slots
            free -= 1
            if not free:
                return tuple(table)
