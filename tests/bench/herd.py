"""Fifty nodes after an outage: how soon all are in step again, and how hard they knock.

The sources of the daemons that talk to the API server, as they are, many nodes' in each of a few processes; a real API
server that is stopped for a minute. Counted is from the first watch that is open again until the last one is, and the
attempts of all nodes together in the second that has most of them.

    python -m bench.herd KUBECONFIG FOLDER NODES     one such process: a line of JSON each tenth of a second
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench import api
from bench.figures import Area, Figure, Measured, Settings
from instruments.board import ROOT
from lab.controlplane import ControlPlane, skip_reason
from lab.shell import wait_until
from netstack.agent.__main__ import WANTS as AGENT
from netstack.announcer.__main__ import WANTS as ANNOUNCER
from netstack.ingress.wants import wants
from netstack.source.kubernetes import KubernetesSource

NODES, PROCESSES = 50, 5
AWAY_S, STEP_S, SYNC_S = 60.0, 0.1, 300.0
DAEMONS = (AGENT, ANNOUNCER, wants())

FIGURES = (
    Figure("api.return_50nodes", "s", "after an outage of a minute: from the first open watch of 50 nodes to the last"),
    Figure("api.return_peak_50nodes", "1/s", "the same: attempts of all 50 nodes in the busiest second of the return"),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """What one process said. `at`: seconds of CLOCK_MONOTONIC."""

    at: float
    connected: int
    """Sources with all of their watches open."""
    requests: int
    """Attempts so far."""


@dataclass(slots=True)
class Flock:
    """One process."""

    child: subprocess.Popen[str]
    samples: list[Sample] = field(default_factory=list)

    def listen(self) -> None:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            self.samples.append(Sample(**json.loads(line)))

    @property
    def connected(self) -> int:
        return self.samples[-1].connected if self.samples else 0


def measure(wanted: frozenset[str], settings: Settings) -> Iterator[Measured]:
    lacking = skip_reason()
    if lacking:
        settings.say(f"{', '.join(sorted(wanted))}: left out: {lacking}")
        return
    seconds, peaks = [], []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="netstack-bench-")))
        plane = stack.enter_context(ControlPlane(folder / "plane", node_grace_s=3600))
        plane.apply_crds()
        api.fill(plane, *api.HOME)
        kubeconfig = plane.kubeconfig("herd", [api.GROUP, "netstack:ingress"])
        flocks = [_flock(stack, kubeconfig, folder / str(number)) for number in range(PROCESSES)]
        everyone = NODES * len(DAEMONS)
        _wait(flocks, lambda connected: connected == everyone, "all nodes to be in step")
        for number in range(settings.repeats):
            plane.stop()
            _wait(flocks, lambda connected: connected == 0, "all nodes to see the outage")
            time.sleep(AWAY_S)
            before = time.monotonic()
            plane.start()
            _wait(flocks, lambda connected: connected == everyone, "all nodes to be back")
            returned = [[sample for sample in flock.samples if sample.at >= before] for flock in flocks]
            seconds.append(length(returned, everyone // PROCESSES))
            peaks.append(peak(returned))
            settings.say(f"return {number + 1}: {seconds[-1]:.1f} s, {peaks[-1]:.0f} attempts in the busiest second")
    yield Measured("api.return_50nodes", seconds)
    yield Measured("api.return_peak_50nodes", peaks)


def _flock(stack: ExitStack, kubeconfig: Path, folder: Path) -> Flock:
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'daemons/src'}:{ROOT / 'tests'}"}
    command = [sys.executable, "-m", "bench.herd", str(kubeconfig), str(folder), str(NODES // PROCESSES)]
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    flock = Flock(child)
    listener = threading.Thread(target=flock.listen)
    listener.start()
    stack.callback(listener.join)
    stack.callback(child.kill)
    return flock


def _wait(flocks: Sequence[Flock], holds: Callable[[int], bool], what: str) -> None:
    wait_until(lambda: holds(sum(flock.connected for flock in flocks)), what, SYNC_S)


def length(returned: Sequence[Sequence[Sample]], each: int) -> float:
    """From the first open watch of any process until the last process has all of its `each`."""
    first = min(sample.at for samples in returned for sample in samples if sample.connected)
    return max(next(sample.at for sample in samples if sample.connected == each) for samples in returned) - first


def peak(returned: Sequence[Sequence[Sample]]) -> float:
    """Most attempts within one second, of all processes together."""
    made = sorted(
        (after.at, after.requests - before.requests)
        for samples in returned
        for before, after in itertools.pairwise(samples)
    )
    busiest, within, first = 0, 0, 0
    for at, count in made:
        within += count
        while made[first][0] <= at - 1.0:
            within -= made[first][1]
            first += 1
        busiest = max(busiest, within)
    return float(busiest)


async def flock(kubeconfig: str, folder: Path, nodes: int) -> None:
    sources = [
        KubernetesSource(kubeconfig, daemon, folder / f"{number}-{which}")
        for number in range(nodes)
        for which, daemon in enumerate(DAEMONS)
    ]

    async def follow(source: KubernetesSource) -> None:
        async for _ in source.watch():
            pass

    async with asyncio.TaskGroup() as group:
        for source in sources:
            group.create_task(follow(source))
        while True:
            reports = [source.report() for source in sources]
            connected = sum(report["connected"] for report in reports)
            requests = sum(report["requests"] for report in reports)
            print(json.dumps({"at": time.monotonic(), "connected": connected, "requests": requests}), flush=True)
            await asyncio.sleep(STEP_S)


AREA = Area(FIGURES, measure)

if __name__ == "__main__":
    asyncio.run(flock(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
