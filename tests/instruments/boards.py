"""Boards: nodes as namespaces on a bridge, with the real programs and the real announcer processes. Needs root.

Each board is a process that holds a network and a mount namespace: its own bpffs, its own /run. The bridge's address
plays the gateway; `Asker` is a LAN client that asks for an address hundreds of times a second and writes down who
answered when.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from instruments.netns import inside
from lab import image
from netstack.announcer.frames import REPLY, arp_request, decode_arp
from netstack.core.address import pack
from netstack.core.unit import ask
from netstack.kernel.bpf import Map
from netstack.kernel.layout import Vip, VipKey

ROOT = Path(__file__).parents[2]
GATEWAY, CLIENT = "192.168.86.1", "192.168.86.50"
_NUMBERS = itertools.count(1)


def run(*words: str) -> str:
    """CalledProcessError prints what the command said."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise AssertionError(f"{' '.join(words)}: exit {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def until(condition: Callable[[], Any], within_s: float = 10.0, what: str = "") -> Any:
    """The first true value of `condition`, asked every 20 ms; AssertionError after `within_s`."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {within_s} s: {what or condition}"
        time.sleep(0.02)
    return value


class Board:
    """One node. `start` begins its announcer; the programs stay attached whatever happens to it."""

    def __init__(self, lan: BoardLan, name: str, number: int) -> None:
        self.lan, self.name, self.port = lan, name, f"p-{name}"
        self.address = f"192.168.86.{20 + number}"
        self.mac = bytes([2, 0, 0, 0, 86, 20 + number])
        self.folder = lan.folder / name
        (self.folder / "status").mkdir(parents=True)  # as the unit's StateDirectory
        self.process: subprocess.Popen[bytes] | None = None
        self.holder = subprocess.Popen(["unshare", "--net", "--mount", "sleep", "infinity"])
        until(lambda: self._ns("net") != os.readlink("/proc/self/ns/net"), what="namespaces")
        until(lambda: self._ns("mnt") != os.readlink("/proc/self/ns/mnt"), what="namespaces")
        until(lambda: Path(f"/proc/{self.holder.pid}/comm").read_text().strip() == "sleep", what="sleep")
        peer = ("peer", "name", "eth0", "address", self.mac.hex(":"), "netns", str(self.holder.pid))
        lan.ip("link", "add", self.port, "type", "veth", *peer)
        lan.ip("link", "set", self.port, "master", "br0", "up")
        self.enter("ip", "link", "set", "lo", "up")
        self.enter("ip", "link", "set", "eth0", "up")
        self.enter("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.enter("mount", "-t", "tmpfs", "tmpfs", "/run")
        self.enter("mount", "-t", "bpf", "bpf", "/sys/fs/bpf")

    def _ns(self, kind: str) -> str:
        return os.readlink(f"/proc/{self.holder.pid}/ns/{kind}")

    def words(self, *words: str) -> list[str]:
        return ["nsenter", "-t", str(self.holder.pid), "-n", "-m", *words]

    def enter(self, *words: str) -> str:
        return run(*self.words(*words))

    def python(self, *words: str) -> list[str]:
        return self.words("env", f"PYTHONPATH={ROOT / 'daemons/src'}", sys.executable, *words)

    def load_programs(self, cgroup: Path) -> None:
        """What netstack-loader.service does at boot. `cgroup`: where its socket programs may go in a test."""
        config = self.folder / "agent.yaml"
        cache = image.cache() / "programs"
        datapath = {"uplink": "eth0", "bpf_source": str(ROOT / "files/bpf"), "cache": str(cache), "cgroup": str(cgroup)}
        config.write_text(yaml.safe_dump({"datapath": datapath | {"sizes": {"slots": 4096}}}))
        run(*self.python("-c", "from netstack.kernel.loader import main; main()", "--config", str(config)))

    def start(self, **settings: Any) -> None:
        config = self.folder / "announcer.yaml"
        peers = {board.name: board.address for board in self.lan.boards.values() if board is not self}
        values = {
            "node": self.name, "node_address": self.address, "peers": peers, "gateway": GATEWAY,
            "key_file": str(self.lan.key), "manifests": str(self.lan.manifests),
            "status": str(self.folder / "status"), "state": str(self.folder / "state"),
        }  # fmt: skip
        config.write_text(yaml.safe_dump(values | settings))
        log = open(self.folder / "log", "ab")  # noqa: SIM115 - the process keeps it
        words = self.python("-m", "netstack.announcer", "--config", str(config))
        self.process = subprocess.Popen(["nice", "-n", "-10", *words], stderr=log)  # as its unit does
        log.close()

    @property
    def running(self) -> subprocess.Popen[bytes]:
        assert self.process is not None
        return self.process

    def signal(self, number: signal.Signals) -> None:
        self.running.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.running.wait()

    def status(self) -> dict[str, Any]:
        """The control socket's answer. OSError if no announcer listens."""
        answer: dict[str, Any] = ask(
            "announcer", {"command": "status"}, run=Path(f"/proc/{self.holder.pid}/root/run/netstack")
        )
        return answer

    def hears_all(self) -> bool:
        """Whether the announcer runs, hears every other and none of them has only just started."""
        try:
            peers = self.status()["interfaces"][0]["peers"].values()
        except OSError:
            return False
        return all(peer["heard_s"] is not None and "LISTENING" not in peer["flags"] for peer in peers)

    def deadline(self, address: str) -> float:
        """Until when this node's program answers for the address, in time.monotonic() seconds; 0 if it does not."""
        vips = Map.open(f"/proc/{self.holder.pid}/root/sys/fs/bpf/netstack/maps/vips")
        try:
            (vip,) = (Vip.unpack(value) for key, value in vips.items() if VipKey.unpack(key).address == pack(address))
            return vip.deadline / 1e9
        finally:
            vips.close()

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.holder.kill()
        self.holder.wait()


class BoardLan:
    """`count` boards, a client and a gateway on one bridge."""

    def __init__(self, folder: Path, count: int = 3) -> None:
        self.folder = folder
        self.netns = f"nstann{os.getpid()}-{next(_NUMBERS)}"
        self.manifests = folder / "manifests"
        self.manifests.mkdir()
        self.key = folder / "key"
        self.key.write_text("a key of the test's own\n")
        self.boards: dict[str, Board] = {}
        run("ip", "netns", "add", self.netns)
        try:
            self.ip("link", "add", "br0", "type", "bridge", "forward_delay", "0")
            self.ip("address", "add", f"{GATEWAY}/24", "dev", "br0")
            self.ip("link", "set", "br0", "up")
            self.boards = {f"n{i}": Board(self, f"n{i}", i) for i in range(1, count + 1)}
            self.client = f"{self.netns}c"
            run("ip", "netns", "add", self.client)
            self.ip("link", "add", "p-client", "type", "veth", "peer", "name", "eth0", "netns", self.client)
            self.ip("link", "set", "p-client", "master", "br0", "up")
            run("ip", "-n", self.client, "link", "set", "eth0", "up")
            run("ip", "-n", self.client, "address", "add", f"{CLIENT}/24", "dev", "eth0")
        except BaseException:
            self.close()
            raise

    def ip(self, *words: str) -> str:
        return run("ip", "-n", self.netns, *words)

    def cable(self, name: str, plugged: bool) -> None:
        self.ip("link", "set", self.boards[name].port, "up" if plugged else "down")

    def client_neighbour(self, address: str) -> bytes:
        """The MAC that the client's kernel has for `address`; empty if none."""
        entries = json.loads(run("ip", "-j", "-n", self.client, "neigh", "show", address))
        return bytes.fromhex(entries[0]["lladdr"].replace(":", "")) if entries and "lladdr" in entries[0] else b""

    def close(self) -> None:
        for board in self.boards.values():
            board.close()
        for name in (self.netns, f"{self.netns}c"):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


class Asker:
    """A client that asks who has `address` every 2 ms while the block runs."""

    def __init__(self, lan: BoardLan, address: str) -> None:
        self.answers: list[tuple[float, bytes]] = []
        self.asked: list[float] = []
        self._address = pack(address)
        with inside(lan.client):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
            self._socket.bind(("eth0", 0x0806))
        self._socket.settimeout(0.002)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Asker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()

    def _ask(self) -> None:
        mac = self._socket.getsockname()[4]
        question = arp_request(pack(CLIENT), mac, self._address)
        while not self._stop.is_set():
            self._socket.send(question)
            self.asked.append(time.monotonic())
            ends = self.asked[-1] + 0.002
            while (left := ends - time.monotonic()) > 0:
                self._socket.settimeout(left)
                try:
                    arp = decode_arp(self._socket.recv(2048))
                except TimeoutError:
                    break
                if arp.operation == REPLY and arp.sender == self._address and not arp.gratuitous:
                    self.answers.append((time.monotonic(), arp.sender_mac))

    def last(self) -> bytes:
        return self.answers[-1][1] if self.answers else b""

    def wait_for_other(self, mac: bytes, within_s: float = 5.0) -> bytes:
        """The first MAC that answers and is not `mac`."""
        known = len(self.answers)
        found: bytes = until(
            lambda: next((who for _, who in self.answers[known:] if who != mac), b""), within_s, "another node answers"
        )
        return found

    def gap(self) -> float:
        """Longest time between two answers, seconds."""
        times = [time for time, _ in self.answers]
        return max((b - a for a, b in itertools.pairwise(times)), default=float("inf"))

    def changes(self) -> list[bytes]:
        """Who answered, in order, without repetitions."""
        return [mac for mac, _ in itertools.groupby(who for _, who in self.answers)]
