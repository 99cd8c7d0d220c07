"""Pools: which are in force and who may draw from them."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruments.announcer_objects import pool, service
from netstack.announcer.pools import admits, automatic, candidates, in_force, size
from netstack.core.address import pack, unpack
from netstack.source.models import IPAddressPool


def names(pools: tuple[IPAddressPool, ...] | list[IPAddressPool]) -> list[str]:
    return [item.meta.name for item in pools]


def test_of_two_pools_that_overlap_the_first_by_name_stays() -> None:
    kept, refused = in_force([pool("b", "192.168.86.10-192.168.86.30"), pool("a", "192.168.86.5-192.168.86.19")], [])
    assert names(kept) == ["a"]
    assert [str(error) for error in refused] == [
        "IPAddressPool metallb-system/b: spec.addresses[0]: 192.168.86.10-192.168.86.30 overlaps "
        "192.168.86.5-192.168.86.19 of IPAddressPool metallb-system/a, which stays"
    ]


def test_the_older_pool_stays_and_one_in_use_before_all() -> None:
    old, new = (
        pool("z", "10.0.0.0/29", created="2024-01-01T00:00:00Z"),
        pool("a", "10.0.0.0/28", created="2025-01-01T00:00:00Z"),
    )
    assert names(in_force([new, old], [])[0]) == ["z"]
    assert names(in_force([new, old], [pack("10.0.0.9")])[0]) == ["a"]


def test_pools_side_by_side_are_both_in_force() -> None:
    kept, refused = in_force([pool("b", "10.0.0.8-10.0.0.9"), pool("a", "10.0.0.0/29", "fd00::/120")], [])
    assert (names(kept), refused) == (["a", "b"], ())


def test_addresses_come_in_the_order_of_the_ranges() -> None:
    drawn = pool("a", "10.0.0.9-10.0.0.10", "fd00::1-fd00::2", "10.0.0.1/32")
    assert [unpack(address) for address in candidates(drawn, True)] == ["10.0.0.9", "10.0.0.10", "10.0.0.1"]
    assert [unpack(address) for address in candidates(drawn, False)] == ["fd00::1", "fd00::2"]


@given(st.integers(0, 2**20), st.integers(0, 2000), st.booleans())
def test_size_is_the_number_of_candidates(first: int, length: int, avoid: bool) -> None:
    base = 0x0A000000 + first
    text = f"{ip_address(base)}-{ip_address(base + length)}"
    drawn = pool("a", text, avoidBuggyIPs=avoid)
    found = list(candidates(drawn, True))
    assert size(drawn, True) == len(found)
    assert not avoid or not {address[15] for address in found} & {0, 255}
    assert size(drawn, False) == 0


def test_a_large_range_is_counted_not_listed() -> None:
    assert size(pool("a", "fd00::/64"), False) == 2**64


@pytest.mark.parametrize(
    ("rules", "admitted"),
    [
        ({}, True),
        ({"namespaces": ["web"]}, True),
        ({"namespaces": ["other"]}, False),
        ({"namespaces": ["other"], "namespaceSelectors": [{"matchLabels": {"team": "home"}}]}, True),
        ({"namespaceSelectors": [{"matchLabels": {"team": "work"}}]}, False),
        ({"serviceSelectors": [{"matchLabels": {"app": "x"}}, {"matchLabels": {"app": "ha"}}]}, True),
        ({"namespaces": ["web"], "serviceSelectors": [{"matchLabels": {"app": "x"}}]}, False),
    ],
)
def test_service_allocation(rules: dict[str, object], admitted: bool) -> None:
    asking = service("ha", namespace="web", labels={"app": "ha"})
    assert admits(pool("a", "10.0.0.0/29", serviceAllocation=rules), asking, {"team": "home"}) is admitted


def test_reserved_pools_come_first_by_priority_and_then_the_open_ones() -> None:
    pools = [
        pool("open-b", "10.0.1.0/29"),
        pool("open-a", "10.0.2.0/29"),
        pool("manual", "10.0.3.0/29", autoAssign=False),
        pool("last", "10.0.4.0/29", serviceAllocation={}),
        pool("second", "10.0.5.0/29", serviceAllocation={"priority": 20}),
        pool("first", "10.0.6.0/29", serviceAllocation={"priority": 10}),
        pool("foreign", "10.0.7.0/29", serviceAllocation={"namespaces": ["x"]}),
    ]
    assert names(automatic(pools, service("s"), {})) == ["first", "second", "last", "open-a", "open-b"]
