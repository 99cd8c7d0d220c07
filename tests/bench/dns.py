"""What the DNS proxy adds to a question, and how many it answers, beside dnsdist and unbound on the same wires.

    pod (programs, netstack-dns) ─┐
                                  ├─ node ── nsd, 1,000 names with an address each
    pod without a policy ─────────┘   dnsdist and unbound here too, neither with a cache; and a bare loop

The pod with a policy may ask for these names and nothing else, and learns their addresses; every answer waits for the
kernel's table. The other pod asks nsd itself (`direct`), dnsdist, unbound, or a loop in Python that carries messages
and looks at none (`bare`): the limit for sockets in Python. The path through the kernel is the same.
"""

from __future__ import annotations

import contextlib
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.events import busy_s
from bench.figures import Area, Figure, Measured, Settings
from instruments import dns_bare
from instruments.dns_programs import ENDPOINT, SELECTOR, Programs, compiled
from instruments.dns_talk import endpoint, question, rules_text
from instruments.dns_wire import NODE, POD, SERVER, STRANGER, Wire
from instruments.netns import inside
from lab.shell import run, wait_until
from netstack.kernel import layout

NAMES = 1000
ZONE = "bench.test"
DNSDIST, UNBOUND, BARE = 5301, 5302, 5303
"""Ports on the node."""
QUESTIONS = 2000
"""Of a round of one question at a time."""
RATE, RATE_S = 1000, 3.0
LATE_S = 2.0
"""An answer that takes longer does not come."""
CONNECTIONS = 10_000
WEB_PORT = 443

FIGURES = (
    Figure("dns.added_p50", "us", "what a question takes longer than without the proxy, one at a time", target=150),
    Figure("dns.added_p50.dnsdist", "us", "the same through dnsdist"),
    Figure("dns.added_p50.unbound", "us", "the same through unbound, no cache"),
    Figure("dns.added_p50.bare", "us", "the same through a loop in Python that looks at nothing"),
    Figure("dns.added_p99", "us", f"the same at {RATE} questions a second, 1 of 100 takes longer", target=1000),
    Figure("dns.qps", "1/s", "questions answered, 64 under way"),
    Figure("dns.qps.dnsdist", "1/s", "the proxy's questions to dnsdist's", "dnsdist", target=0.7),
    Figure("dns.qps.unbound", "1/s", "the proxy's questions to unbound's, no cache", "unbound", target=1.5),
    Figure("dns.qps.bare", "1/s", "the proxy's questions to those of a loop in Python that looks at nothing", "bare"),
    Figure("dns.cpu_us", "us", "processor time of netstack-dns for a question"),
    Figure(
        "dns.first_connection_retransmits",
        "",
        f"SYNs sent again by {CONNECTIONS} connections, each to an address just learned",
        target=0,
    ),
)


@dataclass(frozen=True, slots=True)
class Way:
    """Where a pod asks."""

    pod: str
    address: str
    port: int


OURS = Way(POD, SERVER, 53)
WAYS = {
    "direct": Way(STRANGER, SERVER, 53),
    "dnsdist": Way(STRANGER, NODE, DNSDIST),
    "unbound": Way(STRANGER, NODE, UNBOUND),
    "bare": Way(STRANGER, NODE, BARE),
    "netstack": OURS,
}


def measure(wanted: frozenset[str], settings: Settings) -> Iterator[Measured]:
    with tempfile.TemporaryDirectory(prefix="netstack-bench-") as text, Site(Path(text)) as site:
        if any(name.startswith("dns.added_p50") for name in wanted):
            yield from _added(site, settings)
        if "dns.added_p99" in wanted:
            rounds = [(site.paced(OURS), site.paced(WAYS["direct"])) for _ in range(settings.repeats)]
            yield Measured("dns.added_p99", [ours - direct for ours, direct in rounds])
        if any(name.startswith("dns.qps") or name == "dns.cpu_us" for name in wanted):
            yield from _throughput(site, settings)
        if "dns.first_connection_retransmits" in wanted:
            yield Measured("dns.first_connection_retransmits", [site.first_connections()])


def _added(site: Site, settings: Settings) -> Iterator[Measured]:
    medians: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(settings.repeats):
        for name in list(WAYS)[:: 1 if number % 2 else -1]:
            medians[name].append(statistics.median(site.one_by_one(WAYS[name], QUESTIONS)))
    for name, samples in medians.items():
        if name == "direct":
            continue
        figure = "dns.added_p50" if name == "netstack" else f"dns.added_p50.{name}"
        yield Measured(figure, [one - base for one, base in zip(samples, medians["direct"], strict=True)])


