"""What it costs to hear of packets: the observer's processor time for the events that the programs tell.

The kernel's own limit (200 events a second of a device) is lifted here: it is there so that this figure is never
reached.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from bench.figures import Area, Figure, Measured, Settings
from bpf.home import Home
from bpf.populated import HOST_MAC, MAC, A, populated
from lab.shell import wait_until
from netstack.cli.frames import Flow, first_packet
from netstack.core.address import pack
from netstack.core.unit import RUN, ask
from netstack.kernel import layout
from netstack.kernel.bpf import Program

ROOT = Path(__file__).parents[2]
EVENTS = 50_000
"""A round."""
CONTEXT_BYTES = 192
TICKS = os.sysconf("SC_CLK_TCK")

FIGURES = (
    Figure("events.per_second_at_10pct", "1/s", "events that netstack-observer takes in with a tenth of a core"),
)


def measure(wanted: frozenset[str], settings: Settings) -> Iterator[Measured]:
    with tempfile.TemporaryDirectory(prefix="netstack-bench-") as text:
        folder = Path(text)
        with populated(folder / "home") as home:
            observer = _observer(folder, home)
            try:
                samples = [_round(number, observer.pid, home) for number in range(settings.repeats)]
            finally:
                observer.terminate()
                observer.wait()
    yield Measured("events.per_second_at_10pct", samples)


def _observer(folder: Path, home: Home) -> subprocess.Popen[bytes]:
    """The daemon on these tables, with a /run/netstack of its own."""
    config = folder / "observer.yaml"
    config.write_text(yaml.safe_dump({"maps": str(home.pins / "maps")}))
    own = folder / "run"
    own.mkdir()
    script = f'mkdir -p {RUN} && mount --bind {own} {RUN} && exec "$@"'
    argv = [sys.executable, "-m", "netstack.observer", "--config", str(config)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "daemons/src")}
    started = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script, "sh", *argv],
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: (own / "observer.sock").exists(), "the observer", 20)
    return started


def _round(number: int, observer: int, home: Home) -> float:
    """So many events, each of another peer; events for each tenth of a second of the observer's processor time."""
    with home.namespace.entered(), Program.open(home.pins / "progs" / "pod_ingress") as program:
        device = socket.if_nametoindex("veth-a")
        limitless = layout.Budget(time.monotonic_ns() + 10**15, 1 << 31, 0)
        home.put("event_budget", layout.Number(device), limitless)
        context = bytearray(CONTEXT_BYTES)
        context[36:44] = device.to_bytes(4, "little") * 2
        asked = bytes(context)
        before, (told, _) = busy_s(observer), _heard(home)
        for peer in range(EVENTS):
            address = f"203.{number}.{peer >> 8}.{peer & 255}"
            program.test_run(first_packet(Flow(pack(A), pack(address), 80, "TCP"), MAC, HOST_MAC), asked)
        wait_until(lambda: sum(_heard(home)) >= told + EVENTS, "the events", 20)
        return (_heard(home)[0] - told) / (busy_s(observer) - before) / 10


def _heard(home: Home) -> tuple[int, int]:
    """How many events the observer took in so far, and how many of this round found the ring full."""
    status = ask("observer", {"command": "status"}, run=home.pins.parents[2] / "run")
    return int(status["events"]), sum(status["lost"].values())


def busy_s(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


AREA = Area(FIGURES, measure)
