"""When to look at what changed: the first change after a rest at once, those that follow together."""

from __future__ import annotations

import asyncio

GAP_S = 0.02
"""From one look to the next: a burst of changes is a few snapshots, and a single one is in force without delay."""


class Pace:
    def __init__(self, gap_s: float = GAP_S) -> None:
        self._gap_s = gap_s
        self._free_at = float("-inf")

    async def turn(self) -> None:
        """Wait until it is time for the next look."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self._free_at - loop.time()))
        self._free_at = loop.time() + self._gap_s
