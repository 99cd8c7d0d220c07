from __future__ import annotations

import asyncio

from netstack.kernel.layout import Event
from netstack.observer.history import History


def records(*ports: int) -> list[bytes]:
    return [Event(port=port).pack() for port in ports]


def test_the_last_ones_are_kept() -> None:
    history = History(3)
    history.add(records(1, 2))
    history.add(records(3, 4))
    assert [event.port for event in history.backwards(4)] == [4, 3, 2]
    assert [[event.port for event in history.backwards(number)] for number in (3, 1)] == [[3, 2], []]
    assert history.count == 4


def test_who_follows_gets_each_once_and_hears_what_was_forgotten() -> None:
    history = History(3)
    history.add(records(1, 2))
    forgotten, events = history.since(1)
    assert (forgotten, [event.port for event in events]) == (0, [2])
    assert history.since(2) == (0, [])
    history.add(records(3, 4, 5, 6))
    forgotten, events = history.since(2)
    assert (forgotten, [event.port for event in events]) == (1, [4, 5, 6])


def test_records_of_another_size_are_counted_and_left_out() -> None:
    history = History(3)
    history.add([b"short", *records(1)])
    assert (history.count, history.unreadable) == (1, 1)


def test_waiting_for_the_next() -> None:
    async def main() -> None:
        history = History(3)
        history.add(records(1))
        await history.reach(0)  # is there
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            waiting = group.create_task(history.reach(2))
            for port in (2, 3):
                await asyncio.sleep(0)
                assert not waiting.done()
                history.add(records(port))

    asyncio.run(main())
