"""What the daemons cost a node where nothing happens: memory, and processor time.

One node of three has 50 pods; the cluster has 100 services, spread over them. PSS counts a shared page by its share, so
the sum over processes is what they really take (Documentation/filesystems/proc.rst, smaps_rollup).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator

from bench.figures import Area, Figure, Measured, Settings
from e2e import demo
from lab import Lab, cgroups
from lab.node import Node

UNITS = {
    "agent": "netstack-agent.service",
    "announcer": "netstack-announcer.service",
    "ingress": "netstack-ingress.service",
    "dns": "netstack-dns.service",
    "haproxy": "netstack-haproxy.service",
    "observer": "netstack-observer.service",
}
PODS, SERVICES = 50, 100
WINDOWS = 20
"""Into which the time is cut: as many samples."""


def _figures() -> Iterator[Figure]:
    on = f"on a node with {PODS} pods in a cluster with {SERVICES} services, nothing happening"
    for name in UNITS:
        yield Figure(f"pss.{name}", "MB", f"memory of netstack-{name} (PSS of all its processes), {on}")
    for name in UNITS:
        yield Figure(f"idle_cpu.{name}", "%", f"of one core, netstack-{name} {on}, 10 minutes", statistic="mean")


def measure(wanted: frozenset[str], settings: Settings) -> Iterator[Measured]:
    with Lab("benchidle") as lab:
        node = furnish(lab, settings)
        if any(name.startswith("idle_cpu.") for name in wanted):
            for name, samples in watch(node, settings).items():
                yield Measured(f"idle_cpu.{name}", samples)
        # Three nodes on one machine share the pages of the same libraries; a board shares them with nobody.
        for other in lab.nodes[1:]:
            other.run(f"systemctl stop {demo.DAEMONS} netstack-haproxy")
        for name, unit in UNITS.items():
            yield Measured(f"pss.{name}", [megabytes(node, unit) for _ in range(settings.repeats)])


def watch(node: Node, settings: Settings) -> dict[str, list[float]]:
    """Daemon -> per cent of a core in each window."""
    settings.say(f"watching for {settings.idle_seconds:.0f} s")
    busy: dict[str, list[float]] = defaultdict(list)
    before = _look(node)
    for _ in range(WINDOWS):
        time.sleep(settings.idle_seconds / WINDOWS)
        after = _look(node)
        for name in UNITS:
            busy[name].append(100 * (after[name][0] - before[name][0]) / (after[name][1] - before[name][1]))
        before = after
    return busy


def furnish(lab: Lab, settings: Settings) -> Node:
    """netstack installed, pods running and services served; the node that has the pods."""
    settings.say("installing netstack")
    demo.site(lab)
    node = lab.nodes[0]
    for manifest in ("metallb", "ingress-nginx"):
        lab.apply(demo.MANIFESTS / f"{manifest}.yaml")
    settings.say(f"starting {PODS} pods, {SERVICES} services")
    lab.apply(service(number) for number in range(SERVICES))
    for number in range(PODS):
        lab.pod(node.name, "idle", f"p{number}", {"app": f"a{number}"})
    demo.wait_ready(node)
    return node


def service(number: int) -> dict[str, object]:
    """A ClusterIP service; two of them for each pod."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"s{number}", "namespace": "idle"},
        "spec": {"selector": {"app": f"a{number % PODS}"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }


def _look(node: Node) -> dict[str, tuple[float, float]]:
    """Daemon -> (seconds of processor time used so far, when)."""
    return {name: (used_s(node, unit), time.monotonic()) for name, unit in UNITS.items()}


def used_s(node: Node, unit: str) -> float:
    """Processor time of a unit's cgroup since the unit started."""
    folder = cgroups.unified() / node.payload / "system.slice" / unit
    facts = dict(line.split() for line in (folder / "cpu.stat").read_text().splitlines())
    return int(facts["usage_usec"]) / 1e6


def megabytes(node: Node, unit: str) -> float:
    """Sum of the PSS of a unit's processes."""
    folder = cgroups.unified() / node.payload / "system.slice" / unit
    return megabytes_of(int(pid) for path in folder.rglob("cgroup.procs") for pid in path.read_text().split())


def megabytes_of(pids: Iterable[int]) -> float:
    """Sum of the PSS of processes."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup") as rollup:
            total += next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
    return total * 1024 / 1e6


AREA = Area(tuple(_figures()), measure)
