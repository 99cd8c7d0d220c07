"""The shim around Memory: from the ring into it, to the table when rules change, and a copy for the next daemon."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from netstack.core.address import unpack
from netstack.dns.apply import Learned, Refused
from netstack.dns.copies import Copy
from netstack.dns.heard import Fact, Memory
from netstack.dns.names import text
from netstack.dns.rules import Endpoint
from netstack.dns.session import Credit, Session, Unopened
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
        self._before: dict[int, Endpoint] = {}
        """By endpoint: the rules that were in force last, of those that have learned something."""
        self.copy = Copy(memory, copy, "what pods were told past the proxy is not known")

    def apply(self, now: float) -> None:
        """Rules have changed: credit what they open of what their pods were told, and, by selectors that are new, of
        what the rules before them opened: a name goes on that is allowed by a pattern now."""
        rules = {endpoint.id: endpoint for endpoint in self._session.rules.endpoints.values()}
        changed = {
            number: was
            for number, was in self._before.items()
            if number in rules and (was.rules, was.lan) != (rules[number].rules, rules[number].lan)
        }
        self._before = {n: was for n, was in self._before.items() if n in self._learned} | rules
        for fact, held in self._learned.opened(changed) if changed else ():
            credit = self._recalled(rules[fact.endpoint], fact, now)
            if credit is not None and (new := credit.selectors - held):
                self._credit(credit._replace(selectors=new), now)
        for endpoint in rules.values():
            for fact in self._memory.of(endpoint.id):
                if not (fact.proxied or self._inside(fact.server)):
                    continue
                credit = self._recalled(endpoint, fact, now)
                if credit is not None:
                    self._credit(credit, now)
                    self._memory.take(fact)

    def _recalled(self, endpoint: Endpoint, fact: Fact, now: float) -> Credit | None:
        until_s = max(fact.until_s, now + GRACE_S)
        return self._session.recalled(endpoint, fact.name, fact.address, fact.server, until_s)

    def _credit(self, credit: Credit, now: float) -> None:
        try:
            self._learned.credit(credit, now)
        except (Refused, OSError) as error:
            (address,) = credit.addresses
            _log.warning("%s at %s stays closed: %s", text(credit.name), unpack(address), error)

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
