"""Two pods, a node with netstack-dns, and a DNS server, each in a network namespace, on real sockets.

        pod 10.244.1.5 ─┐
                        ├─ node 192.168.86.21 ── server 192.168.86.1, also 10.96.0.10
    stranger 10.244.1.6 ┘

Sockets stay in the namespace in which they were made, so pods and server are plain objects of the test's process.
The kernel program's part, handing port 53 to the proxy, is played by nft's tproxy; rule and table are the product's.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import dnslib

from instruments.dns_talk import answer_to, question
from instruments.netns import inside
from lab.shell import run, wait_until
from netstack.core.address import pack
from netstack.core.files import write_atomic
from netstack.core.unit import ask
from netstack.dns import sockets
from netstack.kernel.bpf import Map, MapDefinition
from netstack.kernel.layout import MAPS, Fqdn, FqdnKey

POD, STRANGER, NODE, SERVER, ROUTER = "10.244.1.5", "10.244.1.6", "192.168.86.21", "10.96.0.10", "192.168.86.1"
ROOT = Path(__file__).parents[2]

TPROXY = """
table ip dns {
    chain pods {
        type filter hook prerouting priority mangle;
        iifname "pod*" meta l4proto { tcp, udp } th dport { 53, 8053 } goto proxy
    }
    chain proxy {
        meta l4proto { tcp, udp } tproxy to 169.254.1.53:53 meta mark set 0x53000000 accept
        drop
    }
}
"""


@dataclass
class Server:
    """A DNS server that answers from `zone` (name in lower case -> records in master file form; absent: NXDOMAIN)."""

    netns: str
    address: str = SERVER
    port: int = 53
    zone: dict[str, tuple[str, ...]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    """(transport, name) of every question that arrived."""
    silent: bool = False
    """Questions are taken and kept, until `speak`."""
    kept: list[tuple[bytes, Any]] = field(default_factory=list)
    """(question, who asked) of each that waits (UDP)."""
    replies: dict[str, Callable[[bytes], bytes]] = field(default_factory=dict)
    """Name -> what makes the whole answer of the question, in place of records of `zone`."""

    def speak(self) -> None:
        """Answer what is kept (UDP), and everything from now on."""
        self.silent = False
        while self.kept:
            payload, sender = self.kept.pop(0)
            self._udp.sendto(self._answer(payload), sender)

    def __enter__(self) -> Self:
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        with inside(self.netns):
            self._udp = socket.socket(family, socket.SOCK_DGRAM)
            self._udp.bind((self.address, self.port))
            self._tcp = socket.create_server((self.address, self.port), family=family)
        self._wake, self._sleep = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="dns server")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._wake.close()
        self._thread.join()
        for sock in (self._udp, self._tcp, self._sleep):
            sock.close()

    def _serve(self) -> None:
        while True:
            ready, _, _ = select.select([self._udp, self._tcp, self._sleep], [], [])
            if self._sleep in ready:
                return
            if self._udp in ready:
                payload, sender = self._udp.recvfrom(65535)
                self.kept.append((payload, sender))
                self._note("udp", payload)
                if not self.silent:
                    self.speak()
            if self._tcp in ready:
                connection, _ = self._tcp.accept()
                with connection, contextlib.suppress(EOFError, OSError):
                    connection.settimeout(2)
                    payload = receive_framed(connection)
                    self._note("tcp", payload)
                    connection.sendall(framed(self._answer(payload)))
                    connection.recv(1)  # as real servers do, it lets the asker close first

    def _note(self, transport: str, payload: bytes) -> None:
        self.asked.append((transport, _name(payload)))

    def _answer(self, payload: bytes) -> bytes:
        if (made := self.replies.get(_name(payload))) is not None:
            return made(payload)
        records = self.zone.get(_name(payload))
        return answer_to(payload, *(records or ()), rcode=0 if records is not None else 3)


def _name(payload: bytes) -> str:
    return str(dnslib.DNSRecord.parse(payload).q.qname).lower().removesuffix(".")


def framed(payload: bytes) -> bytes:
    return len(payload).to_bytes(2) + payload


def receive_framed(sock: socket.socket) -> bytes:
    def exactly(count: int) -> bytes:
        data = b""
        while len(data) < count:
            if not (more := sock.recv(count - len(data))):
                raise EOFError
            data += more
        return data

    return exactly(int.from_bytes(exactly(2)))


class Wire:
    """The namespaces, the tables under a bpffs of their own, and the daemon."""

    def __init__(self, folder: Path) -> None:
        self.prefix = f"dns{os.getpid()}"
        self.folder = folder
        self.node, self.server_ns = f"{self.prefix}-node", f"{self.prefix}-server"
        self.pods = {POD: f"{self.prefix}-pod5", STRANGER: f"{self.prefix}-pod6"}
        self.maps: dict[str, Map] = {}
        self.daemon: subprocess.Popen[bytes] | None = None
        self.listeners: list[socket.socket] = []

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _build(self) -> None:
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notified.bind(str(self.folder / "notify"))
        for netns in (self.node, self.server_ns, *self.pods.values()):
            run(["ip", "netns", "add", netns])
            run(["ip", "-n", netns, "link", "set", "lo", "up"])
        self._ip(self.node, f"link add eth0 type veth peer name eth0 netns {self.server_ns}")
        self._ip(self.node, f"addr add {NODE}/24 dev eth0", "link set eth0 up", f"route add default via {ROUTER}")
        self._ip(self.server_ns, f"addr add {ROUTER}/24 dev eth0", f"addr add {SERVER}/32 dev lo", "link set eth0 up")
        self._ip(self.server_ns, f"route add 10.244.0.0/16 via {NODE}")
        for number, (address, netns) in enumerate(self.pods.items(), 5):
            self._ip(self.node, f"link add pod{number} type veth peer name eth0 netns {netns}")
            self._ip(self.node, f"link set pod{number} up", f"route add {address}/32 dev pod{number}")
            self._ip(netns, f"addr add {address}/32 dev eth0", "link set eth0 up")
            self._ip(netns, "route add 169.254.1.1 dev eth0", "route add default via 169.254.1.1")
            self.nsenter(self.node, "sysctl", "-q", f"net.ipv4.conf.pod{number}.proxy_arp=1")
        self.nsenter(self.node, "sysctl", "-q", "net.ipv4.ip_forward=1")
        self._ip(self.node, "rule add fwmark 0x53000000/0xff000000 lookup 1053")
        self._ip(self.node, "route add local default dev lo table 1053")
        bpffs = self.folder / "bpf"
        bpffs.mkdir()
        run(["mount", "-t", "bpf", "bpf", str(bpffs)])
        for name in ("fqdn", "fqdn_use", "identities", "heard"):
            self.make_map(name, MAPS[name].entries)

    def redirect(self) -> None:
        """From now on port 53 of the pods goes to the proxy or nowhere."""
        run(["nsenter", f"--net=/run/netns/{self.node}", "nft", "-f", "-"], stdin=TPROXY)

    def make_map(self, name: str, entries: int) -> None:
        """(Re)place a pinned table by an empty one of this size."""
        spec = MAPS[name]
        path = self.folder / "bpf" / name
        path.unlink(missing_ok=True)
        definition = MapDefinition(spec.kind, spec.key.size(), spec.value.size(), entries, spec.flags)
        self.maps[name] = Map.create(name, definition)
        self.maps[name].pin(path)

    def __exit__(self, *_: object) -> None:
        self.stop()
        for sock in (*self.listeners, self._notified):
            sock.close()
        for table in self.maps.values():
            table.close()
        run(["umount", str(self.folder / "bpf")], check=False)
        for netns in (self.node, self.server_ns, *self.pods.values()):
            run(["ip", "netns", "del", netns], check=False)

    def _ip(self, netns: str, *commands: str) -> None:
        for command in commands:
            run(["ip", "-n", netns, *command.split()])

    def nsenter(self, netns: str, *command: str) -> subprocess.CompletedProcess[str]:
        return run(["nsenter", f"--net=/run/netns/{netns}", *command])

    # ---- the daemon ----

    def rules(self, text: str) -> None:
        write_atomic(self.folder / "dns-rules.json", text)

    def keep_sockets(self) -> None:
        """What netstack-dns.socket does: the listeners outlive the daemon."""
        with inside(self.node):
            self.listeners = sockets.opened("169.254.1.53")

    def start(self, **settings: Any) -> None:
        """The daemon as systemd starts it (sockets handed over, if they are kept), with a /run/netstack of its own."""
        chosen = {"rules": str(self.folder / "dns-rules.json"), "state": str(self.folder / "state")}
        chosen |= {"maps": str(self.folder / "bpf"), **settings}
        (self.folder / "dns.yaml").write_text(json.dumps(chosen))
        Path("/run/netstack").mkdir(exist_ok=True)
        handover = "".join(f"exec {3 + i}<&{sock.fileno()}; " for i, sock in enumerate(self.listeners))
        if self.listeners:
            handover += f"export LISTEN_PID=$$ LISTEN_FDS={len(self.listeners)}; "
        script = (
            f"set -e; mount --bind {self._run()} /run/netstack; {handover}"
            f"exec {sys.executable} -m netstack.dns --config {self.folder / 'dns.yaml'}"
        )
        with (self.folder / "log").open("ab") as log:
            self.daemon = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self.node}", "unshare", "--mount", "bash", "-c", script],
                pass_fds=[sock.fileno() for sock in self.listeners],
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT / "daemons/src"),
                    "NOTIFY_SOCKET": str(self.folder / "notify"),
                },
                stderr=log,
            )
        self.await_notice("READY=1")

    def await_notice(self, words: str, timeout_s: float = 10.0) -> None:
        """Until the daemon tells its service manager these words; RuntimeError with its log if it ends."""
        assert self.daemon is not None
        deadline = time.monotonic() + timeout_s
        self._notified.settimeout(0.1)
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                if words in self._notified.recv(4096).decode():
                    return
            if self.daemon.poll() is not None:
                self.daemon = None
                raise RuntimeError(f"netstack-dns ended:\n{self.log()}")
        raise TimeoutError(f"netstack-dns did not say {words!r}:\n{self.log()}")

    def _run(self) -> Path:
        folder = self.folder / "run"
        folder.mkdir(exist_ok=True)
        return folder

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def ask(self, command: str) -> Any:
        return ask("dns", {"command": command}, run=self._run())

    def kill(self) -> None:
        """kill -9."""
        assert self.daemon is not None
        self.daemon.kill()
        self.daemon.wait()
        self.daemon = None

    def stop(self) -> None:
        """As systemd stops it; the exit code must be 0."""
        if self.daemon is not None:
            self.daemon.terminate()
            code = self.daemon.wait(10)
            self.daemon = None
            if code:
                raise RuntimeError(f"netstack-dns ended with {code}:\n{self.log()}")

    # ---- pods ----

    def pod_socket(self, kind: socket.SocketKind = socket.SOCK_DGRAM, pod: str = POD) -> socket.socket:
        with inside(self.pods[pod]):
            sock = socket.socket(socket.AF_INET, kind)
        sock.settimeout(5)
        return sock

    def look_up(self, name: str, kind: str = "A", *, pod: str = POD, timeout_s: float = 5.0) -> dnslib.DNSRecord:
        """One question by UDP to the cluster's DNS. The answer has to come from the address and port asked: the socket
        is connected. TimeoutError if there is none."""
        with self.pod_socket(pod=pod) as sock:
            sock.settimeout(timeout_s)
            sock.connect((SERVER, 53))
            sock.send(question(name, kind))
            return dnslib.DNSRecord.parse(sock.recv(65535))

    def look_up_by_tcp(self, *names: str, pod: str = POD) -> list[dnslib.DNSRecord]:
        """All questions at once on one connection; the answers as they come."""
        with self.pod_socket(socket.SOCK_STREAM, pod) as sock:
            sock.connect((SERVER, 53))
            sock.sendall(b"".join(framed(question(name, ident=1000 + i)) for i, name in enumerate(names)))
            return [dnslib.DNSRecord.parse(receive_framed(sock)) for _ in names]

    def learned(self, endpoint: int, address: str) -> dict[int, int]:
        """What the kernel's table says: selector -> expiry, in seconds of the monotonic clock."""
        value = self.maps["fqdn"].get(FqdnKey(endpoint, pack(address)).pack())
        return {} if value is None else Fqdn.read(value)


def counted(wire: Wire, reason: str) -> int:
    return int(wire.ask("status")["counters"].get(reason, 0))


def eventually(condition: Callable[[], bool], what: str) -> None:
    wait_until(condition, what, timeout_s=5)
