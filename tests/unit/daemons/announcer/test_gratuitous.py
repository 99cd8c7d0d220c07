"""Announcements in time, on a clock of the test's own."""

from __future__ import annotations

import pytest

from netstack.announcer.gratuitous import STEPS_S, Gratuitous
from netstack.core.address import pack

VIP = pack("192.168.86.18")


def times(plan: Gratuitous, until: float, start: float = 0.0) -> list[tuple[float, bool]]:
    """When the address is announced up to `until`, and whether the gateway is asked too."""
    said, now = [], start
    while (now := max(now, plan.wakeup)) <= until:
        said += [(round(now, 3), announce.ask_gateway) for announce in plan.due(now)]
    return said


def test_a_taken_address_is_announced_six_times_in_five_seconds_and_then_every_minute() -> None:
    plan = Gratuitous(60.0)
    plan.owned(VIP, 0.0)
    said = times(plan, 130)
    assert said[:6] == list(zip(STEPS_S, [True, False, True, False, False, False], strict=True))
    assert [ask for _, ask in said[6:]] == [True, True]
    first, second = (time for time, _ in said[6:])
    assert 54 < first - 5 < 66 and 54 < second - first < 66


def test_without_refresh_it_ends_after_five_seconds() -> None:
    plan = Gratuitous(0.0)
    plan.owned(VIP, 0.0)
    assert len(times(plan, 10_000)) == 6
    assert plan.wakeup == float("inf")


def test_a_lost_address_is_not_announced() -> None:
    plan = Gratuitous(60.0)
    plan.owned(VIP, 0.0)
    plan.due(0.0)
    plan.lost(VIP)
    plan.lost(VIP)
    assert plan.due(100.0) == []


def test_a_late_loop_says_each_step_once() -> None:
    plan = Gratuitous(60.0)
    plan.owned(VIP, 0.0)
    assert len(plan.due(3.0)) == 1
    assert len(times(plan, 10, start=3.0)) == 5


def test_a_link_that_came_back_starts_all_over() -> None:
    plan = Gratuitous(60.0)
    plan.owned(VIP, 0.0)
    times(plan, 30)
    plan.again(30.0)
    assert times(plan, 31)[0] == (30.0, True)


@pytest.mark.parametrize("count", [15, 100])
def test_refreshes_of_many_addresses_are_spread(count: int) -> None:
    plan = Gratuitous(60.0)
    for number in range(count):
        plan.owned(bytes(15) + bytes([number]), 0.0)
    times(plan, 6)
    assert len({time for time, _ in times(plan, 90, start=6.0)}) == count
