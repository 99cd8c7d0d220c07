"""netstack-observer --config /etc/netstack/observer.yaml"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

from netstack.core.start import start
from netstack.core.unit import Unit, ask
from netstack.kernel import layout
from netstack.kernel.bpf import Map
from netstack.kernel.ring import Ring
from netstack.observer.flows import Filter, addresses, named
from netstack.observer.history import History
from netstack.observer.names import Names
from netstack.observer.settings import ObserverSettings

LAST = 20
"""Events that who asks for no number gets, as of `hubble observe`."""


class Observer:
    def __init__(self, chosen: ObserverSettings, unit: Unit) -> None:
        self.chosen = chosen
        self.unit = unit
        self.ring = Ring(Map.open(Path(chosen.maps) / "events"))
        self.budgets = Map.open(Path(chosen.maps) / "event_budget")
        self.history = History(chosen.keep)
        self.names = Names()
        self.agent_error = ""
        """Why the agent's names are those of earlier; "" if they are of now."""

    async def drain(self) -> None:
        """Ring -> history."""
        async for records in self.ring.batches(self.chosen.pace_s):
            self.history.add(records)

    async def refresh(self) -> None:
        while True:
            await self.learn()
            await asyncio.sleep(self.chosen.refresh_s)

    async def learn(self) -> None:
        """What the agent knows that we do not."""
        try:
            told = await asyncio.to_thread(ask, "agent", {"command": "names", "known": self.names.revision})
        except (OSError, RuntimeError) as error:
            self.agent_error = f"the agent does not say who is who: {error}"
            return
        self.agent_error = ""
        if told is not None:
            self.names.learn(told)

    async def learn_dns(self, events: Iterable[layout.Event]) -> None:
        now = time.monotonic()
        wanted = self.names.unknown((text for event in events for text in addresses(event) if text), now)
        if not wanted:
            return
        try:
            told = await asyncio.to_thread(ask, "dns", {"command": "names", "addresses": wanted})
        except (OSError, RuntimeError):
            told = []  # netstack-dns is not installed, or restarts: its names come a little later
        self.names.learn_dns(wanted, told, now)

    async def flows(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The last events that match, oldest first; then, to who follows, those to come."""
        filter_, boot = Filter.parse(request.get("filter", {})), time.time() - time.monotonic()
        oldest, last = request.get("since_s"), request.get("last", LAST)
        number = self.history.count
        await self.learn()
        await self.learn_dns(self.history.backwards(number))
        found: list[dict[str, Any]] = []
        for event in self.history.backwards(number):
            flow = named(event, self.names, boot)
            if (oldest is not None and flow["time"] < time.time() - oldest) or len(found) >= last:
                break
            if filter_.matches(flow):
                found.append(flow)
        for flow in reversed(found):
            yield flow
        while request.get("follow"):
            await self.history.reach(number)
            forgotten, events = self.history.since(number)
            number += forgotten + len(events)
            if forgotten:
                yield {"lost": forgotten}
            await self.learn_dns(events)
            if any(event.endpoint and event.endpoint not in self.names.endpoints for event in events):
                await self.learn()
            for event in events:
                flow = named(event, self.names, boot)
                if filter_.matches(flow):
                    yield flow

    def lost(self) -> dict[str, int]:
        """Device -> events that were not told of it since it exists."""
        found = {}
        for key, value in self.budgets.items():
            ifindex, budget = layout.Number.unpack(key).value, layout.Budget.unpack(value)
            if budget.lost:
                endpoint = self.names.endpoints.get(self.names.endpoint_at(ifindex))
                found[endpoint.pod if endpoint else f"device {ifindex}"] = budget.lost
        return found

    def status(self, _: dict[str, Any]) -> dict[str, Any]:
        lost = self.lost()
        return {
            "summary": f"{self.history.count} events, {sum(lost.values())} more were not told",
            "events": self.history.count,
            "unreadable": self.history.unreadable,
            "lost": lost,
            "broken": [self.agent_error] if self.agent_error else [],
            "unready": [],
        }


async def serve(chosen: ObserverSettings, unit: Unit) -> None:
    observer = Observer(chosen, unit)
    unit.command("status", observer.status)
    unit.command("flows", observer.flows)
    unit.spawn(observer.drain(), "drain")
    unit.spawn(observer.refresh(), "refresh")
    unit.ready(f"keeps {chosen.keep} events")
    await unit.stopping.wait()


def main() -> None:
    start("observer", "What the programs tell of packets.", ObserverSettings, serve)


if __name__ == "__main__":
    main()