def _throughput(site: Site, settings: Settings) -> Iterator[Measured]:
    rates: dict[str, list[float]] = {name: [] for name in WAYS}
    costs = []
    for number in range(settings.repeats):
        for name in list(WAYS)[:: 1 if number % 2 else -1]:
            before = busy_s(site.proxy)
            answered, rate = site.flood(WAYS[name], settings.seconds * 3)
            rates[name].append(rate)
            if name == "netstack":
                costs.append(1e6 * (busy_s(site.proxy) - before) / answered)
    yield Measured("dns.qps", rates["netstack"])
    for peer in ("dnsdist", "unbound", "bare"):
        yield Measured(f"dns.qps.{peer}", rates["netstack"], rates[peer])
    yield Measured("dns.cpu_us", costs)


class Site:
    def __init__(self, folder: Path) -> None:
        self._stack = contextlib.ExitStack()
        self._folder = folder
        self.wire = Wire(folder)

    def __enter__(self) -> Site:
        try:
            self._make()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _make(self) -> None:
        wire = self._stack.enter_context(self.wire)
        wire.rules(rules_text(endpoint(ENDPOINT, POD, {SELECTOR: f"*.{ZONE}"})))
        wire.keep_sockets()
        Programs(wire, compiled(self._folder))
        (asks,) = {layout.Endpoint.unpack(value).ifindex for _, value in wire.maps["endpoints"].items()}
        limitless = layout.Budget(time.monotonic_ns() + 10**15, 1 << 31, 0)
        wire.maps["dns_budget"].put(layout.Number(asks).pack(), limitless.pack())
        wire.start()
        assert wire.daemon is not None
        self.proxy = wire.daemon.pid
        self._authority()
        self._spawn(
            wire.node, ["dnsdist", "--supervised", "--disable-syslog", "-C", self._write("dnsdist", DNSDIST_CONF)]
        )
        self._spawn(
            wire.node, ["unbound", "-d", "-c", self._write("unbound", UNBOUND_CONF.format(folder=self._folder))]
        )
        self._spawn(wire.node, [sys.executable, dns_bare.__file__, NODE, str(BARE), SERVER])
        for way in WAYS.values():
            wait_until(lambda way=way: self._answers(way), f"{way.address}:{way.port}", 20)  # type: ignore[misc]

    def _write(self, name: str, text: str) -> str:
        path = self._folder / f"{name}.conf"
        path.write_text(text)
        return str(path)

    def _authority(self) -> None:
        names = "".join(f"n{number} A {address(number)}\n" for number in range(NAMES))
        zone = f"$ORIGIN {ZONE}.\n$TTL 60\n@ SOA ns root 1 60 60 60 60\n@ NS ns\nns A {SERVER}\n{names}"
        self._write("zone", zone)
        self._spawn(self.wire.server_ns, ["nsd", "-d", "-c", self._write("nsd", NSD_CONF.format(folder=self._folder))])
        run(["ip", "-n", self.wire.server_ns, "route", "add", "local", "203.30.0.0/16", "dev", "lo"])

    def _spawn(self, netns: str, argv: Sequence[str]) -> None:
        command = ["nsenter", f"--net=/run/netns/{netns}", *argv]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)

    def _answers(self, way: Way) -> bool:
        try:
            return len(self.one_by_one(way, 1, timeout_s=0.5)) == 1
        except OSError:
            return False

    # ---- loads ----

    def one_by_one(self, way: Way, count: int, timeout_s: float = 2.0) -> list[float]:
        """Microseconds of each question, asked when the one before was answered."""
        questions = [question(f"n{number % NAMES}.{ZONE}") for number in range(min(count, NAMES))]
        found = []
        with self.wire.pod_socket(pod=way.pod) as sock:
            sock.settimeout(timeout_s)
            sock.connect((way.address, way.port))
            for number in range(count):
                began = time.perf_counter()
                sock.send(questions[number % len(questions)])
                sock.recv(4096)
                found.append(1e6 * (time.perf_counter() - began))
        return found

    def paced(self, way: Way) -> float:
        """Microseconds that 99 of 100 questions stay below, RATE of them a second, whatever is still under way."""
        questions = [question(f"n{number}.{ZONE}", ident=number) for number in range(NAMES)]
        sent: dict[int, float] = {}
        found = []
        with self.wire.pod_socket(pod=way.pod) as sock:
            sock.connect((way.address, way.port))
            began, asked, total = time.perf_counter(), 0, int(RATE * RATE_S)
            while len(found) < total:
                due = began + asked / RATE - time.perf_counter() if asked < total else LATE_S
                if due <= 0:
                    sent[asked % NAMES] = time.perf_counter()
                    sock.send(questions[asked % NAMES])
                    asked += 1
                    continue
                sock.settimeout(due)
                try:
                    ident = int.from_bytes(sock.recv(4096)[:2])
                except TimeoutError:
                    if asked == total:
                        break
                else:
                    found.append(1e6 * (time.perf_counter() - sent.pop(ident)))
        return statistics.quantiles([*found, *[LATE_S * 1e6] * (total - len(found))], n=100)[98]

    def flood(self, way: Way, seconds: float, zone: str = ZONE) -> tuple[int, float]:
        """(questions answered, how many a second), 64 under way (dnsperf). Names of another zone are refused."""
        queries = self._folder / "queries"
        queries.write_text("".join(f"n{number}.{zone} A\n" for number in range(NAMES)))
        argv = ["dnsperf", "-s", way.address, "-p", str(way.port), "-d", str(queries), "-q", "64", "-c", "4"]
        said = self.wire.nsenter(self.wire.pods[way.pod], *argv, "-l", f"{seconds:g}").stdout
        completed, rate = (
            re.search(r"Queries completed:\s+(\d+)", said),
            re.search(r"Queries per second:\s+([\d.]+)", said),
        )
        assert completed is not None and rate is not None, said
        return int(completed[1]), float(rate[1])

    def first_connections(self) -> int:
        """SYNs that had to be sent again: of connections that follow each an answer at once."""
        with inside(self.wire.server_ns):
            web = socket.create_server(("0.0.0.0", WEB_PORT), backlog=4096)
        before = self._retransmitted()
        with web, self.wire.pod_socket() as asking:
            asking.connect((SERVER, 53))
            for number in range(CONNECTIONS):
                asking.send(question(f"n{number % NAMES}.{ZONE}"))
                asking.recv(4096)
                with self.wire.pod_socket(socket.SOCK_STREAM) as sock:
                    sock.connect((address(number % NAMES), WEB_PORT))
                web.accept()[0].close()
        return self._retransmitted() - before

    def _retransmitted(self) -> int:
        text = self.wire.nsenter(self.wire.pods[POD], "cat", "/proc/net/snmp").stdout
        names, values = (line.split() for line in text.splitlines() if line.startswith("Tcp:"))
        return int(dict(zip(names, values, strict=True))["RetransSegs"])


