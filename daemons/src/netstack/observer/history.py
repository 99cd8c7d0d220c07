"""The last events, as the programs wrote them: they are decoded when somebody asks."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Iterable, Iterator

from netstack.kernel import layout


class History:
    """`keep`: how many. Every event has a number, one more than that of the event before it."""

    def __init__(self, keep: int) -> None:
        self._records: deque[bytes] = deque(maxlen=keep)
        self.count = 0
        """Events that there have ever been; the number of the next."""
        self.unreadable = 0
        """Records that were no events: of the programs of another release, while they are being replaced."""
        self._news = asyncio.Event()

    def add(self, records: Iterable[bytes]) -> None:
        for record in records:
            if len(record) == layout.Event.size():
                self._records.append(record)
                self.count += 1
            else:
                self.unreadable += 1
        self._news.set()
        self._news = asyncio.Event()

    async def reach(self, number: int) -> None:
        """Wait for the event of this number."""
        while self.count <= number:
            await self._news.wait()

    def since(self, number: int) -> tuple[int, list[layout.Event]]:
        """(how many from `number` on are forgotten, the others, oldest first)."""
        first = self.count - len(self._records)
        start = max(number, first)
        records = list(self._records)[start - first :] if start < self.count else []
        return start - min(number, start), [layout.Event.unpack(record) for record in records]

    def backwards(self, number: int) -> Iterator[layout.Event]:
        """Newest first, what was there when the event of this number was the next."""
        records = reversed(list(self._records))
        return map(layout.Event.unpack, itertools.islice(records, self.count - number, None))
