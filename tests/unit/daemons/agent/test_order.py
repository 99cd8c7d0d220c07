"""The order of writes, at the cases for which it is as it is. Random ones are in test_desired.py.

Each case breaks if its step of order.py is left out; the model of the maps (instruments/cluster.py) checks each state.
"""

from __future__ import annotations

import pytest

from instruments.calls import calls
from instruments.cluster import EGRESS, INGRESS, Maps, check_between
from netstack.agent.identities import CHANGING
from netstack.agent.order import NAMES, Tables, plan
from netstack.core.address import ANY, pack
from netstack.core.table import Op, Table
from netstack.kernel import layout
from netstack.kernel.layout import ACTION_ALLOW, ACTION_DENY, ACTION_REDIRECT_DNS

POD, PEER = pack("10.244.1.3"), pack("10.244.2.9")
X, Y = 1000, 2000
Rule = tuple[int, int, int]
"""(peer, port or 0 for all packets, action); all of them TCP, egress, of endpoint 1."""


def tables(rules: list[Rule], *, identity: int = X, enforce: int = EGRESS, endpoint: int = 1) -> Tables:
    entries = {}
    for peer, port, action in rules:
        bits = layout.POLICY_BITS_PORT if port else layout.POLICY_BITS_ANY
        key = layout.PolicyKey(bits, endpoint, peer, layout.DIRECTION_EGRESS, 6 if port else 0, port)
        entries[key.pack()] = layout.PolicyRule(1, action).pack()
    made = {name: Table(name) for name in NAMES}
    made["policy"] = Table("policy", entries)
    made["endpoints"] = Table("endpoints", {POD: layout.Endpoint(endpoint, 7, 50, enforce).pack()} if endpoint else {})
    if identity:
        key = layout.PrefixKey(128, PEER).pack()
        made["identities"] = Table("identities", {key: layout.Identity(identity, 0, ANY).pack()})
    return made


ALLOW, DENY, REDIRECT = ACTION_ALLOW, ACTION_DENY, ACTION_REDIRECT_DNS


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ([(X, 80, ALLOW)], [(X, 0, ALLOW)]),  # both allow: never dropped
        ([(0, 443, ALLOW), (X, 0, DENY)], [(X, 443, ALLOW), (0, 0, DENY)]),  # an old allow would shadow the new deny
        ([(0, 443, ALLOW), (X, 0, DENY)], [(X, 443, ALLOW), (0, 443, DENY)]),
        ([(X, 0, DENY), (0, 0, ALLOW)], [(0, 0, DENY), (X, 0, ALLOW)]),
        ([(X, 53, REDIRECT), (0, 0, ALLOW)], [(0, 53, DENY)]),  # the allow goes before the redirect
        ([(X, 53, REDIRECT), (0, 0, ALLOW)], []),
        ([(X, 0, DENY), (0, 80, ALLOW)], []),  # the deny goes last
        ([], [(X, 53, REDIRECT), (0, 0, ALLOW)]),  # ... and comes after it
        ([(X, 0, DENY)], [(X, 53, REDIRECT), (0, 0, ALLOW)]),
        ([(X, 53, REDIRECT)], [(0, 53, REDIRECT)]),
        ([(X, 0, ALLOW), (X, 80, DENY)], [(X, 80, ALLOW)]),
        ([(X, 0, ALLOW)], []),
        ([], [(X, 0, ALLOW)]),
    ],
)
@pytest.mark.parametrize("enforce", [(EGRESS, EGRESS), (0, EGRESS), (EGRESS, 0)])
def test_rules_of_a_peer_that_stays(old: list[Rule], new: list[Rule], enforce: tuple[int, int]) -> None:
    check_between(tables(old, enforce=enforce[0]), tables(new, enforce=enforce[1]))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ([], [(X, 0, ALLOW)]),  # new for the old identity
        ([(Y, 0, ALLOW)], []),  # old for the new identity
        ([(0, 0, ALLOW), (X, 0, DENY)], []),  # the deny follows the old identity, the allow does not
        ([], [(0, 0, ALLOW), (Y, 0, DENY)]),
        ([(X, 0, ALLOW)], [(Y, 0, ALLOW)]),
        ([(Y, 80, ALLOW), (X, 80, DENY)], [(X, 80, ALLOW), (Y, 80, DENY)]),
    ],
)
@pytest.mark.parametrize("enforce", [(EGRESS, EGRESS), (0, EGRESS), (EGRESS, 0)])
def test_rules_of_a_peer_that_changes_its_identity(old: list[Rule], new: list[Rule], enforce: tuple[int, int]) -> None:
    check_between(tables(old, enforce=enforce[0]), tables(new, identity=Y, enforce=enforce[1]))


