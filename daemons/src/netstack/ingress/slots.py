"""Backends get pools of server slots that HAProxy has had from its start, so that no change needs a reload.

HAProxy 2.6 cannot make a backend at run time, and the servers that it can make never reuse a connection. So
haproxy.cfg has `p0`, `p1`, ... each with slots `s0`, `s1`, ...; a Service's port takes a pool, each of its endpoints a
slot, and what is not taken is in maintenance.

* Whoever has a pool or slot keeps it: assignments are kept on disk and are the input of the next one.
* What was freed longest ago is taken first, and nothing that was freed by the same change: a request that is still
  on its way to the old owner must not reach the new one.
* When pools or slots run out, as many again are added. That alone needs a reload.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from netstack.core.address import pack
from netstack.ingress.routes import Target


@dataclass(frozen=True, slots=True)
class Pool:
    """`backend` is "" for a free pool; a slot is None while it is free."""

    backend: str
    slots: tuple[Target | None, ...]


@dataclass(frozen=True, slots=True)
class Slots:
    """All pools by number, and the numbers of the free ones, longest free first."""

    pools: tuple[Pool, ...] = ()
    free: tuple[int, ...] = ()

    def pool_of(self) -> dict[str, int]:
        return {pool.backend: number for number, pool in enumerate(self.pools) if pool.backend}

    def used(self) -> int:
        return len(self.pools) - len(self.free)


def assign(old: Slots, wanted: Mapping[str, tuple[Target, ...]], *, pools: int, slots: int) -> Slots:
    """`old` with the backends of `wanted`, grown in steps of `pools` and `slots` where it has to be."""
    kept = old.pool_of()
    new = sorted(wanted.keys() - kept.keys())
    freed = sorted(number for backend, number in kept.items() if backend not in wanted)
    size = max(len(old.pools), pools)
    while size - len(old.pools) + len(old.free) < len(new):
        size += pools
    free = [*old.free, *range(len(old.pools), size)]
    owners = {number: backend for backend, number in kept.items() if backend in wanted}
    owners.update(zip(free, new, strict=False))
    filled = []
    for number in range(size):
        before = old.pools[number].slots if number < len(old.pools) else ()
        backend = owners.get(number, "")
        filled.append(Pool(backend, _fill(before, wanted.get(backend, ()), slots)))
    return Slots(tuple(filled), (*free[len(new) :], *freed))


def _fill(before: tuple[Target | None, ...], targets: Iterable[Target], step: int) -> tuple[Target | None, ...]:
    """Targets stay where they are; new ones take slots that were free before, and then what is added."""
    wanted = list(targets)
    keep = [slot if slot in wanted else None for slot in before]
    new = [target for target in wanted if target not in keep]
    free = [number for number, slot in enumerate(before) if slot is None]
    keep += [None] * max(0, step - len(before))
    free += range(len(before), len(keep))
    while len(free) < len(new):
        free += range(len(keep), len(keep) + step)
        keep += [None] * step
    for number, target in zip(free, new, strict=False):
        keep[number] = target
    return tuple(keep)


def dump(slots: Slots) -> str:
    """As JSON text: one line a pool, for people who look."""
    pools = [
        json.dumps({"backend": pool.backend, "slots": [_show(slot) for slot in pool.slots]}) for pool in slots.pools
    ]
    lines = ",\n".join(pools)
    return f'{{"free": {json.dumps(slots.free)}, "pools": [\n{lines}\n]}}\n'


def load(text: str) -> Slots:
    """What `dump` wrote. ValueError if it is anything else."""
    try:
        data = json.loads(text)
        pools = tuple(Pool(str(item["backend"]), tuple(map(_read, item["slots"]))) for item in data["pools"])
        free = tuple(int(number) for number in data["free"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"is not what was written: {error!r}") from error
    if sorted(free) != [number for number, pool in enumerate(pools) if not pool.backend]:
        raise ValueError("its list of free pools is wrong")
    return Slots(pools, free)


def _show(target: Target | None) -> list[str | int] | None:
    return None if target is None else [target.host, target.port]


def _read(item: list[str | int] | None) -> Target | None:
    return None if item is None else Target(pack(str(item[0])), int(item[1]))
