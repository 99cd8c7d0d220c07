"""Numbers for names: hashes, so that every node and every restart gives a name the same number without agreement.

Two names that hash alike are told apart by hashing again; the one that sorts first keeps the plain hash. `numbers`
says who collided, because the loser's number then depends on the winner's presence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def hashed(name: str, bits: int = 32) -> int:
    """The first `bits` of the name's BLAKE2b digest."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) >> (64 - bits)


def numbers(names: Iterable[str], *, base: int = 0, bits: int = 32) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Each name's number in [base, base + 2**bits), never 0; and the pairs (loser, winner) that collided."""
    taken: dict[int, str] = {}
    collisions = []
    for name in sorted(set(names)):
        attempt, number = 0, base + hashed(name, bits)
        while number in taken or number == 0:
            if number in taken:
                collisions.append((name, taken[number]))
            attempt += 1
            number = base + hashed(f"{name}\0{attempt}", bits)
        taken[number] = name
    return {name: number for number, name in taken.items()}, collisions
