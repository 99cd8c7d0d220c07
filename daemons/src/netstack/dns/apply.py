"""The writer of the `fqdn` table: which pod may reach which address for which selectors, until when.

The kernel's table is the truth; nothing here has to survive a restart. (Names, for people and for rules that change,
do by a copy that is believed of addresses that the table still holds.) Each entry holds up to eight (selector, second
of CLOCK_MONOTONIC), and the programs check the second themselves: what this module removes is no longer open already,
so it may remove late, and die at any point.

Expired slots are free, but stay as long as nobody needs them and a connection may exist. A ninth live selector, more
addresses than a pod, or one name for a pod, may have, and a full table are refused: the answer that needed the slot
does not leave. Of selectors that are alike, though, which is what nine names of one rule are, one may stand for others.
What policies on trial alone want is the first to go where there is no room, and never a reason that there is none.
"""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from netstack.dns.heard import Fact
from netstack.dns.names import KEPT_LABELS, Name, text
from netstack.dns.rules import Endpoint
from netstack.dns.session import Credit
from netstack.kernel.layout import FQDN_SELECTORS, IDENTITY_WORLD, Fqdn, FqdnKey, Identity, Instant, PrefixKey

SWEEP_S = 10.0
"""How often the table is swept."""

LEAST_S = 2 * SWEEP_S
"""No address is open for less, whatever its TTL: what expired between two sweeps could not be found to be in use."""

IN_USE_S = 60.0
"""An address is in use while a flow that a name allowed had a packet this recently (programs note it to a second)."""

SILENT_S = 8000.0
"""How long the programs know a connection in which nothing is sent (LIFE_ESTABLISHED in files/bpf/lib/conntrack.h).
Expired selectors of an address that was used this recently stay: they open nothing, but when such a connection is
judged again by other rules, they say by which name it was allowed."""

_BATCH = 256
"""Entries looked at between two chances for messages to be served: under 1 ms."""

SETTLED, SETTLED_PARTS = 4096, 32
"""Credits remembered as written, of no more addresses and labels together: 8 MB, whatever is asked and answered."""

COPIED = 8192
"""Addresses of which names are copied, the last learned: 2 MB, and a third of a second of a restart."""


class Table(Protocol):
    """A pinned map (netstack.kernel.bpf.Map), or a stand-in. Calls raise OSError as bpf(2) does."""

    def get(self, key: bytes) -> bytes | None: ...
    def put(self, key: bytes, value: bytes) -> None: ...
    def delete(self, key: bytes) -> bool: ...
    def items(self) -> Iterable[tuple[bytes, bytes]]: ...


