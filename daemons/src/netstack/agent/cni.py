"""The agent's side of the CNI plugin (plugin.py): who gets which address, and when an interface may come up.

    plugin                                     agent
    reserve   ------------------------------>  waits for the Pod, gives number and address, writes the register
    makes the veth, both ends down; addresses
    attach    ------------------------------>  programs on the host side, policy and endpoint into the maps,
                                               host side up, route and neighbour to the pod
    pod side up, routes, result

So a pod has no working interface until its programs and its policy are in force; without the agent, ADD fails.
Every command may be repeated. A refusal is an answer like any other: `{"refused": {"code", "msg", "details"}}`, with
the codes of the CNI specification 1.0.0, section 5.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from netstack.agent.identities import is_pod
from netstack.agent.isolate import Isolation
from netstack.agent.register import INGRESS_NAME, Full, Record, Register
from netstack.agent.settings import AgentSettings
from netstack.core.address import Prefix, pack
from netstack.core.files import write_atomic
from netstack.kernel.attach import POD, Occupied, TrafficControl, attach_pinned, carried, guarded, pinned_ids
from netstack.kernel.bpf import BpfError
from netstack.kernel.netlink import Link, Route
from netstack.source import Snapshot
from netstack.source.models import Namespace, Pod, Service

TRY_AGAIN, FULL, NO_DATAPATH, NOT_RESERVED = 11, 100, 101, 102
"""CNI error codes: 11 is the specification's; from 100 on a plugin's own."""

UNUSED_AUDITS = 60
"""A reservation that was never attached is given back after so many audits (5 minutes by default), with its device."""
DEFAULT_MTU = 1500
CONFIGURATIONS = (".conf", ".conflist", ".json")
"""What runtimes read (libcni)."""

Handler = Callable[[dict[str, Any]], Awaitable[Any]]
log = logging.getLogger("agent")


class Refused(Exception):
    """The plugin must fail with this."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.answer = {"refused": {"code": code, "msg": msg, "details": details}}


