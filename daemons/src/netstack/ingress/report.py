"""Writes what `publish` says: this node's EndpointSlice among the objects, and each Ingress's status.

Only what changed is written, and of the statuses a few at a time: each is a file that has to reach the disk, and a
thousand of them must not hold up the next change of a route.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from netstack.core.address import pack
from netstack.core.ref import Ref
from netstack.ingress import endpoint, publish
from netstack.ingress.routes import Problem
from netstack.ingress.settings import IngressSettings
from netstack.source.models import Service
from netstack.source.snapshot import Snapshot
from netstack.source.status import Statuses

BATCH = 50
"""Statuses written in one turn."""

log = logging.getLogger("report")


class Reporter:
    """Remembers what it has said. OSError from any call: a folder cannot be written; the same call may be repeated."""

    def __init__(self, settings: IngressSettings, statuses: Statuses) -> None:
        self.missing_ports: tuple[str, ...] = ()
        """Ports of the Service that HAProxy does not have."""
        self._settings = settings
        self._said_to = statuses
        self._slice: tuple[Service, str, bool] | None = None
        self._statuses: dict[Ref, dict[str, Any]] = {}
        self._swept = False
        self._done: Snapshot | None = None

    def report(self, snapshot: Snapshot, problems: Mapping[Ref, tuple[Problem, ...]], *, ready: bool) -> None:
        """Say how it is, as far as one turn goes. `ready`: HAProxy answers."""
        service = snapshot.get(Service, "Service", *self._settings.service_key)
        address = endpoint.address_of(self._settings)
        if service is not None and address and (service, address, ready) != self._slice:
            self._write_slice(service, address, ready)
            self._slice = service, address, ready
        if snapshot is not self._done:
            wanted = {ref: publish.ingress_status(service, found) for ref, found in problems.items()}
            self._done = snapshot if self._write_statuses(wanted) else None

    def _write_slice(self, service: Service, address: str, ready: bool) -> None:
        """Without an address or a Service this is not called: what was said last stays."""
        document, self.missing_ports = publish.endpoint_slice(service, pack(address), ready, self._settings)
        if self._said_to.place(document):
            log.info("EndpointSlice %s: %s is %sready", document["metadata"]["name"], address, "" if ready else "not ")

    def _write_statuses(self, wanted: Mapping[Ref, dict[str, Any]]) -> bool:
        """True once all of them are written."""
        if not self._swept:
            self._sweep(wanted)
        for ref in self._statuses.keys() - wanted.keys():
            self._said_to.delete(ref)
            del self._statuses[ref]
        changed = [ref for ref, status in wanted.items() if self._statuses.get(ref) != status]
        for ref in changed[:BATCH]:
            status = wanted[ref]
            if self._said_to.put(ref, status):
                for condition in status["conditions"]:
                    if condition["status"] == "False":
                        log.warning("%s: %s: %s", ref, condition["reason"], condition["message"])
            self._statuses[ref] = status
        return len(changed) <= BATCH

    def _sweep(self, wanted: Mapping[Ref, dict[str, Any]]) -> None:
        """Once: remove the statuses of Ingresses that went while no daemon was looking."""
        self._said_to.keep("Ingress", wanted)
        self._swept = True