class Identities:
    """The agent's table `identities`, as the programs read it: the longest prefix decides."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def __call__(self, address: bytes) -> int:
        value = self._table.get(PrefixKey.STRUCT.pack(128, address))
        return Identity.unpack(value).identity if value is not None else IDENTITY_WORLD

    def inside(self, address: bytes) -> bool:
        """Whether it is an address of a pod or node of the cluster."""
        value = self._table.get(PrefixKey(128, address).pack())
        return value is not None and any(Identity.unpack(value).node)


class Refused(Exception):
    """The address cannot be opened, with the limit that is in the way."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One learned address for people. `names` are the last eight that led to it, with the server that last said so;
    none if they are not known any more, or too many: of each pod twice as many are kept as it may have addresses, and
    none of more labels than KEPT_LABELS (12 MB, if it asks for ever new ones)."""

    endpoint: int
    address: bytes
    expiries_s: dict[int, int]
    names: Mapping[Name, bytes]


class Learned:
    """What pods have learned. Every `now` is seconds of CLOCK_MONOTONIC, which is the programs' clock."""

    def __init__(self, table: Table, used: Table, max_per_pod: int, max_per_name: int) -> None:
        self.changed = False
        """Names, since the last `dump`."""
        self.tried: Mapping[int, frozenset[int]] = {}
        """Endpoint -> its selectors that only policies on trial want."""
        self.ruled: Mapping[int, frozenset[int]] = {}
        """Endpoint -> all of its selectors."""
        self._table = table
        self._used = used
        self._max_per_pod = max_per_pod
        self._max_per_name = max_per_name
        self._of_endpoint = Counter(FqdnKey.unpack(key).endpoint for key, _ in table.items())
        self._spare: dict[int, dict[bytes, None]] = {}  # by endpoint: addresses that only policies on trial want
        self._gone_since: dict[int, float] = {}
        self._names: dict[bytes, dict[Name, bytes]] = {}
        self._of_name: Counter[tuple[int, Name]] = Counter()  # addresses in _names
        self._named: Counter[int] = Counter()  # names in _names, by endpoint
        self._settled: dict[tuple[object, ...], int] = {}  # credits (but for their time) that the table holds, until

    def __len__(self) -> int:
        """Addresses that the table holds, open or not."""
        return self._of_endpoint.total()

    def open(self, now: float) -> int:
        """How many addresses are open."""
        return sum(bool(_live(value, now)) for _, value in self._table.items())

    def credit(self, credit: Credit, now: float) -> None:
        """Open all addresses of `credit`. Refused or OSError at the first that cannot be; those before it stay open.

        What the table holds for long enough is not written again: a name that is asked all the time costs the kernel
        one write a second. Nobody else writes the table, and what is removed from it here is forgotten as settled.
        """
        what, until_s = (*credit[:5], *credit[6:]), math.ceil(max(credit.until_s, now + LEAST_S))
        if self._settled.get(what, 0) >= until_s:
            return
        for address in credit.addresses:
            self._open(credit, address, until_s, now)
        if len(self._settled) == SETTLED:
            self._settled.clear()
        if len(credit.addresses) + len(credit.name) <= SETTLED_PARTS:
            self._settled[what] = until_s

    def _open(self, credit: Credit, address: bytes, until_s: int, now: float) -> None:
        key = FqdnKey.STRUCT.pack(credit.endpoint, address)
        held = self._table.get(key)
        full = held is None and self._of_endpoint[credit.endpoint] >= self._max_per_pod
        if full and not self._give_way(credit, credit.endpoint):
            raise Refused(f"endpoint {credit.endpoint} has learned {self._max_per_pod} addresses, the most it may")
        known, of_name = self._names.get(key, {}), (credit.endpoint, credit.name)
        if credit.name not in known and self._of_name[of_name] >= self._max_per_name:
            most = f"{self._max_per_name} addresses of {text(credit.name)}, the most of one name"
            raise Refused(f"endpoint {credit.endpoint} has learned {most}")
        live = {} if held is None else _live(held, now)
        live |= {selector: max(until_s, live.get(selector, 0)) for selector in credit.selectors}
        if len(live) > FQDN_SELECTORS:
            live = _merged(self._ruled(live, credit), credit)
        if len(live) > FQDN_SELECTORS:
            raise Refused(f"endpoint {credit.endpoint} needs {len(live)} selectors for one address")
        if (value := Fqdn.packed(live if held is None else _beside(live, held))) != held:
            self._put(key, value, credit)
        if held is None:
            self._of_endpoint[credit.endpoint] += 1
        self._is_spare(key, credit.endpoint)
        self._name(key, credit)

    def _ruled(self, live: dict[int, int], credit: Credit) -> dict[int, int]:
        """Without those whose rules are gone."""
        rules = self.ruled.get(credit.endpoint)
        return live if rules is None else {n: at for n, at in live.items() if n in rules or n in credit.selectors}

    def _name(self, key: bytes, credit: Credit) -> None:
        """Note which name led to an address."""
        endpoint, name = credit.endpoint, credit.name
        names = self._names.setdefault(key, {})
        before = names.pop(name, None)
        if before is None:
            most = self._named[endpoint] >= 2 * self._max_per_pod
            if len(name) > KEPT_LABELS or (most and not names):
                return
            if most or len(names) == FQDN_SELECTORS:
                oldest = next(iter(names))
                del names[oldest]
                self._forget(endpoint, oldest)
            self._of_name[endpoint, name] += 1
            self._named[endpoint] += 1
        names[name] = credit.server
        if before != credit.server:
            self.changed = True

    def _put(self, key: bytes, value: bytes, credit: Credit) -> None:
        try:
            self._table.put(key, value)
        except OSError:  # E2BIG: the table is full
            if not self._give_way(credit, *self._spare):
                raise
            self._table.put(key, value)

    def _give_way(self, credit: Credit, *endpoints: int) -> bool:
        """Whether an address that only policies on trial want has been removed for the sake of one that is enforced."""
        for endpoint in () if credit.on_trial else endpoints:
            while key := next(iter(self._spare.get(endpoint, ())), None):
                if self._is_spare(key, endpoint):
                    self._remove(key, endpoint)
                    return True
        return False

    def _is_spare(self, key: bytes, endpoint: int) -> bool:
        """Whether only policies on trial want what this entry holds, by the rules of now; it is noted."""
        tried = self.tried.get(endpoint)
        if tried is not None and (held := self._table.get(key)) is not None and Fqdn.read(held).keys() <= tried:
            self._spare.setdefault(endpoint, {})[key] = None
            return True
        self._forget_spare(key, endpoint)
        return False

    def _forget_spare(self, key: bytes, endpoint: int) -> None:
        if (keys := self._spare.get(endpoint)) is not None:
            keys.pop(key, None)
            if not keys:
                del self._spare[endpoint]

    def sweep(self, endpoints: frozenset[int] | None, now: float, gone_after_s: float) -> Iterator[None]:
        """Remove what has expired and what belongs to endpoints gone for `gone_after_s`; keep open what is in use.

        `endpoints` are those that the rules name, None if unknown. Yields now and then, so that the caller can serve
        messages in between; entries credited meanwhile are read anew before they are touched.
        """
        gone = self._gone(endpoints, now, gone_after_s)
        for number, (key, value) in enumerate(list(self._table.items()), 1):
            owner = FqdnKey.unpack(key).endpoint
            expiries = Fqdn.read(value)
            if owner in gone:
                self._remove(key, owner)
            else:
                self._is_spare(key, owner)
                if min(expiries.values(), default=0) <= now + LEAST_S:
                    self._renew(key, owner, now)
            if number % _BATCH == 0:
                yield

    def _gone(self, endpoints: frozenset[int] | None, now: float, gone_after_s: float) -> set[int]:
        if endpoints is None:
            return set()
        missing = self._of_endpoint.keys() - endpoints
        self._gone_since = {endpoint: self._gone_since.get(endpoint, now) for endpoint in missing}
        return {endpoint for endpoint, since in self._gone_since.items() if now - since >= gone_after_s}

    def _renew(self, key: bytes, owner: int, now: float) -> None:
        """An entry that has expired, or is about to: open for as long as it is in use; then it stays for connections
        that are silent, unless its pod, or a name of it, has half of what it may have; then it goes."""
        held = self._table.get(key)
        if held is None:
            return
        live = _live(held, now)
        used = self._used.get(key)
        silent_s = now - Instant.unpack(used).value / 1e9 if used is not None else math.inf
        enforced = self._of_endpoint[owner] - len(self._spare.get(owner, ()))
        of_names = max((self._of_name[owner, name] for name in self._names.get(key, ())), default=0)
        crowded = enforced * 2 > self._max_per_pod or of_names * 2 > self._max_per_name
        if not live and (silent_s >= SILENT_S or crowded):
            self._remove(key, owner)
        elif live and silent_s < IN_USE_S:
            until_s = math.ceil(now + IN_USE_S)
            longer = {selector: max(until_s, at) for selector, at in live.items()}
            self._table.put(key, Fqdn.packed(_beside(longer, held)))

    def _remove(self, key: bytes, owner: int) -> None:
        self._settled.clear()
        self._table.delete(key)
        self._forget_spare(key, owner)
        for name in self._names.pop(key, ()):
            self._forget(owner, name)
        self._of_endpoint[owner] -= 1
        if self._of_endpoint[owner] <= 0:
            del self._of_endpoint[owner]

    def _forget(self, endpoint: int, name: Name) -> None:
        """One address that it led to."""
        self._named[endpoint] -= 1
        if not self._named[endpoint]:
            del self._named[endpoint]
        self._of_name[endpoint, name] -= 1
        if not self._of_name[endpoint, name]:
            del self._of_name[endpoint, name]

    def __contains__(self, endpoint: int) -> bool:
        return endpoint in self._of_endpoint

    def opened(self, by: Mapping[int, Endpoint]) -> list[tuple[Fact, frozenset[int]]]:
        """What names have opened to these endpoints, by the rules that they had, with the time until which they did;
        and the selectors that the address has."""
        found = []
        for key, names in self._names.items():
            place = FqdnKey.unpack(key)
            held = self._table.get(key) if place.endpoint in by else None
            if held is None:
                continue
            expiries = Fqdn.read(held)
            for name, server in names.items():
                if own := by[place.endpoint].selectors(name) & expiries.keys():
                    until_s = max(expiries[selector] for selector in own)
                    fact = Fact(place.endpoint, name, place.address, server, until_s, until_s, proxied=True)
                    found.append((fact, frozenset(expiries)))
        return found

    def entries(self, now: float, wanted: Container[bytes] | None = None) -> Iterator[Entry]:
        """The addresses that are open, or those of them that are `wanted`."""
        for key, value in self._table.items():
            if wanted is not None and key[-16:] not in wanted:  # before anything is read that takes longer
                continue
            place = FqdnKey.unpack(key)
            if live := _live(value, now):
                yield Entry(place.endpoint, place.address, live, dict(self._names.get(key, {})))

    def dump(self) -> str:
        """The names of addresses, for the next daemon. It may run in a thread beside: what it looks at is copied first,
        without a chance for anything to come between."""
        self.changed = False
        rows = []
        for key, names in list(self._names.items())[-COPIED:]:
            place = FqdnKey.unpack(key)
            listed = [[[label.hex() for label in name], server.hex()] for name, server in list(names.items())]
            rows.append(json.dumps([place.endpoint, place.address.hex(), listed]))
        lines = ",\n".join(rows)
        return f"[{lines}]\n"

    def load(self, text: str) -> None:
        """What `dump` gave, of addresses that the table holds. ValueError, and nothing is taken, if it is anything
        else."""
        try:
            found = {
                FqdnKey(endpoint, _address(address)).pack(): {
                    tuple(map(bytes.fromhex, labels)): _address(server) for labels, server in names[-FQDN_SELECTORS:]
                }
                for endpoint, address, names in json.loads(text)
            }
        except (TypeError, KeyError, struct.error) as error:
            raise ValueError(f"not what was written: {error!r}") from error
        self._names |= {key: names for key, names in found.items() if self._table.get(key) is not None}
        self._of_name = Counter(
            (FqdnKey.unpack(key).endpoint, name) for key, names in self._names.items() for name in names
        )
        self._named = Counter(endpoint for endpoint, _ in self._of_name.elements())


