"""One turn of the daemon: compile, write the files, bring HAProxy there, and say how it went. See `Controller.step`."""

from __future__ import annotations

import logging
import time
from typing import Any

import yaml

from netstack.core.address import pack
from netstack.core.files import write_atomic
from netstack.core.ref import Ref
from netstack.ingress import endpoint, files, publish, render
from netstack.ingress.haproxy import Process, Proxy, Refused, Runtime
from netstack.ingress.render import Wanted
from netstack.ingress.routes import Routing, compile_routes
from netstack.ingress.settings import IngressSettings
from netstack.ingress.slots import Slots, assign
from netstack.source.models import Service
from netstack.source.snapshot import Snapshot
from netstack.source.status import StatusFolder

API_VERSION = "networking.k8s.io/v1"
BACKOFF_S = (1.0, 60.0)
"""First and longest pause after HAProxy refused the wanted state: a broken one must not become a storm of reloads."""

RENEW_CHECK_S = 3600.0
"""How often the end of the self-signed certificate is looked at."""

log = logging.getLogger("ingress")


class Controller:
    """Holds what one turn leaves for the next. `snapshot` is set from outside whenever objects change."""

    def __init__(self, settings: IngressSettings, snapshot: Snapshot) -> None:
        self.settings = settings
        self.snapshot = snapshot
        self.proxy = Proxy(settings, Runtime(settings.socket))
        self.statuses = StatusFolder(settings.status)
        self._compiled: tuple[Snapshot, Routing] | None = None
        self._slots: Slots = files.load_slots(settings)
        self._wanted: Wanted | None = None
        self._prepared: Snapshot | None = None
        self._renew = 0.0
        self._process: Process | None = None
        self._error = ""
        self._not_before = 0.0
        self._pause_s = BACKOFF_S[0]
        self._missing_ports: tuple[str, ...] = ()
        self._told: tuple[Service, str, bool] | None = None
        self._published: tuple[Snapshot, set[Ref]] | None = None

    def prepare(self) -> str:
        """Compile the present snapshot and write the files; a line about it. Raises what `files.write` raises."""
        line = f"{len(self._routing().routes)} routes, {len(self._routing().backends)} backends"
        if self._prepared is self.snapshot and time.time() < self._renew:
            return line
        routing = self._routing()
        pair = routing.default_certificate or files.default_certificate(self.settings, time.time())
        assigned = assign(self._slots, routing.backends, pools=self.settings.pools, slots=self.settings.slots)
        wanted = render.wanted(routing, assigned, pair, self.settings)
        if wanted != self._wanted:
            files.write(wanted, assigned, self.settings)
            self._slots, self._wanted = assigned, wanted
        self._prepared, self._renew = self.snapshot, time.time() + RENEW_CHECK_S
        return line

    async def step(self) -> str:
        """One turn; a line for `systemctl status`. What is wrong with the world is said there and tried again."""
        try:
            line = self.prepare()
        except OSError as error:
            return self._failed(f"the files cannot be written: {error}")
        except files.ConfigurationRefused as error:
            return self._failed(str(error))
        self._process = await self.proxy.alive()
        if self._process is None:
            self._publish()
            return self._failed(f"HAProxy does not answer at {self.settings.socket}")
        if time.monotonic() >= self._not_before and self._wanted is not None:
            try:
                await self.proxy.reach(self._wanted)
                self._pause_s = BACKOFF_S[0]
                self._say("")
            except (OSError, EOFError) as error:
                self.proxy.runtime.close()
                line = self._failed(f"HAProxy went away: {error or type(error).__name__}")
            except Refused as error:
                self._not_before = time.monotonic() + self._pause_s
                self._pause_s = min(2 * self._pause_s, BACKOFF_S[1])
                line = self._failed(str(error))
        self._publish()
        return line

    def _routing(self) -> Routing:
        if self._compiled is None or self._compiled[0] is not self.snapshot:
            self._compiled = self.snapshot, compile_routes(self.snapshot, self.settings)
        return self._compiled[1]

    def _failed(self, error: str) -> str:
        self._say(error)
        return error

    def _say(self, error: str) -> None:
        if error != self._error:
            log.log(logging.WARNING if error else logging.INFO, "%s", error or "HAProxy holds the wanted state")
        self._error = error

    # What others are told

    def _publish(self) -> None:
        """This node's EndpointSlice and the Ingresses' status. A folder that cannot be written is said, not fatal."""
        try:
            self._publish_slice()
            self._publish_status()
        except OSError as error:
            self._failed(f"status or EndpointSlice cannot be written: {error}")

    def _service(self) -> Service | None:
        return self.snapshot.get(Service, "Service", *self.settings.service_key)

    def _publish_slice(self) -> None:
        """Without an address or a Service there is nothing to say, and what was said last stays."""
        service, address = self._service(), endpoint.address_of(self.settings)
        if service is None or not address:
            return
        ready = self._process is not None
        if self._told == (service, address, ready):
            return
        document, self._missing_ports = publish.endpoint_slice(service, pack(address), ready, self.settings)
        text = yaml.safe_dump(document, sort_keys=False)
        if write_atomic(self.settings.manifests / publish.slice_file(self.settings), text):
            log.info(
                "EndpointSlice %s at %s is %s",
                publish.slice_name(self.settings),
                address,
                "ready" if ready else "not ready",
            )
        self._told = service, address, ready

    def _publish_status(self) -> None:
        if self._published is not None and self._published[0] is self.snapshot:
            return
        problems, service = self._routing().problems, self._service()
        for ref, found in problems.items():
            if self.statuses.put(ref, API_VERSION, publish.ingress_status(service, found)):
                for problem in found:
                    log.warning("%s: %s: %s", ref, problem.field, problem.message)
        for ref in (self._published[1] if self._published else set()) - problems.keys():
            self.statuses.delete(ref)
        self._published = self.snapshot, set(problems)

    # The control socket

    def status(self) -> dict[str, Any]:
        """For `netstack status`. `reloads` lists the reasons; in normal life it is empty."""
        routing, process = self._routing(), self._process
        return {
            "haproxy": {"pid": process.pid, "version": process.version} if process else None,
            "in_step": self._wanted is not None and self.proxy.live == self._wanted.state,
            "error": self._error,
            "endpoint": endpoint.address_of(self.settings),
            "service": self.settings.service,
            "service_ports_not_served": list(self._missing_ports),
            "routes": len(routing.routes),
            "backends": len(routing.backends),
            "pools": {"used": self._slots.used(), "size": len(self._slots.pools)},
            "certificates": len(routing.certificates),
            "changes": self.proxy.changed,
            "reloads": list(self.proxy.reloads),
            "problems": [
                {"object": str(ref), "field": item.field, "reason": item.reason, "message": item.message}
                for ref, found in routing.problems.items()
                for item in found
            ],
            "broken": [str(item) for item in self.snapshot.broken],
        }

    def routes(self) -> list[dict[str, Any]]:
        """Every route: what matches, what answers, and which Ingress caused it."""
        return [
            {
                "host": route.host or "*",
                "path": route.path or "/",
                "type": "Exact" if route.exact else "Prefix",
                "answer": route.status or route.backend,
                "redirect": route.redirect,
                "id": route.id,
            }
            for route in self._routing().routes
        ]
