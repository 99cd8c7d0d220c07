"""Questions that have been read and not looked at: each pod's wait in a queue of its own, and pods take turns.

All pods send to one socket. Looked at in the order of their arrival, the questions of a pod that asks faster than they
are answered would be in the way of everybody's; so they are read at once (an eighth of the work) and wait here.
"""

from __future__ import annotations

from collections import OrderedDict, deque

from netstack.dns.session import Client

Question = tuple[Client, bytes]


class Turns:
    def __init__(self, most: int) -> None:
        """`most`: how many of one pod may wait."""
        self._most = most
        self._queues: OrderedDict[bytes, deque[Question]] = OrderedDict()
        """By pod, whose turn it is first; none is empty."""

    def __bool__(self) -> bool:
        return bool(self._queues)

    def add(self, client: Client, payload: bytes) -> bool:
        """False if too many of the pod wait already."""
        queue = self._queues.setdefault(client.address, deque())
        if len(queue) >= self._most:
            return False
        queue.append((client, payload))
        return True

    def take(self) -> Question | None:
        """The oldest question of the pod whose turn it is; None if none waits."""
        if not self._queues:
            return None
        pod, queue = self._queues.popitem(last=False)
        question = queue.popleft()
        if queue:
            self._queues[pod] = queue
        return question
