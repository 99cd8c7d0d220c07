"""netstack-agent --config /etc/netstack/agent.yaml: source -> compile -> apply."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from netstack.agent import report
from netstack.agent.apply import Kernel, routes_of, sync_neighbours, sync_routes, sync_rules
from netstack.agent.cni import Cni
from netstack.agent.desired import Before, Desired, Memory, Place, compile_all
from netstack.agent.fit import WHO_MAY
from netstack.agent.good import GoodPolicies
from netstack.agent.order import plan
from netstack.agent.policy.accept import READERS
from netstack.agent.policy.tables import DnsEndpoint
from netstack.agent.settings import AgentSettings
from netstack.agent.unmanaged import Unmanaged, restricting, selections, suspects
from netstack.core.address import Prefix, pack
from netstack.core.files import write_atomic
from netstack.core.ref import Ref
from netstack.core.start import start
from netstack.core.table import Change
from netstack.core.unit import Unit
from netstack.kernel.attach import UPLINK, Occupied, TrafficControl, attach_pinned, carried
from netstack.kernel.bpf import BpfError
from netstack.kernel.netlink import Link
from netstack.kernel.news import DeviceNews
from netstack.source import choice
from netstack.source.choice import Choice
from netstack.source.inotify import Inotify
from netstack.source.models import Namespace, Pod
from netstack.source.resources import Want
from netstack.source.snapshot import Snapshot

WANTS = (
    *map(Want, ("Service", "EndpointSlice", "Node", "Namespace", "NetworkPolicy")),
    Want("Pod", fields="status.phase!=Succeeded,status.phase!=Failed"),  # of the whole cluster: labels are identities
    Want("CiliumNetworkPolicy", status=True),
    Want("CiliumClusterwideNetworkPolicy", status=True),
    Want("CiliumCIDRGroup"),
)
"""What the agent reads. Of pods that have ended it needs nothing."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
log = logging.getLogger("agent")


