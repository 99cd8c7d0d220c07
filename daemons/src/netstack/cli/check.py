"""`netstack check DIR`: what the daemons would say of a folder of manifests, without a node or a kernel.

The daemons' own compilers answer, so this cannot disagree with them. If the folder has nodes and pods too (such as the
agent's copy of the cluster), it also says what each mode of `policy_cidr_match_mode` would open and deny among these.
`netstack check-config DAEMON FILE`: whether a daemon would start with this configuration.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from netstack.agent.effect import of_ranges
from netstack.agent.policy.accept import accept
from netstack.agent.settings import AgentSettings
from netstack.announcer.allocate import allocate
from netstack.announcer.settings import AnnouncerSettings
from netstack.core import settings
from netstack.core.errors import BadConfig
from netstack.dns.settings import DnsSettings
from netstack.ingress.routes import compile_routes
from netstack.ingress.settings import IngressSettings
from netstack.observer.settings import ObserverSettings
from netstack.source.credentials import Credentials
from netstack.source.directory import DirectorySource
from netstack.source.models import IPAddressPool, Namespace, Policy, Service
from netstack.source.snapshot import Snapshot

CONFIGS: dict[str, type] = {
    "agent": AgentSettings,
    "announcer": AnnouncerSettings,
    "dns": DnsSettings,
    "ingress": IngressSettings,
    "observer": ObserverSettings,
}


def problems(folder: Path) -> list[str]:
    """One line a problem: file (where one is known), object, field, reason. Empty if nothing is wrong."""
    if not folder.is_dir():
        return [f"{folder}: is not a folder"]
    return list(_problems(DirectorySource(folder).snapshot()))


def range_effects(folder: Path) -> list[str]:
    """What would open and be denied if ranges in policies meant pods or nodes too, one line a pair. No problems."""
    found = of_ranges(DirectorySource(folder).snapshot()) if folder.is_dir() else ()
    return sorted(f"policy_cidr_match_mode [{effect.meant}] {effect}" for effect in found)


def _problems(snapshot: Snapshot) -> Iterator[str]:
    yield from (f"{broken.file}: {broken.error}" for broken in snapshot.broken)
    yield from (str(refusal) for _, refusal in sorted(accept(snapshot.all(Policy), {}).refused.items()))
    namespaces = {namespace.meta.name: namespace.meta.labels for namespace in snapshot.all(Namespace)}
    allocation = allocate(snapshot.all(IPAddressPool), snapshot.all(Service), namespaces)
    yield from (str(refused) for refused in allocation.refused_pools)
    yield from (str(refused) for refused in allocation.refused.values())
    routing = compile_routes(snapshot, settings.parse(IngressSettings, {"node": "check"}))
    for ref, found in sorted(routing.problems.items()):
        lines = (f"{ref}: {p.field}: {p.message}" for p in found if p.reason != "NoReadyEndpoints")
        yield from lines  # which endpoints are ready is the cluster's doing, not the author's


def config_problem(daemon: str, file: Path, *, credentials: bool = True) -> str | None:
    """`file: field: reason` if the daemon would refuse the file; None if it would start. `credentials`: with those that
    there are for the API server."""
    try:
        chosen: Any = settings.load(CONFIGS[daemon], file)
        if credentials and getattr(chosen, "source", "") == "kubernetes":
            Credentials(chosen.kubeconfig).access()
    except BadConfig as error:
        return f"{file}: {error}"
    except OSError as error:
        return f"{file}: {error.strerror}"
    return None
