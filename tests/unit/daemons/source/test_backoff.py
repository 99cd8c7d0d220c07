import random

from netstack.source.backoff import Backoff


def test_pauses_grow_at_most_threefold_up_to_the_cap_and_begin_anew_after_a_success() -> None:
    backoff = Backoff(lambda low, high: high, base_s=0.25, cap_s=30.0)
    assert [backoff.pause_s() for _ in range(7)] == [0.25, 0.75, 2.25, 6.75, 20.25, 30.0, 30.0]
    backoff.reset()
    assert backoff.pause_s() == 0.25


def test_what_the_server_asks_for_is_waited_with_jitter_on_top() -> None:
    assert Backoff(lambda low, high: high).pause_s(7.0) == 7.25


def test_fifty_nodes_do_not_come_back_together() -> None:
    draws = random.Random(1)
    nodes = [Backoff(draws.uniform) for _ in range(50)]
    for _ in range(6):
        pauses = sorted(node.pause_s() for node in nodes)
    seconds = [int(pause) for pause in pauses]
    assert max(seconds.count(second) for second in seconds) < 20
    assert all(0.25 <= pause <= 30 for pause in pauses)
