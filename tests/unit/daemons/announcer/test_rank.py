"""Rank: the same everywhere, even, and moving no more than it must."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from netstack.announcer.rank import plan, weight

nodes = st.sets(st.text("abcdef", min_size=1, max_size=4), min_size=1, max_size=6)
addresses = st.sets(st.binary(min_size=16, max_size=16), max_size=12)


@given(addresses, nodes)
def test_addresses_spread_evenly_over_nodes_that_hold_none(wanted: set[bytes], names: set[str]) -> None:
    orders = plan(dict.fromkeys(wanted, names), {})
    counts = Counter(order[0] for order in orders.values())
    assert len(orders) == len(wanted)
    assert max(counts.values(), default=0) - min((counts[name] for name in names), default=0) <= 1


@given(addresses, nodes, st.data())
def test_the_order_in_which_objects_arrive_does_not_matter(
    wanted: set[bytes], names: set[str], data: st.DataObject
) -> None:
    held = {name: data.draw(st.integers(0, 5)) for name in names}
    forward = plan({address: sorted(names) for address in sorted(wanted)}, held)
    backward = plan({address: sorted(names, reverse=True) for address in sorted(wanted, reverse=True)}, held)
    assert forward == backward
    assert all(sorted(order) == sorted(names) for order in forward.values())


def test_who_holds_fewest_comes_first_and_the_weight_breaks_ties() -> None:
    address = bytes(16)
    tied = sorted(["n1", "n2"], key=lambda node: weight(address, node))
    assert plan({address: ["n1", "n2", "n3"]}, {"n1": 2, "n2": 2}) == {address: ["n3", *tied]}


def test_an_address_without_candidates_has_an_empty_order() -> None:
    assert plan({bytes(16): []}, {}) == {bytes(16): []}


@given(st.binary(min_size=16, max_size=16), nodes)
def test_a_node_that_leaves_changes_nobody_elses_order(address: bytes, names: set[str]) -> None:
    (whole,) = plan({address: names}, {}).values()
    (rest,) = plan({address: names - {whole[0]}}, {}).values()
    assert rest == whole[1:]
