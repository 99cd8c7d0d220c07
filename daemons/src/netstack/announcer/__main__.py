"""netstack-announcer: source -> allocate, advertise -> elect -> apply."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from netstack.announcer.advertise import Announcements, advertise
from netstack.announcer.allocate import Allocation, allocate
from netstack.announcer.apply import Engine, Event, Gateway, Segment
from netstack.announcer.beat import KEY_BYTES, Stage
from netstack.announcer.conflict import Conflict
from netstack.announcer.elect import Election
from netstack.announcer.gratuitous import Gratuitous
from netstack.announcer.publish import Statuses, event_view, l2_statuses, segment_view, statuses, summary
from netstack.announcer.settings import AnnouncerSettings
from netstack.announcer.tables import Tables
from netstack.announcer.wire import Wire
from netstack.core.address import pack
from netstack.core.errors import BadConfig
from netstack.core.ref import Ref
from netstack.core.start import start
from netstack.core.unit import Unit
from netstack.source import Snapshot, choice
from netstack.source.choice import Choice
from netstack.source.models import EndpointSlice, IPAddressPool, L2Advertisement, Namespace, Node, Service
from netstack.source.resources import Want
from netstack.source.status import Statuses as Outlet

WANTS = (
    *map(Want, ("EndpointSlice", "Node", "Namespace", "L2Advertisement")),
    Want("Service", status=True),
    Want("IPAddressPool", status=True),
)
KINDS = ("Service", "IPAddressPool", "ServiceL2Status")
"""Statuses of these kinds are this daemon's."""
TURN_S = 1.5
"""All nodes allocate alike; the first by name says so in the API, the next if it has not after this long, and so on."""
log = logging.getLogger("announcer")