class Agent:
    """The wiring: what is in force, and how it comes to be."""

    def __init__(self, chosen: AgentSettings, unit: Unit) -> None:
        self.chosen = chosen
        self.unit = unit
        self.traffic = TrafficControl()
        self.pins = Path(chosen.datapath.pins)
        self.kernel = Kernel(self.pins, chosen.datapath.definition("flows"))
        kept = chosen.state / "good"
        self.source, self.statuses = Choice(
            chosen.source, chosen.kubeconfig, chosen.node, chosen.manifests, chosen.status, kept
        ).open(WANTS)
        self.good = GoodPolicies(chosen.state / "policies")
        self.before = Before(self.kernel.read(), self.good.read())
        self.memory = Memory()
        self.desired: Desired | None = None
        self.dns: tuple[tuple[DnsEndpoint, ...], tuple[Prefix, ...]] | None = None
        """What the rules file for the DNS proxy holds."""
        self.revision = 0
        """Of `desired`: rises whenever something else is in force."""
        self.said: dict[Ref, dict[str, Any]] = {}
        self.unsaid = True
        """Whether anything about policies is still to be published."""
        self.placed: Place | None = None
        """Where this node stood when `desired` was made."""
        self.unmanaged: tuple[Unmanaged, ...] = ()
        self.unguarded = ""
        """Why the uplink lacks programs; "" if it does not."""
        self.refused: list[str] = []
        """Which routes and neighbours the kernel does not take."""
        self.failure = ""
        """Why the kernel does not hold what it should; "" if it does."""
        boot = BOOT_ID.read_text(encoding="ascii").strip()
        self.cni = Cni(chosen, boot, self.traffic, self.source.snapshot, self.reconcile)

    def place(self) -> Place:
        uplink = self.traffic.link(self.chosen.datapath.uplink)
        lan = tuple(self.traffic.networks(uplink.index)) if uplink else ()
        if uplink is not None and not self.is_guarded(uplink):
            uplink = None  # the programs of pods then take what it brings in the name of the cluster for forged
        return Place(
            node=self.chosen.node,
            addresses=(pack(self.chosen.node_address),),
            pod_cidrs=(self.chosen.pods,),
            more_addresses=tuple(self.traffic.taken()),
            lan=lan,
            uplink=uplink.index if uplink else 0,
            ranges=(Prefix.parse(self.chosen.cluster_cidr), Prefix.parse(self.chosen.service_cidr)),
            ingress_services=self.chosen.services("ingress_services"),
            dns_services=self.chosen.services("dns_services"),
            dns_caches=self.chosen.caches,
            dns_search=self.chosen.dns_search,
            ranges_match=frozenset(self.chosen.policy_cidr_match_mode),
            kept=self.chosen.kept,
        )

    def is_guarded(self, uplink: Link) -> bool:
        """In the middle of an upgrade the program there is another than the pinned one."""
        return carried(self.traffic, uplink.index) >= set(UPLINK)

    def guard_uplink(self) -> None:
        """Give it the programs back that went with its device, or that the loader could not attach."""
        device, reason = self.chosen.datapath.uplink, ""
        uplink = self.traffic.link(device)
        if uplink is None:
            reason = f"there is no device {device}"
        elif not self.is_guarded(uplink):
            try:
                attach_pinned(self.traffic, self.pins, uplink.index, UPLINK)
                log.error("%s had lost its programs; they are attached again", device)
            except (BpfError, Occupied, OSError) as error:
                reason = f"{device} has no programs, and no address of the cluster is believed there: {error}"
        if reason and reason != self.unguarded:
            log.error("%s", reason)
        self.unguarded = reason

    def reconcile(self) -> bool:
        """Compile what is known and make the kernel hold it. False, and said, if endpoints and policy are not in force.

        While nothing is known, the kernel keeps what an earlier agent left.
        """
        if not self.source.ready:
            self.failure = choice.unready(self.source)[0]
            return False
        began = time.monotonic()
        place, snapshot = self.place(), self.source.snapshot()
        desired = compile_all(
            snapshot, self.cni.register.endpoints(), place, self.before, self.kernel.sizes, self.memory
        )
        self.isolate(desired, snapshot)
        changes = plan(self.before.tables, desired.tables)
        if not self.keep(desired, snapshot) or not self.write(changes, desired):
            return False
        if desired.between:
            log.info("the kernel's tables have no room for old and new rules at once: the old ones went first")
            return self.reconcile()
        self.sync_routes(desired)
        for problem in set(self._problems(desired)) - set(self._problems(self.desired)):
            log.error("%s", problem)
        if self.desired is None:  # most of what is there now stays: no collection need look at it again
            gc.collect()
            gc.freeze()
        self.desired, self.placed = desired, place
        self.revision += 1
        if changes:
            log.info(
                "generation %d: %d writes in %.1f ms",
                desired.generation,
                len(changes),
                1e3 * (time.monotonic() - began),
            )
        self.failure = "; ".join((*desired.overflows.values(), *self.settled()))
        return not desired.overflows.keys() & WHO_MAY

    def keep(self, desired: Desired, snapshot: Snapshot) -> bool:
        """On the disk before it is in force: it must outlive us. False, and said, if the disk refuses."""
        try:
            self.cni.remember(snapshot)
            self.good.write(desired.accepted.good)
            if self.dns != (desired.policy.dns, desired.lan):
                # whatever a power cut leaves of it, the next agent writes it anew
                write_atomic(self.chosen.state / "dns-rules.json", desired.dns_rules(), durable=False)
                self.dns = desired.policy.dns, desired.lan
        except OSError as error:
            self.failure = f"the disk refused a change, so nothing was changed: {error}"
            log.error("%s", self.failure)
            return False
        return True

    def write(self, changes: list[Change], desired: Desired) -> bool:
        """Have the kernel hold it. False, and said, if the kernel refuses."""
        try:
            self.kernel.write(changes)
        except BpfError as error:
            self.failure = f"the kernel refused a change: {error}"
            log.error("%s; what is in force is read back", self.failure)
            self.before = Before(self.kernel.read(), desired.accepted.good)
            return False
        self.before = Before(desired.tables, desired.accepted.good)
        return True

    def isolate(self, desired: Desired, snapshot: Snapshot) -> None:
        """Pods that netstack did not connect, and that policies restrict, have no network."""
        found = suspects(snapshot.all(Pod), self.chosen.node, self.cni.register)
        devices = self.cni.isolation.find(found, self.cni.devices)
        # an address of ours that is nowhere is that of a pod which begins or ends
        pods = {address: pod for address, pod in found.items() if address in devices or address not in self.chosen.pods}
        selected = selections(restricting(desired.accepted.specs), pods.values(), snapshot.all(Namespace))
        self.unmanaged = tuple(
            Unmanaged(
                pod.meta.ref,
                address,
                tuple(link.name for link in devices.get(address, ())),
                tuple(sorted(policy for policy, refs in selected.items() if pod.meta.ref in refs)),
            )
            for address, pod in sorted(pods.items(), key=lambda item: (item[1].meta.ref, item[0]))
        )
        self.cni.isolation.apply(self.unmanaged, devices)

    def settled(self) -> tuple[str, ...]:
        """What is in force is on the disk too; what it says if it refuses."""
        try:
            self.good.settle()
        except OSError as error:
            log.error("the disk refused what is in force: %s", error)
            return (f"the disk refused what is in force: {error}",)
        return ()

    def sync_routes(self, desired: Desired) -> None:
        """Routes vanish with the devices that they use, so this is also done at every audit."""
        links = {link.name: link for link in self.traffic.links()}
        up = {link.index for link in links.values() if link.up}
        uplink = links.get(self.chosen.datapath.uplink)
        endpoints = self.cni.register.endpoints()
        pods = {endpoint.address: endpoint.ifindex for endpoint in endpoints if endpoint.ifindex in up}
        wanted = routes_of(desired.routes, uplink.index if uplink else 0, links["lo"].index, pods)
        refused: list[str] = []
        sync_routes(self.traffic, wanted, refused)
        sync_rules(self.traffic, desired.routes)
        if uplink is not None:
            sync_neighbours(self.traffic, uplink.index, (route.via for route in desired.routes if route.via), refused)
        for reason in refused:
            if reason not in self.refused:
                log.warning("%s", reason)
        self.refused = refused

    @staticmethod
    def _problems(desired: Desired | None) -> list[str]:
        if desired is None:
            return []
        return [*desired.contradictions, *desired.problems, *map(str, desired.accepted.refused.values())]

    def publish(self) -> None:
        """What the authors of policies should see. What the disk refuses is said at the next audit."""
        if self.desired is None:
            return
        wanted = report.policy_statuses(self.desired, self.source.snapshot()) | report.pod_statuses(self.unmanaged)
        try:
            for ref, status in wanted.items():
                if self.said.get(ref) != status:
                    self.statuses.put(ref, status)
                    self.said[ref] = status
            for kind in (*READERS, "Pod") if self.said.keys() != wanted.keys() or self.unsaid else ():
                self.statuses.keep(kind, wanted)
        except OSError as error:
            self.unsaid = True
            log.warning("statuses of policies cannot be written: %s", error)
            return
        self.said, self.unsaid = wanted, False

    async def follow(self) -> None:
        async for _ in self.source.watch():
            self.cni.news.set()
            self.reconcile()
            self.publish()

    def heard(self, indexes: set[int] | None) -> None:
        """News of devices: what must not wait for the next audit. An uplink that has lost its programs is not believed
        from now on; to put them back is the audit's, for a loader that moves to another uplink takes them off too."""
        if indexes is None:
            _complete(self.cni.audit())
        else:
            self.cni.look(indexes)
        if self.unmanaged and self.desired is not None:
            self.isolate(self.desired, self.source.snapshot())
        placed = self.placed
        if placed is not None and (indexes is None or placed.uplink in indexes) and self.place() != placed:
            self.reconcile()

    async def stand_guard(self) -> None:
        """Other plugins' configurations do not wait for the next audit."""
        folder = self.chosen.conflist.parent
        try:
            inotify = Inotify((folder,))
            inotify.watch_tree()
        except OSError as error:
            log.warning("%s cannot be watched, so it is looked at every %g s: %s", folder, self.chosen.audit_s, error)
            return
        while True:
            await inotify.changed.wait()
            inotify.changed.clear()
            self.cni.alone()

    async def upkeep(self) -> None:
        while True:
            await asyncio.sleep(self.chosen.audit_s)
            for _ in self.cni.audit():
                await asyncio.sleep(0)
            self.guard_uplink()
            before = self.unmanaged
            if self.desired is not None:
                self.isolate(self.desired, self.source.snapshot())
            if self.unsaid or self.unmanaged != before:
                self.publish()
            if self.failure or (self.desired is not None and self.place() != self.placed):
                self.reconcile()
            elif self.desired is not None:
                self.sync_routes(self.desired)

    def status(self, _: dict[str, Any]) -> dict[str, Any]:
        release, source = os.environ.get("NETSTACK_RELEASE", ""), choice.report(self.source, self.statuses)
        if self.desired is None:
            unready = choice.unready(self.source) or ([self.failure] if self.failure else [])
            return report.waiting(self.chosen.node, release, [*unready, *self.cni.stuck]) | {"source": source}
        view = report.status(
            self.chosen.node,
            release,
            self.desired,
            self.source.snapshot(),
            self.cni.register,
            dict(self.kernel.writes),
            self.unmanaged,
        ) | {"source": source}
        if self.unguarded:
            view["unready"].append(self.unguarded)
        if self.failure:
            view["unready"].append(self.failure)
        view["unready"] += self.cni.stuck
        return view

    def policy(self, request: dict[str, Any]) -> dict[str, Any]:
        """What has become of a policy, to who waits for it. `generation` 0: nothing has been put in force yet."""
        name, unready = request["policy"], choice.unready(self.source)
        if self.desired is None:
            return {
                "generation": 0,
                "policy": None,
                "unready": [self.failure or "the agent is still starting", *unready],
            }
        return {
            "generation": self.desired.generation,
            "policy": report.policy(self.desired, self.source.snapshot(), self.unmanaged, name),
            "unready": [self.failure] if self.failure else [],
        }

    def names(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """None if who asks knows it all, or nothing is known."""
        if self.desired is None or request.get("known") == self.stamp():
            return None
        dns = self.chosen.services("dns_services")
        return report.names(self.desired, self.source.snapshot(), self.cni.register, self.stamp(), dns)

    def stamp(self) -> str:
        """Of what is in force, by this process and no other."""
        return f"{os.getpid()}.{self.revision}"

    def answer(self, view: Any) -> Any:
        """A control command that shows a view of what is in force."""
        return lambda _: view(self.desired) if self.desired else None


def _complete(audit: Iterator[None]) -> None:
    for _ in audit:
        pass


async def serve(chosen: AgentSettings, unit: Unit) -> None:
    agent = Agent(chosen, unit)
    DeviceNews(agent.heard)
    _complete(agent.cni.audit())  # first, so that what died while nobody looked is not put in force again
    agent.guard_uplink()
    agent.reconcile()
    agent.publish()
    unit.command("status", agent.status)
    unit.command("policy", agent.policy)
    unit.command("names", agent.names)
    unit.command("save", lambda _: asyncio.to_thread(agent.source.save))
    unit.command("rules", agent.answer(report.rules))
    unit.command("identities", agent.answer(report.identities))
    for name, handler in agent.cni.commands().items():
        unit.command(name, handler)
    unit.spawn(agent.follow(), "follow")
    unit.spawn(agent.upkeep(), "upkeep")
    unit.spawn(agent.stand_guard(), "stand guard")
    unit.ready(f"{len(agent.cni.register.records)} endpoints")
    await unit.stopping.wait()


def main() -> None:
    start("agent", "Pods, services and policy of a node.", AgentSettings, serve)


if __name__ == "__main__":
    main()
