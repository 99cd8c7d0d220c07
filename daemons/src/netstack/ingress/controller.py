"""One turn of the daemon: compile, write the files, bring HAProxy there, and say how it went. See `Controller.step`."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any

from netstack.ingress import endpoint, files, render
from netstack.ingress.haproxy import Process, Proxy, Refused, Runtime
from netstack.ingress.render import Wanted
from netstack.ingress.report import Reporter
from netstack.ingress.routes import compile_routes
from netstack.ingress.settings import IngressSettings
from netstack.ingress.slots import Slots, assign
from netstack.source.snapshot import Snapshot
from netstack.source.status import Statuses

BACKOFF_S = (1.0, 60.0)
"""First and longest pause after HAProxy refused the wanted state or its files: a broken one must not become a storm of
reloads, nor of `haproxy -c`."""

RENEW_CHECK_S = 3600.0
"""How often the end of the self-signed certificate is looked at."""

log = logging.getLogger("ingress")


@dataclass(slots=True)
class Backoff:
    """When what failed may be tried again, in time.monotonic() seconds: twice as late each time."""

    pause_s: float = BACKOFF_S[0]
    not_before: float = 0.0

    def failed(self) -> None:
        self.not_before = time.monotonic() + self.pause_s
        self.pause_s = min(2 * self.pause_s, BACKOFF_S[1])

    @property
    def waits(self) -> bool:
        return time.monotonic() < self.not_before


class Controller:
    """Holds what one turn leaves for the next. `snapshot` is set from outside whenever objects change."""

    def __init__(self, settings: IngressSettings, snapshot: Snapshot, statuses: Statuses) -> None:
        self.settings = settings
        self.snapshot = snapshot
        self.proxy = Proxy(settings, Runtime(settings.socket))
        self.reporter = Reporter(settings, statuses)
        self._routing = compile_routes(snapshot, settings)
        self._slots: Slots = files.load_slots(settings)
        self._wanted: Wanted | None = None
        self._prepared: Snapshot | None = None
        self._renew = 0.0
        self._process: Process | None = None
        self._error = ""
        self._refused: Snapshot | None = None
        self._refusal = ""
        self._files_backoff, self._reach_backoff = Backoff(), Backoff()

    async def step(self) -> str:
        """One turn; a line for `systemctl status`. What is wrong with the world is said there and tried again.

        Files are written in a thread: they have to reach the disk, and the watchdog must not wait for it.
        """
        snapshot = self.snapshot
        error = await asyncio.to_thread(self._prepare, snapshot) or await self._reach()
        try:
            ready = self._process is not None
            await asyncio.to_thread(self.reporter.report, snapshot, self._routing.problems, ready=ready)
        except OSError as failure:
            error = error or f"status or EndpointSlice cannot be written: {failure}"
        if error != self._error:
            log.log(logging.WARNING if error else logging.INFO, "%s", error or "HAProxy holds the wanted state")
            self._error = error
        return error or f"{len(self._routing.routes)} routes, {len(self._routing.backends)} backends"

    def _prepare(self, snapshot: Snapshot) -> str:
        """Compile and write the files, if anything is new; what went wrong, or ""."""
        if self._prepared is snapshot and time.time() < self._renew:
            return ""
        if self._refused is snapshot and self._files_backoff.waits:
            return self._refusal
        self._routing = routing = compile_routes(snapshot, self.settings)
        try:
            pair = routing.default_certificate or files.default_certificate(self.settings, time.time())
            assigned = assign(self._slots, routing.backends, pools=self.settings.pools, slots=self.settings.slots)
            wanted = render.wanted(routing, assigned, pair, self.settings)
            if wanted != self._wanted:
                files.write(wanted, assigned, self.settings)
                self._slots, self._wanted = assigned, wanted
        except (OSError, files.ConfigurationRefused) as error:
            self._refused, self._refusal = snapshot, f"the files stay as they were: {error}"
            self._files_backoff.failed()
            return self._refusal
        self._prepared, self._renew = snapshot, time.time() + RENEW_CHECK_S
        self._refused, self._files_backoff = None, Backoff()
        return ""

    async def _reach(self) -> str:
        """Bring HAProxy to what the files hold; what went wrong, or ""."""
        self._process = await self.proxy.alive()
        if self._process is None:
            return f"HAProxy does not answer at {self.settings.socket}"
        if self._wanted is None or self._reach_backoff.waits:
            return self._error
        try:
            await self.proxy.reach(self._wanted)
        except (OSError, EOFError) as error:
            self.proxy.runtime.close()
            return f"HAProxy went away: {error or type(error).__name__}"
        except Refused as error:
            self._reach_backoff.failed()
            return str(error)
        self._reach_backoff = Backoff()
        return ""

    # The control socket

    def status(self) -> dict[str, Any]:
        """For `netstack status`. `reloads` lists the reasons; in normal life it is empty."""
        routing, process = self._routing, self._process
        return {
            "haproxy": {"pid": process.pid, "version": process.version} if process else None,
            "in_step": self._wanted is not None and self.proxy.live == self._wanted.state,
            "error": self._error,
            "endpoint": endpoint.address_of(self.settings),
            "service": self.settings.service,
            "service_ports_not_served": list(self.reporter.missing_ports),
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
            for route in self._routing.routes
        ]
