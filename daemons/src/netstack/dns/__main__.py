"""netstack-dns --config /etc/netstack/dns.yaml"""

from __future__ import annotations

import asyncio
import logging
import resource
from pathlib import Path
from typing import Any

from netstack.core.start import start
from netstack.core.unit import RUN, Unit
from netstack.dns import report, sockets
from netstack.dns.apply import SWEEP_S, Identities, Learned
from netstack.dns.copies import Copy
from netstack.dns.heard import Memory
from netstack.dns.proxy import Proxy
from netstack.dns.recall import Recall
from netstack.dns.rulesfile import RulesFile
from netstack.dns.session import Session
from netstack.dns.settings import DnsSettings
from netstack.dns.upstream import unpredictable
from netstack.kernel.bpf import BpfError, Map, SoloMap
from netstack.kernel.ring import Ring

_log = logging.getLogger("dns")

WATCH_S = 0.25
"""How long new rules may wait to be seen while nobody asks: connections that they open by name stand still so long."""

NAMES_S = 60.0
"""How often the names of learned addresses are copied, if there are new ones."""


async def serve(chosen: DnsSettings, unit: Unit) -> None:
    loop = asyncio.get_running_loop()
    rules = RulesFile(Path(chosen.rules), Path(chosen.state, "rules.json"))
    rules.refresh()
    maps = Path(chosen.maps)
    most = chosen.max_addresses_per_pod, chosen.max_addresses_per_name
    learned = Learned(SoloMap.open(maps / "fqdn"), SoloMap.open(maps / "fqdn_use"), *most)
    names = Copy(learned, RUN / "dns-names.json", "names of addresses are not known until they are asked again")
    names.load()
    identities = Identities(SoloMap.open(maps / "identities"))
    random_number = unpredictable().__next__
    session = Session(chosen, rules.rules, random_number, identities)
    memory = Memory(session.lifetime, chosen.max_addresses_per_answer)
    recall = Recall(memory, session, learned, identities.inside, RUN / "dns-heard.json")
    recall.copy.load()
    recall.apply(loop.time())
    proxy = Proxy(chosen, session, learned, rules, recall, random_number, unit.spawn)

    def names_of(request: dict[str, Any]) -> list[dict[str, Any]]:
        wanted = report.asked(request)
        entries = learned.entries(loop.time(), wanted)
        return [*report.names(session.rules, entries, loop.time()), *report.heard(memory, wanted)]

    unit.command(
        "status",
        lambda _: report.status(session, learned.open(loop.time()), len(memory), rules.error, loop.time()),
    )
    unit.command("judge", lambda request: report.judge(session, request))
    unit.command("names", names_of)
    await proxy.serve(sockets.inherited() or sockets.opened(*chosen.listen))
    unit.spawn(proxy.upkeep(SWEEP_S), "upkeep")
    unit.spawn(proxy.watch(WATCH_S), "watch")
    unit.spawn(recall.upkeep(SWEEP_S), "expiry of what was heard")
    unit.spawn(recall.copy.upkeep(SWEEP_S), "copy of what was heard")
    unit.spawn(names.upkeep(NAMES_S), "copy of names")
    try:
        unit.spawn(recall.listen(Ring(Map.open(maps / "heard"))), "listen")
    except BpfError as error:  # programs of an earlier release
        _log.warning("what pods are told past the proxy stays unknown: %s", error)
    unit.ready(f"rules of generation {session.rules.generation}, {learned.open(loop.time())} addresses open")
    await unit.stopping.wait()
    unit.status(f"stopping, {session.in_flight} questions under way")
    await proxy.finish(chosen.finish_within_s)
    recall.copy.save()
    names.save()


def main() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each question under way is a socket
    start("dns", "The transparent DNS proxy of a node.", DnsSettings, serve)


if __name__ == "__main__":
    main()