class Announcer:
    """The daemon's wiring: what was last decided, and how it reaches the engine and the status folder."""

    def __init__(self, settings: AnnouncerSettings, unit: Unit) -> None:
        self.settings = settings
        self.unit = unit
        turn_s = TURN_S * sorted((settings.node, *settings.peers)).index(settings.node)
        self.source, self.statuses = Choice(
            settings.source,
            settings.kubeconfig,
            settings.node,
            settings.manifests,
            settings.status,
            settings.state / "last-good",
        ).open(WANTS, lambda: turn_s)
        self.allocation = Allocation({}, {}, (), ())
        self.announcements = Announcements({}, {})
        self.decided = False
        """Whether anything is known yet: before that, "nothing is allocated" must not be said of what is."""
        self.changed = asyncio.Event()
        self.moved = asyncio.Event()
        self.tables = Tables(settings.bpffs, {settings.node: settings.node_address, **settings.peers})
        self.tables.clear()
        self.loop = asyncio.get_running_loop()
        self.wires = [Wire(name) for name in settings.interfaces]
        self.segments = [self._segment(wire) for wire in self.wires]
        self.engine = Engine(self.segments)
        self._conditions: dict[tuple[Ref, str], tuple[str, str]] = {}

    def _segment(self, wire: Wire) -> Segment:
        settings = self.settings
        now = self.loop.time()
        witness = settings.witness == "gateway" and bool(settings.gateway)
        election = Election(
            settings.node, settings.peers, _key(settings.key_file), secrets.randbits(63) + 1, settings.timing,
            witness=witness, now=now,
        )  # fmt: skip
        gateway = Gateway(pack(settings.gateway), pack(settings.node_address)) if settings.gateway else None
        segment = Segment(wire, self.tables, election, Gratuitous(settings.refresh_s), gateway, self._notify)
        segment.check_link()
        return segment

    async def run_engine(self) -> None:
        sockets: dict[Any, Any] = {}
        for wire, segment in zip(self.wires, self.segments, strict=True):
            sockets |= {wire.beats: segment.read_beats, wire.arp: segment.read_arp, wire.links: segment.check_link}
        await asyncio.to_thread(self.engine.run, sockets)

    async def follow(self) -> None:
        async for snapshot in self.source.watch():
            self._decide(snapshot)
            self.decided = True
            await asyncio.wrap_future(self.engine.call(self._apply))
            self.changed.set()

    def _decide(self, snapshot: Snapshot) -> None:
        settings, services = self.settings, snapshot.all(Service)
        namespaces = {item.meta.name: item.meta.labels for item in snapshot.all(Namespace)}
        self.allocation = allocate(snapshot.all(IPAddressPool), services, namespaces, settings.load_balancer_class)
        self.announcements = advertise(
            self.allocation, snapshot.all(L2Advertisement), services, snapshot.all(EndpointSlice), snapshot.all(Node),
            (settings.node, *settings.peers), ignore_exclude_label=settings.ignore_exclude_label,
        )  # fmt: skip

    def _apply(self, now: float) -> None:
        """In the engine's thread. Addresses are given up before their entries go."""
        for segment in self.segments:
            segment.want(self.announcements.eligible(segment.wire.interface), now)
        addresses = {address for assigned in self.allocation.assigned.values() for address in assigned.addresses}
        self.tables.allocated(addresses, {wire.index: wire.mac for wire in self.wires})

    async def publish(self) -> None:
        """Write status whenever something changed, one write at a time, never in the engine's way."""
        while True:
            await self.changed.wait()
            self.changed.clear()
            if not self.decided:
                continue
            owned = await asyncio.wrap_future(self.engine.call(self._owned))
            wanted = statuses(self.allocation, self.announcements, self._since)
            wanted |= l2_statuses(self.settings.node, owned, self.announcements)
            await asyncio.to_thread(_write, self.statuses, wanted)
            count = len({address for addresses in owned.values() for address in addresses})
            self.unit.status(f"{len(self.announcements.addresses)} addresses, {count} answered for by this node")

    def _owned(self, now: float) -> dict[str, set[bytes]]:
        return {
            segment.wire.interface: {
                a for a, own in segment.election.holdings.items() if own.stage is not Stage.CANDIDATE
            }
            for segment in self.segments
        }

    def _since(self, ref: Ref, kind: str, text: str) -> str:
        said, since = self._conditions.get((ref, kind), ("", ""))
        if said != text:
            since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            self._conditions[ref, kind] = (text, since)
        return since

    def _notify(self, interface: str, event: Event) -> None:
        """In the engine's thread."""
        self.loop.call_soon_threadsafe(self._log, interface, event)

    def _log(self, interface: str, event: Event) -> None:
        level = logging.WARNING if isinstance(event, Conflict) else logging.INFO
        log.log(level, "%s: %s", interface, " ".join(f"{key}={value}" for key, value in event_view(event).items()))
        self.changed.set()
        self.moved.set()

    async def status(self, request: dict[str, Any]) -> dict[str, Any]:
        """The control socket's `status`."""
        views = await asyncio.wrap_future(self.engine.call(lambda now: [segment_view(s, now) for s in self.segments]))
        allocation = self.allocation
        wrong = (*self.source.snapshot().broken, *allocation.refused_pools, *allocation.refused.values())
        return {
            "node": self.settings.node,
            "summary": summary(views, len(self.announcements.addresses)),
            "interfaces": views,
            "services": {ref.key: str(error) for ref, error in allocation.refused.items()}
            | {ref.key: reason for ref, reason in self.announcements.silent.items()},
            "pools": [str(error) for error in allocation.refused_pools],
            "broken": list(map(str, wrong)),
            "source": choice.report(self.source, self.statuses),
            "unready": choice.unready(self.source),
        }

    async def leave(self) -> None:
        """Hand over what this node holds, at most two takeover times long."""

        def ask(now: float) -> None:
            for segment in self.segments:
                segment.leave(now)

        await asyncio.wrap_future(self.engine.call(ask))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.5 * self.settings.timing.takeover_s):
                while any((await asyncio.wrap_future(self.engine.call(self._owned))).values()):
                    self.moved.clear()
                    await self.moved.wait()
        self.engine.stop()


def _key(path: Path) -> bytes:
    key = path.read_bytes().strip()
    if len(key) < KEY_BYTES:
        raise BadConfig("key_file", f"{path} holds {len(key)} bytes; a key has at least {KEY_BYTES}")
    return key


def _write(outlet: Outlet, wanted: Statuses) -> None:
    """Say what is wanted, and nothing else of this daemon's kinds."""
    for ref, status in wanted.items():
        outlet.put(ref, status)
    for kind in KINDS:
        outlet.keep(kind, wanted)


async def serve(settings: AnnouncerSettings, unit: Unit) -> None:
    announcer = Announcer(settings, unit)
    unit.command("status", announcer.status)
    engine = unit.spawn(announcer.run_engine(), "engine")
    unit.spawn(announcer.follow(), "source")
    unit.spawn(announcer.publish(), "publish")
    unit.ready("listening")
    await unit.stopping.wait()
    if not engine.done():
        await announcer.leave()
        await engine
    announcer.tables.clear()


def main() -> None:
    start("announcer", "LoadBalancer addresses of a node on the LAN.", AnnouncerSettings, serve)


if __name__ == "__main__":
    main()
