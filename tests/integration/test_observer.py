"""netstack-observer on real tables: what the programs tell reaches who asks, also when it was down meanwhile."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from bpf.home import Home
from bpf.populated import HOST_MAC, MAC, A, populated
from lab.shell import wait_until
from netstack.cli.frames import Flow, first_packet
from netstack.core.address import pack
from netstack.core.unit import RUN, ask, listen
from netstack.kernel.bpf import Program

pytestmark = pytest.mark.root
ROOT = Path(__file__).parents[2]


class Observer:
    """The daemon, with a /run/netstack of its own, and a pod that it watches."""

    def __init__(self, folder: Path, home: Home) -> None:
        self.home, self.run, self._folder = home, folder / "run", folder
        self.run.mkdir()
        (folder / "observer.yaml").write_text(yaml.safe_dump({"maps": str(home.pins / "maps")}))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        script = f'mkdir -p {RUN} && mount --bind {self.run} {RUN} && exec "$@"'
        argv = [sys.executable, "-m", "netstack.observer", "--config", str(self._folder / "observer.yaml")]
        self.process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script, "sh", *argv],
            env={**os.environ, "PYTHONPATH": str(ROOT / "daemons/src")},
        )
        wait_until(self._answers, "the observer", 20)

    def _answers(self) -> bool:
        try:
            return bool(self.status())
        except OSError:
            return False

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def status(self) -> dict[str, Any]:
        return dict(ask("observer", {"command": "status"}, run=self.run))

    def connect(self, *ports: int) -> None:
        """First packets of the pod, each to another port of the world."""
        with self.home.namespace.entered(), Program.open(self.home.pins / "progs" / "pod_ingress") as program:
            device = socket.if_nametoindex("veth-a").to_bytes(4, "little")
            context = bytes(36) + device * 2 + bytes(148)
            for port in ports:
                flow = Flow(pack(A), pack("192.0.2.1"), port, "TCP")
                program.test_run(first_packet(flow, MAC, HOST_MAC), context)

    def seen(self, **filter_: Any) -> list[tuple[int, str]]:
        request = {"command": "flows", "last": 1000, "filter": {"ip": ["192.0.2.1"]} | filter_}
        answers = listen("observer", request, run=self.run, timeout_s=10)
        return [(flow["destination"]["port"], flow["verdict"]) for flow in answers]


@pytest.fixture
def observer(tmp_path: Path) -> Iterator[Observer]:
    with populated(tmp_path / "home") as home:
        made = Observer(tmp_path, home)
        try:
            made.start()
            yield made
        finally:
            made.kill()


def test_what_was_is_told_to_who_asks_and_what_comes_to_who_follows(observer: Observer) -> None:
    observer.connect(443, 80)
    wait_until(lambda: len(observer.seen()) == 2, "the events", 10)
    assert observer.seen() == [(443, "FORWARDED"), (80, "DEFAULT_DENY")]
    assert observer.seen(verdict=["dropped"]) == [(80, "DEFAULT_DENY")]
    request = {"command": "flows", "follow": True, "last": 1, "filter": {"ip": ["192.0.2.1"]}}
    with closing(listen("observer", request, run=observer.run, timeout_s=10)) as flows:
        assert next(flows)["destination"]["port"] == 80
        observer.connect(81)
        assert next(flows)["destination"]["port"] == 81


def test_killed_and_started_again_it_tells_what_happened_meanwhile(observer: Observer) -> None:
    observer.connect(1)
    wait_until(lambda: observer.seen() == [(1, "DEFAULT_DENY")], "the first", 10)
    observer.kill()
    observer.connect(2, 3)
    observer.start()
    wait_until(lambda: [port for port, _ in observer.seen()] == [2, 3], "the others", 10)


def test_without_the_agent_numbers_have_no_names_and_it_says_so(observer: Observer) -> None:
    observer.connect(1)
    wait_until(lambda: len(observer.seen()) == 1, "the event", 10)
    (flow,) = listen("observer", {"command": "flows", "filter": {"port": [1]}}, run=observer.run, timeout_s=10)
    assert (flow["endpoint"], flow["pod"], flow["source"]["address"]) == (11, "", A)
    assert "the agent does not say who is who" in observer.status()["broken"][0]


def test_a_wrong_filter_is_refused_in_words(observer: Observer) -> None:
    with pytest.raises(RuntimeError, match="filter pods: unknown; known are"):
        observer.seen(pods=["x"])