def test_a_pod_that_comes_or_goes_is_written_straight() -> None:
    without = tables([], identity=0)
    there = tables([(X, 80, ALLOW)])
    for old, new in ((without, there), (there, without)):
        check_between(old, new)
        identities = [change.value for change in plan(old, new) if change.table == "identities"]
        assert all(layout.Identity.unpack(value).identity != CHANGING for value in identities)
    assert plan(without, there)[0].table == "policy", "its rules are there before it is"


@pytest.mark.parametrize("old", [[], [(X, 0, DENY)], [(0, 0, ALLOW)]])
def test_the_next_pod_with_an_address_sees_nothing_of_the_last(old: list[Rule]) -> None:
    before, after = tables(old, enforce=0), tables([(X, 80, ALLOW)], endpoint=2, enforce=EGRESS | INGRESS)
    check_between(before, after)
    puts = [change for change in plan(before, after) if change.table == "endpoints"]
    assert [change.op for change in puts] == [Op.DELETE, Op.PUT]
    assert plan(before, after)[-1] == puts[-1]


def test_wider_ranges_never_show_through() -> None:
    def ranges(*entries: tuple[int, int]) -> Tables:
        made = dict(tables([], identity=0))
        base = pack("10.244.2.0")
        packed = {
            layout.PrefixKey(96 + bits, base if bits < 32 else PEER).pack(): layout.Identity(number, 0, ANY).pack()
            for bits, number in entries
        }
        made["identities"] = Table("identities", packed)
        return made

    for old, new in ((ranges((16, 1)), ranges((16, 1), (24, 2), (32, 3))), (ranges((24, 2), (32, 3)), ranges((16, 1)))):
        maps = Maps(old)
        seen = [maps.identity(PEER)]
        for change in plan(old, new):
            maps.apply(change)
            seen.append(maps.identity(PEER))
        assert set(seen) == {Maps(old).identity(PEER), Maps(new).identity(PEER)}


def test_services_change_after_their_backends_and_slots_came_and_before_they_go() -> None:
    def made(number: int) -> Tables:
        place = layout.Number(number).pack()
        result = dict(tables([]))
        result["backends"] = Table("backends", {place: layout.Backend(POD, ANY, 80).pack()})
        result["slots"] = Table("slots", {place: place})
        key = layout.ServiceKey(PEER, 80, 6).pack()
        result["services"] = Table("services", {key: layout.Service(9, number, 1).pack()})
        result["config"] = Table("config", {bytes(4): bytes([number])})
        return result

    changes = [(change.table, change.op) for change in plan(made(1), made(2))]
    put, gone = Op.PUT, Op.DELETE
    assert changes == [
        ("backends", put),
        ("slots", put),
        ("services", put),
        ("slots", gone),
        ("backends", gone),
        ("config", put),
    ]


def test_what_goes_is_not_compared_with_every_deny_that_stays() -> None:
    old = tables([(X, port, ALLOW) for port in range(1000, 2000)])
    new = tables([(X, port, DENY) for port in range(1500, 2500)])
    assert calls(lambda: plan(old, new)) < 200_000


def test_nothing_to_do() -> None:
    same = tables([(X, 80, ALLOW), (X, 0, DENY)])
    assert plan(same, same) == []