class Cni:
    """Owns the register; everything else it asks of its surroundings."""

    def __init__(
        self,
        settings: AgentSettings,
        boot: str,
        traffic: TrafficControl,
        snapshot: Callable[[], Snapshot],
        reconcile: Callable[[], bool],
    ) -> None:
        """`reconcile` puts the register's endpoints in force; False if it could not. ValueError: a torn register."""
        self._settings = settings
        self._path = settings.state / "endpoints.json"
        text = self._path.read_text(encoding="utf-8", errors="replace") if self._path.exists() else ""
        try:
            self.register = Register.load(text, boot)
        except ValueError as error:
            raise ValueError(
                f"{self._path} {error}; remove it and restart the node, which makes its pods anew"
            ) from error
        self._pins = Path(settings.datapath.pins)
        self._traffic = traffic
        self.isolation = Isolation(traffic, settings.datapath.uplink)
        self.stuck: tuple[str, ...] = ()
        """Endpoints that are gone and cannot be released, each with the reason."""
        self._unused: Counter[int] = Counter()
        self._snapshot = snapshot
        self._reconcile = reconcile
        self.news = asyncio.Event()
        """Set by the source's follower after each snapshot."""

    @property
    def devices(self) -> set[str]:
        """Names of this node's endpoints' devices."""
        return {record.device for record in self.register.records}

    def commands(self) -> dict[str, Handler]:
        """Control command -> handler."""
        handlers = {"reserve": self._reserve, "attach": self._attach, "release": self._release, "check": self._check}
        return {name: self._refusing(handler) for name, handler in handlers.items()}

    def _refusing(self, handler: Handler) -> Handler:
        async def answer(request: dict[str, Any]) -> Any:
            try:
                return await handler(request)
            except Refused as refused:
                log.warning("%s %s: %s", request.get("command"), request.get("container"), refused)
                return refused.answer

        return answer

    # commands --------------------------------------------------------------------------------------------------------

    async def _reserve(self, request: dict[str, Any]) -> dict[str, Any]:
        """{container, interface, device, namespace, pod, uid} -> {id, address, mtu, attached}."""
        container, interface = request["container"], request["interface"]
        uid = request.get("uid", "")
        labels, account = await self._wait_for(request["namespace"], request["pod"], uid, container)
        record = self.register.find(container, interface)
        if record is None:
            place = (request["device"], request["namespace"], request["pod"])
            try:
                foreign = self.isolation.foreign(self.devices)
                self._commit(self.register.reserve(self._settings.pods, container, interface, *place, foreign))
            except Full as full:
                raise Refused(FULL, "no address is left for the pod", str(full)) from full
            record = self.register.find(container, interface)
            assert record is not None  # noqa: S101 - reserve has put it there
        record = replace(record, labels=labels, service_account=account, uid=uid)
        self._commit(self.register.put(record))
        uplink = self._traffic.link(self._settings.datapath.uplink)
        mtu = uplink.mtu if uplink else DEFAULT_MTU
        return {"id": record.id, "address": record.address, "mtu": mtu, "attached": record.attached}

    async def _wait_for(self, namespace: str, name: str, uid: str, container: str) -> tuple[dict[str, str], str]:
        """The labels and service account of a pod, as soon as its object is known."""
        patience_s = self._settings.pod_wait_s
        try:
            async with asyncio.timeout(patience_s):
                while True:
                    self.news.clear()
                    found = self._ingress(container) if container == INGRESS_NAME else self._pod(namespace, name, uid)
                    if found is not None:
                        return found
                    await self.news.wait()
        except TimeoutError:
            details = f"waited {patience_s:g} s; without its labels its policies cannot be told"
            raise Refused(TRY_AGAIN, f"Pod {namespace}/{name} is not known on this node yet", details) from None

    def _pod(self, namespace: str, name: str, uid: str) -> tuple[dict[str, str], str] | None:
        """None also for one of the same name that was before it (StatefulSets): its labels may be others."""
        pod = self._snapshot().get(Pod, "Pod", namespace, name)
        if pod is None or not is_pod(pod, uid):
            return None
        return dict(pod.meta.labels), pod.service_account

    def _ingress(self, container: str) -> tuple[dict[str, str], str]:
        """The ingress endpoint has the selector of its Service as labels, so whatever selects those pods selects it.

        It does not wait for the Service, which on a fresh cluster its user writes after the ingress is there.
        """
        for ref in self._settings.services("ingress_services"):
            service = self._snapshot().get(Service, "Service", ref.namespace, ref.name)
            if service is not None and service.selector:
                return dict(service.selector), ""
        known = next((record for record in self.register.records if record.container == container), None)
        return dict(known.labels) if known else {}, ""

    async def _attach(self, request: dict[str, Any]) -> dict[str, Any]:
        """{container, interface, mac} -> {}. The veth is there and down; then the host side is up and guarded."""
        record = self.register.find(request["container"], request["interface"])
        if record is None:
            raise Refused(NOT_RESERVED, "attach without reserve", request["container"])
        link = self._traffic.link(record.device)
        if link is None:
            raise Refused(NOT_RESERVED, f"there is no device {record.device}")
        try:
            attach_pinned(self._traffic, self._pins, link.index)
        except (BpfError, Occupied) as error:
            raise Refused(NO_DATAPATH, "the eBPF programs cannot be attached", str(error)) from error
        record = replace(record, ifindex=link.index, mac=request["mac"], host_mac=link.mac.hex())
        self._commit(self.register.put(record))
        if not self._reconcile():
            self._commit(self.register.put(replace(record, ifindex=0)))
            raise Refused(NO_DATAPATH, "the pod's endpoint and policy could not be put in force", "see netstack status")
        self._open(record)
        log.info("endpoint %d: %s/%s has %s", record.id, record.namespace, record.pod, record.address)
        return {}

    def _open(self, record: Record) -> None:
        """Let the host side work: up, a route to the pod, and its MAC, which nobody has to ask for."""
        self._traffic.set_up(record.ifindex)
        address = pack(record.address)
        self._traffic.put_neighbour(record.ifindex, address, bytes.fromhex(record.mac))
        self._traffic.put_route(Route(Prefix(address, 128), record.ifindex))

    async def _release(self, request: dict[str, Any]) -> dict[str, Any]:
        """{container, interface} -> {}. Unknown ones are released already."""
        record = self.register.find(request["container"], request["interface"])
        if record is not None:
            self.release(record)
        return {}

    async def _check(self, request: dict[str, Any]) -> dict[str, Any]:
        """{container, interface} -> {}, if the endpoint is in force and its device is guarded."""
        record = self.register.find(request["container"], request["interface"])
        if record is None or not record.attached:
            raise Refused(NOT_RESERVED, "the container has no endpoint on this node")
        if not guarded(self._traffic, pinned_ids(self._pins), record.ifindex):
            raise Refused(NO_DATAPATH, f"{record.device} does not carry the eBPF programs")
        return {}

    # upkeep ----------------------------------------------------------------------------------------------------------

    def remember(self, snapshot: Snapshot) -> None:
        """What objects say of the pods of endpoints: it holds for these when the objects are gone. OSError."""
        register = self.register
        for record in register.records:
            pod = snapshot.get(Pod, "Pod", record.namespace, record.pod)
            if pod is not None and is_pod(pod, record.uid) and not record.ingress:
                namespace = snapshot.get(Namespace, "Namespace", "", record.namespace)
                seen = replace(
                    record,
                    labels=dict(pod.meta.labels),
                    service_account=pod.service_account,
                    namespace_labels=dict(namespace.meta.labels) if namespace else {},
                    ports=pod.ports,
                )
                if seen != record:
                    register = register.put(seen)
        if register is not self.register:
            self._commit(register)

    def release(self, record: Record) -> None:
        """Policy and endpoint go, then the device, then the address is free."""
        self._commit(self.register.release(record.id))
        self._reconcile()
        self._traffic.delete_link(record.device)
        log.info("endpoint %d: %s/%s gave back %s", record.id, record.namespace, record.pod, record.address)

    def audit(self) -> Iterator[None]:
        """No other plugin is in force. Endpoints whose device is gone are released; a device without our programs gets
        them back or goes down. Yields after each endpoint, so that the caller can do in between what is urgent."""
        self.alone()
        stuck: list[str] = []
        pinned = pinned_ids(self._pins)
        links = {link.name: link for link in self._traffic.links() if link.kind == "veth"}
        for record in self.register.records:
            # Before Linux 6.10 a dump may leave out a device while others go.
            link = links.get(record.device) or self._traffic.link(record.device)
            if not any(record is current for current in self.register.records):
                continue  # it has changed in between
            if record.attached and (link is None or link.index != record.ifindex):
                stuck += self._give_back(record)
            elif record.attached and not guarded(self._traffic, pinned, record.ifindex):
                pinned = pinned_ids(self._pins)  # others by now, if a loader is at work
                if not guarded(self._traffic, pinned, record.ifindex):
                    self._guard(record)
            elif not record.attached:
                self._unused[record.id] += 1
                if self._unused[record.id] > UNUSED_AUDITS:
                    stuck += self._give_back(record)
            yield
        self._close_strangers(links.values())
        self.stuck = tuple(stuck)

    def _give_back(self, record: Record) -> list[str]:
        """Release it, or say why not: a disk that is full must not end the audit of those that stay."""
        try:
            self.release(record)
        except OSError as error:
            reason = f"endpoint {record.id} of {record.namespace}/{record.pod} is gone and cannot be released: {error}"
            if reason not in self.stuck:
                log.error("%s", reason)
            return [reason]
        why = f"its device {record.device} was gone" if record.attached else "it was never attached"
        log.warning("endpoint %d: %s", record.id, why)
        return []

    def look(self, indexes: Set[int]) -> None:
        """The part of an audit that cannot wait, for these devices. A device with programs of another release is left
        to whoever is replacing them, or to the next audit."""
        for record in self.register.records:
            if record.attached and record.ifindex in indexes and not carried(self._traffic, record.ifindex) >= set(POD):
                link = self._traffic.link(record.device)
                if link is not None and link.up:  # else it passes nothing, as one that is closed already
                    self._guard(record)
        if indexes - {record.ifindex for record in self.register.records}:
            self._close_strangers(link for link in self._traffic.links() if link.index in indexes)

    def _close_strangers(self, links: Iterable[Link]) -> None:
        """Devices of a name that only the plugin gives, and of no endpoint."""
        ours = self.devices
        for link in links:
            if link.kind == "veth" and link.up and is_pod_device(link.name) and link.name not in ours:
                log.error("device %s is no endpoint of this node: taken down", link.name)
                self._close(link.index)

    def alone(self) -> None:
        """Put our configuration right if it was changed (without one no pod starts, which opens nothing). Move other
        plugins' aside, as the role does: a runtime takes the first by name."""
        path, text = self._settings.conflist, self._settings.conflist_text
        try:
            if text and path.exists() and write_atomic(path, text):
                log.error("%s had been changed, and said who else wires pods: put right", path)
        except OSError as error:
            log.error("%s cannot be put right: %s", path, error.strerror)
        try:
            others = sorted(self._settings.conflist.parent.iterdir())
        except OSError:  # no runtime is installed
            return
        for path in others:
            if path.suffix in CONFIGURATIONS and path.name != self._settings.conflist.name:
                log.error("%s would have pods wired around every policy: moved aside", path)
                try:
                    path.rename(path.with_name(f"{path.name}.netstack-disabled"))
                except OSError as error:
                    log.error("%s stays: %s", path, error.strerror)

    def _guard(self, record: Record) -> None:
        try:
            attach_pinned(self._traffic, self._pins, record.ifindex)
            self._open(record)  # it may have been taken down before
            log.error("endpoint %d: %s had lost its programs; they are attached again", record.id, record.device)
        except (BpfError, Occupied, OSError) as error:
            if self._close(record.ifindex):
                log.error("endpoint %d: %s has no programs (%s): taken down", record.id, record.device, error)

    def _close(self, index: int) -> bool:
        """Take a device down; False if it is gone."""
        try:
            self._traffic.set_up(index, False)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            return False
        return True

    def _commit(self, register: Register) -> None:
        """A change counts when it is on disk: what is answered to a plugin is never forgotten."""
        write_atomic(self._path, register.dump(), mode=0o600)
        self.register = register


DEVICE_PREFIX = "nst"
DEVICE_LENGTH = 15


def is_pod_device(name: str) -> bool:
    """Whether the plugin would make a device of this name (plugin.device_name)."""
    digits = name.removeprefix(DEVICE_PREFIX)
    return name.startswith(DEVICE_PREFIX) and len(name) == DEVICE_LENGTH and set(digits) <= set("0123456789abcdef")