def _address(text: str) -> bytes:
    address = bytes.fromhex(text)
    if len(address) != 16:
        raise ValueError(f"not an address: {text}")
    return address


def _merged(live: dict[int, int], credit: Credit) -> dict[int, int]:
    """Without as many as there are too many: those on trial, if the credit is not, and then as far as another one is
    alike, and is open at least as long then. Of these the first to go is who would expire first, an older one first."""
    spare = [] if credit.on_trial else sorted(live.keys() & credit.tried)
    live = {selector: at for selector, at in live.items() if selector not in spare[: len(live) - FQDN_SELECTORS]}
    for selector in sorted(live, key=lambda number: (number in credit.selectors, live[number], number)):
        if len(live) <= FQDN_SELECTORS:
            break
        group = next((group for group in credit.alike if selector in group), frozenset())
        if others := [number for number in live if number in group and number != selector]:
            heir = max(others, key=lambda number: live[number])
            live = {n: max(at, live[selector]) if n == heir else at for n, at in live.items() if n != selector}
    return live


def _beside(live: dict[int, int], entry: bytes) -> dict[int, int]:
    """These, and what else the entry holds, the last expired first, as far as there is room."""
    others = {selector: at for selector, at in Fqdn.read(entry).items() if selector not in live}
    if not others:
        return live
    last = sorted(others, key=lambda selector: others[selector], reverse=True)
    return live | {selector: others[selector] for selector in last[: FQDN_SELECTORS - len(live)]}


def _live(entry: bytes, now: float) -> dict[int, int]:
    return {selector: at for selector, at in Fqdn.read(entry).items() if at > now}
