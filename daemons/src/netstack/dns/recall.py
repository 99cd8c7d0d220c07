"""The shim around Memory: from the ring into it, to the table when rules change, and a copy for the next daemon."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from netstack.core.address import unpack
from netstack.dns.apply import Learned, Refused
from netstack.dns.copies import Copy
from netstack.dns.heard import Memory
from netstack.dns.names import text
from netstack.dns.session import Session, Unopened
from netstack.kernel.ring import Ring

_log = logging.getLogger("dns")

PACE_S = 0.1
"""How long the ring fills before it is read: one wake-up serves many answers."""

GRACE_S = 60.0
"""How long an address opens whose time was over when the rules came: for connections that exist to show it."""


class Recall:
    """`inside`: whether an address is the cluster's own. `copy`: a file that does not outlive the boot, whose clock it
    is by."""

    def __init__(
        self, memory: Memory, session: Session, learned: Learned, inside: Callable[[bytes], bool], copy: Path
    ) -> None:
        self._memory = memory
        self._session = session
        self._learned = learned
        self._inside = inside
        self.copy = Copy(memory, copy, "what pods were told past the proxy is not known")

    def apply(self, now: float) -> None:
        """Rules have changed: credit what they open of what their pods were told."""
        for endpoint in self._session.rules.endpoints.values():
            for fact in self._memory.of(endpoint.id):
                until_s = max(fact.until_s, now + GRACE_S)
                if not (fact.proxied or self._inside(fact.server)):
                    continue
                credit = self._session.recalled(endpoint, fact.name, fact.address, fact.server, until_s)
                if credit is None:
                    continue
                try:
                    self._learned.credit(credit, now)
                except (Refused, OSError) as error:
                    _log.warning("%s at %s stays closed: %s", text(fact.name), unpack(fact.address), error)
                self._memory.take(fact)

    def note(self, told: Unopened, now: float) -> None:
        """What the proxy passes on."""
        self._memory.note(told, now)

    async def listen(self, ring: Ring) -> None:
        """Ring -> memory, for ever."""
        async for records in ring.batches(PACE_S):
            now = asyncio.get_running_loop().time()
            for record in records:
                self._memory.hear(record, now)

    async def upkeep(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            self._memory.expire(asyncio.get_running_loop().time())
