from __future__ import annotations

import asyncio

from netstack.source.pace import Pace


def test_the_first_at_once_and_the_next_after_the_gap() -> None:
    async def main() -> list[float]:
        loop, pace = asyncio.get_running_loop(), Pace(0.05)
        at = [loop.time()]
        for _ in range(3):
            await pace.turn()
            at.append(loop.time())
        await asyncio.sleep(0.06)
        at.append(loop.time())
        await pace.turn()
        at.append(loop.time())
        return at

    start, first, second, third, rested, fourth = asyncio.run(main())
    gaps = (second - first, third - second)
    assert all(gap >= 0.049 for gap in gaps)
    assert first - start < gaps[0] and fourth - rested < gaps[0]
