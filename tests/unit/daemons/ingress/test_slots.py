from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netstack.core.address import pack
from netstack.ingress.routes import Target
from netstack.ingress.slots import Pool, Slots, assign, dump, load


def target(number: int) -> Target:
    return Target(pack(f"10.0.0.{number}"), 80)


def assigned(old: Slots, **wanted: list[int]) -> Slots:
    return assign(old, {name: tuple(map(target, numbers)) for name, numbers in wanted.items()}, pools=2, slots=2)


def shown(slots: Slots) -> list[tuple[str, list[int]]]:
    """Pools as (backend, last byte of each slot, 0 = free)."""
    return [(pool.backend, [slot.address[15] if slot else 0 for slot in pool.slots]) for pool in slots.pools]


def test_nothing_wanted_makes_the_pools_all_the_same() -> None:
    slots = assigned(Slots())
    assert shown(slots) == [("", [0, 0]), ("", [0, 0])]
    assert (slots.free, slots.used()) == ((0, 1), 0)


def test_whoever_is_there_stays() -> None:
    slots = assigned(assigned(Slots(), b=[1, 2]), a=[3], b=[2])
    assert shown(slots) == [("b", [0, 2]), ("a", [3, 0])]


def test_a_new_endpoint_takes_a_slot_that_was_free_before_the_one_just_freed() -> None:
    slots = assigned(assigned(Slots(), a=[1]), a=[2])
    assert shown(slots)[0] == ("a", [0, 2])


def test_slots_grow_rather_than_hand_over_at_once() -> None:
    slots = assigned(assigned(Slots(), a=[1, 2]), a=[3, 4])
    assert shown(slots)[0] == ("a", [0, 0, 3, 4])
    assert shown(assigned(slots, a=[5]))[0] == ("a", [5, 0, 0, 0])


def test_pools_grow_rather_than_hand_over_at_once() -> None:
    slots = assigned(assigned(Slots(), a=[1], b=[2]), c=[3], d=[4])
    assert [backend for backend, _ in shown(slots)] == ["", "", "c", "d"]
    assert slots.free == (0, 1)


def test_what_was_freed_first_is_taken_first() -> None:
    slots = assigned(assigned(Slots(), a=[1], b=[2]), b=[2])
    slots = assigned(slots)
    assert slots.free == (0, 1)
    assert [backend for backend, _ in shown(assigned(slots, c=[3]))] == ["c", ""]


def test_a_backend_without_endpoints_keeps_its_pool() -> None:
    slots = assigned(assigned(Slots(), a=[1]), a=[])
    assert shown(slots)[0] == ("a", [0, 0])
    assert shown(assigned(slots, a=[1]))[0] == ("a", [1, 0])


@given(st.lists(st.dictionaries(st.sampled_from("abcde"), st.sets(st.integers(1, 9))), max_size=8))
def test_any_history_serves_what_is_wanted_and_moves_nobody(history: list[dict[str, set[int]]]) -> None:
    slots = Slots()
    for wanted in history:
        before, slots = slots, assigned(slots, **{name: sorted(numbers) for name, numbers in wanted.items()})
        pools = slots.pool_of()
        assert pools.keys() == wanted.keys()
        for name, numbers in wanted.items():
            pool = slots.pools[pools[name]]
            assert sorted(slot.address[15] for slot in pool.slots if slot) == sorted(numbers)
            if name in before.pool_of():
                assert pools[name] == before.pool_of()[name]
                for old, new in zip(before.pools[pools[name]].slots, pool.slots, strict=False):
                    assert old is None or new in (old, None)
            else:
                assert pools[name] >= len(before.pools) or not before.pools[pools[name]].backend
        assert sorted(slots.free) == [n for n, pool in enumerate(slots.pools) if not pool.backend]
        assert load(dump(slots)) == slots


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"free": [], "pools": [{}]}', '{"free": [0], "pools": [{"backend": "a", "slots": []}]}',
     '{"free": [], "pools": [{"backend": "a", "slots": [["x", 1]]}]}'],
)  # fmt: skip
def test_a_file_that_is_not_ours_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        load(text)


def test_the_text_is_one_line_a_pool() -> None:
    slots = Slots((Pool("default/a:80", (target(1), None)), Pool("", (None, None))), (1,))
    assert dump(slots).splitlines()[1] == '{"backend": "default/a:80", "slots": [["10.0.0.1", 80], null]},'
