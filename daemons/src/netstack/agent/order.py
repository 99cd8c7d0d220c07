"""In which order the difference of two sets of tables is written, so that nothing is ever open in between.

Services: new backends, new regions of slots, then each service in one write, then what nobody uses any more.

Policy is written so that every state in between, for every packet, (1) denies it if the old or the new tables deny it
explicitly, (2) allows it only if the old or the new tables do, and (3) allows it if both do:

    1 put denies              only takes away what the new tables deny
    2 delete old allows that lie inside a new deny of the same peer (they would shadow it: the longest prefix decides)
    3 put redirects, then allows
    4 endpoints that stay (who enforces) or go, identities
    5 delete old allows, then old redirects (a redirect outweighs an allow, so it is there before and goes after it)
    6 delete old denies
    7 endpoints that are new: from their first packet on they see nothing but the new tables

From step 2 on every new deny is effective, and an old one is until step 6, unless a new allow of the same peer took its
place, which by then the new tables mean. So what is allowed in between is allowed by old rules alone or by new ones
alone. This holds for an address whose identity stays. For one whose identity changes from X to Y in the same batch,
state 4 could combine what is new for X with what is old for Y. Where it could, the address is CHANGING from before
step 3 until after step 6: an identity that every endpoint with any policy denies explicitly. Longest prefixes are
written first and shortest deleted first, so no address falls back to a wider range's identity in between.

One thing is left open: what is kept reachable on a node (policy/host.py) stands as allows inside of denies, and these
come before allows and go after them. While policies for nodes change, (3) does not hold for such a flow's very first
packet, which its sender repeats; flows that are known pass by the old generation.

`config` with its new generation comes last: from then on, flows are judged again by the new tables. Before the first
write it says that a change has begun. An agent that is killed in between may leave the new tables whole and the old
generation; its successor has nothing to write then but a new one, without which old flows would never be judged again.
tests/instruments/cluster.py checks (1) to (3) after every single write, for every test that uses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from netstack.agent.identities import CHANGING
from netstack.core.address import Prefix
from netstack.core.table import Change, Op, Table, diff
from netstack.kernel import layout
from netstack.kernel.layout import Config, Identity, PolicyKey, PolicyRule, PrefixKey

Tables = Mapping[str, Table]

ENDPOINT_ID = 4
"""Bytes of `layout.Endpoint.id`, its first field."""

ACTION = PolicyRule.offsets()["action"]
"""Where the action stands in a packed PolicyRule: asked of every entry, so read without unpacking."""

PEER = PolicyKey.offsets()["peer"]
_CHANGING = layout.Number(CHANGING).pack()

NAMES = ("backends", "slots", "services", "policy", "endpoints", "identities", "config")
"""Every table that the agent owns."""


def plan(old: Tables, new: Tables) -> list[Change]:
    """Every write that turns `old` into `new`, in order. Both must hold all NAMES."""
    policy = list(_policy(old, new))
    config = begun(old["config"]) if policy else old["config"]
    return [*_services(old, new), *diff(old["config"], config), *policy, *diff(config, new["config"])]


def begun(config: Table) -> Table:
    """The same, and that a change is being written. Before the first there are no flows."""
    configs = {key: Config.unpack(value) for key, value in config.entries.items()}
    return Table("config", {key: replace(value, unfinished=1).pack() for key, value in configs.items()})


def _services(old: Tables, new: Tables) -> Iterator[Change]:
    changes = {name: diff(old[name], new[name]) for name in ("backends", "slots", "services")}
    for name in ("backends", "slots"):
        yield from (change for change in changes[name] if change.op is Op.PUT)
    yield from changes["services"]
    for name in ("slots", "backends"):
        yield from (change for change in changes[name] if change.op is Op.DELETE)


def _policy(old: Tables, new: Tables) -> Iterator[Change]:
    policy = diff(old["policy"], new["policy"])
    puts = [change for change in policy if change.op is Op.PUT]
    deletes = [change for change in policy if change.op is Op.DELETE]
    denies = _Denies(new["policy"] if deletes else Table("policy"))
    staying, arriving = _endpoints(old["endpoints"], new["endpoints"])
    identities = diff(old["identities"], new["identities"])
    moving = _moving(old, identities, puts, deletes, staying)
    needed = guards(old, new) if moving else {}
    deletes = [change for change in deletes if change.key not in needed]

    yield from _each(puts, layout.ACTION_DENY)
    yield from (Change("policy", Op.PUT, key, value) for key, value in needed.items())
    yield from _by_length(
        (Change("identities", Op.PUT, change.key, changing(change.value)) for change in moving), longest_first=True
    )
    shadowing = [change for change in deletes if _action(change) != layout.ACTION_DENY and denies.cover(change.key)]
    yield from shadowing
    yield from _each(puts, layout.ACTION_REDIRECT_DNS)
    yield from _each(puts, layout.ACTION_ALLOW)
    yield from staying
    moved = {change.key for change in moving}
    yield from _settle(change for change in identities if change.key not in moved)
    gone = {change.key for change in shadowing}
    rest = [change for change in deletes if change.key not in gone]
    for action in (layout.ACTION_ALLOW, layout.ACTION_REDIRECT_DNS, layout.ACTION_DENY):
        yield from _each(rest, action)
    yield from _settle(moving)
    for_now = ((key, value) for key, value in needed.items() if key not in new["policy"].entries)
    yield from (Change("policy", Op.DELETE, key, value) for key, value in for_now)
    yield from arriving


def _endpoints(old: Table, new: Table) -> tuple[list[Change], list[Change]]:
    """(endpoints that change or go, endpoints that come). One with another id at the same address goes and comes."""
    staying, arriving = [], []
    for change in diff(old, new):
        before = old.entries.get(change.key)
        if change.op is Op.DELETE or (before and before[:ENDPOINT_ID] == change.value[:ENDPOINT_ID]):
            staying.append(change)
            continue
        arriving.append(change)
        if before is not None:
            staying.append(Change("endpoints", Op.DELETE, change.key, before))
    return staying, arriving


def _action(change: Change) -> int:
    return change.value[ACTION]


def _each(changes: Iterable[Change], action: int) -> Iterator[Change]:
    return (change for change in changes if _action(change) == action)


class _Denies:
    """The deny entries of a policy table, asked whether one of the same endpoint, peer and direction covers a key."""

    def __init__(self, table: Table) -> None:
        self._keys: dict[tuple[int, int, int], set[tuple[int, int, int]]] = {}
        """Endpoint, peer and direction -> bits, protocol and port."""
        for key, value in table.entries.items():
            if value[ACTION] == layout.ACTION_DENY:
                deny = PolicyKey.unpack(key)
                place = deny.endpoint, deny.peer, deny.direction
                self._keys.setdefault(place, set()).add((deny.bits, deny.protocol, deny.port))

    def cover(self, key: bytes) -> bool:
        inner = PolicyKey.unpack(key)
        same = self._keys.get((inner.endpoint, inner.peer, inner.direction))
        return same is not None and not same.isdisjoint(_around(inner))


def _around(inner: PolicyKey) -> Iterator[tuple[int, int, int]]:
    """Bits, protocol and port of every key that covers it, if endpoint, peer and direction are the same."""
    yield layout.POLICY_BITS_ANY, 0, 0
    for bits in range(layout.POLICY_BITS_PROTO, inner.bits + 1):
        shift = layout.POLICY_BITS_PORT - bits
        yield bits, inner.protocol, inner.port >> shift << shift


def _moving(
    old: Tables,
    identities: Iterable[Change],
    puts: Iterable[Change],
    deletes: Iterable[Change],
    endpoints: Iterable[Change],
) -> list[Change]:
    """The identity changes that could combine new rules for the old identity with old rules for the new one.

    They could only if an allow for the old identity (or for any) comes, one for the new (or for any) goes, or an
    endpoint that stays begins or ceases to enforce. The usual cases, a pod that comes or goes, are none of these.
    """
    changes = list(identities)
    if not changes:
        return []
    coming = {PolicyKey.unpack(change.key).peer for change in puts if _action(change) != layout.ACTION_DENY}
    going = {PolicyKey.unpack(change.key).peer for change in deletes if _action(change) != layout.ACTION_DENY}
    replaced = [change.key for change in puts if change.key in old["policy"].entries]
    going |= {PolicyKey.unpack(key).peer for key in replaced}
    enforcing = any(change.op is Op.PUT for change in endpoints)
    ranges = _Ranges(old["identities"])
    found = []
    for change in changes:
        before, after = ranges.of(change, before=True), ranges.of(change, before=False)
        if before == after:
            continue
        if enforcing or {before, layout.IDENTITY_ANY} & coming or {after, layout.IDENTITY_ANY} & going:
            found.append(change)
    return found


class _Ranges:
    """Which identity the addresses of a range have before and after one change to the old table."""

    def __init__(self, table: Table) -> None:
        self._entries = {
            Prefix(key.address, key.bits): Identity.unpack(value).identity
            for key, value in ((PrefixKey.unpack(raw), value) for raw, value in table.entries.items())
        }
        self._lengths = sorted({prefix.bits for prefix in self._entries}, reverse=True)

    def of(self, change: Change, *, before: bool) -> int:
        key = PrefixKey.unpack(change.key)
        prefix = Prefix(key.address, key.bits)
        if before and prefix in self._entries:
            return self._entries[prefix]
        if not before and change.op is Op.PUT:
            return Identity.unpack(change.value).identity
        for bits in self._lengths:
            shift = 128 - bits
            wider = Prefix((int.from_bytes(prefix.address) >> shift << shift).to_bytes(16), bits)
            if bits < prefix.bits and wider in self._entries:
                return self._entries[wider]
        return layout.IDENTITY_WORLD


def identity(value: bytes) -> int:
    """Of an entry of `identities`."""
    return Identity.unpack(value).identity


def changing(value: bytes) -> bytes:
    """The same for an address that is CHANGING."""
    return Identity(CHANGING, 0, Identity.unpack(value).node).pack()


def is_guard(key: bytes) -> bool:
    """Whether a key of `policy` is one of `guards`."""
    return key[PEER : PEER + 4] == _CHANGING


def guards(*states: Tables) -> dict[bytes, bytes]:
    """Denies of CHANGING for every endpoint that any policy of these states concerns."""
    endpoints = {PolicyKey.unpack(key).endpoint for tables in states for key in tables["policy"].entries}
    for tables in states:
        values = map(layout.Endpoint.unpack, tables["endpoints"].entries.values())
        endpoints |= {endpoint.id for endpoint in values if endpoint.enforce}
    deny = PolicyRule(0, layout.ACTION_DENY).pack()
    return {
        PolicyKey(layout.POLICY_BITS_ANY, endpoint, CHANGING, direction).pack(): deny
        for endpoint in sorted(endpoints)
        for direction in (layout.DIRECTION_INGRESS, layout.DIRECTION_EGRESS)
    }


def _settle(changes: Iterable[Change]) -> Iterator[Change]:
    """Identities as they shall be."""
    changes = list(changes)
    yield from _by_length((change for change in changes if change.op is Op.PUT), longest_first=True)
    yield from _by_length((change for change in changes if change.op is Op.DELETE), longest_first=False)


def _by_length(changes: Iterable[Change], *, longest_first: bool) -> list[Change]:
    return sorted(changes, key=lambda change: PrefixKey.unpack(change.key).bits, reverse=longest_first)
