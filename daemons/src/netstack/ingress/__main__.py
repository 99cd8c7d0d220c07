"""netstack-ingress: source -> routes -> files and the running HAProxy, and back: EndpointSlice and status.

    netstack-ingress --config /etc/netstack/ingress.yaml                      the daemon
    netstack-ingress --config /etc/netstack/ingress.yaml --endpoint add|del   HAProxy's namespace (endpoint.py)

HAProxy does not need the daemon: stopped, restarted or upgraded, it goes on from its memory, or from the files.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path
from typing import Any

from netstack.core.errors import BadConfig
from netstack.core.settings import load
from netstack.core.unit import Unit, log_to_journal, run
from netstack.ingress import endpoint
from netstack.ingress.controller import Controller
from netstack.ingress.settings import IngressSettings
from netstack.ingress.wants import wants
from netstack.source import choice
from netstack.source.choice import Choice

CHECK_S = 1.0
"""How often HAProxy is looked at: a new process is compared with the wanted state, a dead one leaves the slice."""


async def serve(settings: IngressSettings, unit: Unit) -> None:
    kept = settings.state / "last-good"
    source, statuses = Choice(
        settings.source, settings.kubeconfig, settings.node, settings.manifests, settings.status, kept
    ).open(wants(settings.secrets))
    controller = Controller(settings, source.snapshot(), statuses)

    def status(request: dict[str, Any]) -> dict[str, Any]:
        told = {"source": choice.report(source, statuses), "unready": choice.unready(source)}
        return controller.status() | told

    unit.command("status", status)
    unit.command("routes", lambda request: controller.routes())
    known, changed = asyncio.Event(), asyncio.Event()
    changed.set()
    if source.ready:
        known.set()

    async def follow() -> None:
        async for snapshot in source.watch():
            controller.snapshot = snapshot
            known.set()
            changed.set()

    async def check() -> None:
        while True:
            await asyncio.sleep(CHECK_S)
            changed.set()

    async def work() -> None:
        await known.wait()  # until then HAProxy goes on with the files of an earlier process
        while True:
            await changed.wait()
            changed.clear()
            unit.status(await controller.step())

    # Files first: with them HAProxy can start, which systemd orders after our readiness.
    unit.ready(await controller.step() if source.ready else "waiting for the API server")
    for task, name in ((follow(), "follow"), (check(), "check"), (work(), "work")):
        unit.spawn(task, name)
    await unit.stopping.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="netstack-ingress", description="Ingress objects on HAProxy")
    parser.add_argument("--config", type=Path, default=Path("/etc/netstack/ingress.yaml"))
    parser.add_argument("--endpoint", choices=("add", "del"), help="wire or remove HAProxy's namespace, then exit")
    arguments = parser.parse_args()
    try:
        settings = load(IngressSettings, arguments.config)
    except (BadConfig, OSError) as error:
        sys.exit(f"{arguments.config}: {error}")
    if arguments.endpoint is None:
        run("ingress", lambda unit: serve(settings, unit))
        return
    log_to_journal()
    try:
        if arguments.endpoint == "add":
            logging.getLogger("endpoint").info("HAProxy is at %s", endpoint.add(settings))
        else:
            endpoint.delete(settings)
    except endpoint.EndpointError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