def address(number: int) -> str:
    """Of a name: of the benchmark's, all at the server, and none of the LAN's, which a name does not open."""
    return f"203.30.{number >> 8}.{number & 255}"


NSD_CONF = """
server:
    ip-address: 10.96.0.10
    username: ""
    zonesdir: "{folder}"
    pidfile: "{folder}/nsd.pid"
    database: ""
    xfrdfile: "{folder}/xfrd.state"
    zonelistfile: "{folder}/zone.list"
    server-count: 1
    rrl-ratelimit: 0
remote-control:
    control-enable: no
zone:
    name: bench.test
    zonefile: zone.conf
"""
DNSDIST_CONF = f"""
setLocal("{NODE}:{DNSDIST}")
addACL("0.0.0.0/0")
newServer({{address="{SERVER}:53", healthCheckMode="up"}})
"""
UNBOUND_CONF = f"""
server:
    interface: {NODE}
    port: {UNBOUND}
    access-control: 0.0.0.0/0 allow
    username: ""
    chroot: ""
    directory: "{{folder}}"
    pidfile: "{{folder}}/unbound.pid"
    use-syslog: no
    num-threads: 1
    module-config: "iterator"
    msg-cache-size: 0
    rrset-cache-size: 0
    do-not-query-localhost: no
    local-zone: "test." nodefault
remote-control:
    control-enable: no
forward-zone:
    name: "."
    forward-addr: {SERVER}
    forward-no-cache: yes
"""
AREA = Area(FIGURES, measure)
