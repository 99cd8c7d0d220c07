from __future__ import annotations

from collections import Counter, defaultdict, deque

from hypothesis import given
from hypothesis import strategies as st

from netstack.core.address import pack
from netstack.dns.session import Client, Transport
from netstack.dns.turns import Turns

PODS = [pack(f"10.244.1.{number}") for number in range(1, 4)]


def client(pod: bytes) -> Client:
    return Client(pod, 40000, pack("10.96.0.10"), 53, Transport.UDP)


def test_a_pod_with_one_question_waits_for_one_of_each_other() -> None:
    turns = Turns(most=100)
    for number in range(50):
        assert turns.add(client(PODS[0]), b"%d" % number)
    assert turns.add(client(PODS[1]), b"late")
    assert [turns.take() for _ in range(3)] == [
        (client(PODS[0]), b"0"),
        (client(PODS[1]), b"late"),
        (client(PODS[0]), b"1"),
    ]


def test_who_has_too_many_waiting_loses_its_own() -> None:
    turns = Turns(most=2)
    assert [turns.add(client(PODS[0]), b"%d" % number) for number in range(4)] == [True, True, False, False]
    assert turns.add(client(PODS[1]), b"x")
    assert turns.take() == (client(PODS[0]), b"0")
    assert turns.add(client(PODS[0]), b"4")


def test_none_waits() -> None:
    turns = Turns(most=2)
    assert not turns
    assert turns.take() is None
    turns.add(client(PODS[0]), b"x")
    assert turns
    turns.take()
    assert not turns


@given(st.lists(st.sampled_from(PODS) | st.none(), max_size=60))
def test_nothing_is_lost_or_told_twice_and_nobody_waits_for_two_of_another(steps: list[bytes | None]) -> None:
    """A step is a pod that asks, or a turn."""
    turns, waiting = Turns(most=5), defaultdict[bytes, deque[bytes]](deque)
    passed: dict[bytes, Counter[bytes]] = {}  # what others got since the pod's oldest began to wait
    for number, pod in enumerate(steps):
        if pod is not None:
            assert turns.add(client(pod), b"%d" % number) is (len(waiting[pod]) < 5)
            if len(waiting[pod]) < 5:
                waiting[pod].append(b"%d" % number)
                passed.setdefault(pod, Counter())
        elif (taken := turns.take()) is not None:
            asker = taken[0].address
            assert taken[1] == waiting[asker].popleft()
            del passed[asker]
            if waiting[asker]:
                passed[asker] = Counter()
            for other, counts in passed.items():
                counts[asker] += other != asker
                assert max(counts.values(), default=0) <= 1
        assert bool(turns) is any(waiting.values())
