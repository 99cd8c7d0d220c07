"""Hostile pods, servers and bystanders against the real programs and the real proxy: what they gain is looked at.

`pod` may reach 443/TCP of the addresses of one name, and ask for some more; the stranger may ask for other names. The
server's host is also the web server of every address below, so whatever passes the programs connects.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dnslib
import pytest

from instruments.dns_programs import ENDPOINT, OTHER_ENDPOINT, SELECTOR, Programs, compiled
from instruments.dns_talk import answer_to, endpoint, question, rules_text
from instruments.dns_wire import (
    NODE,
    POD,
    ROUTER,
    SERVER,
    STRANGER,
    Server,
    Wire,
    counted,
    eventually,
    framed,
    receive_framed,
)
from instruments.netns import inside
from lab.shell import run
from netstack.core.address import pack
from netstack.core.verdict import Verdict
from netstack.dns.session import MAX_FOREIGN
from netstack.dns.settings import DnsSettings
from netstack.kernel.layout import DNS_BURST, DNS_RATE, FqdnKey
from netstack.kernel.programs import Compiled

pytestmark = pytest.mark.root

API, OWN = "api.anthropic.com", "own.x.io"
WEB, FORGED, HINTED, DOH = "203.0.113.10", "203.0.113.66", "203.0.113.11", "203.0.113.53"
LOOK_UP_S = 2.0
"""A resolver's patience: time-out 2 s, tries 1."""
AT_ONCE = DnsSettings().max_in_flight_per_pod


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return compiled(tmp_path_factory.mktemp("programs"))


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    with Wire(tmp_path) as made:
        other = endpoint(OTHER_ENDPOINT, STRANGER, {SELECTOR: OWN}, queries=("*.flood.example",))
        made.rules(rules_text(endpoint(ENDPOINT, POD, {SELECTOR: API}, queries=("*.x.io",)), other))
        made.keep_sockets()
        yield made


@pytest.fixture
def programs(wire: Wire, built: Compiled) -> Programs:
    return Programs(wire, built, both=True)


@pytest.fixture
def server(wire: Wire, programs: Programs) -> Iterator[Server]:
    for address in (WEB, FORGED, HINTED, DOH):
        run(["ip", "-n", wire.server_ns, "addr", "add", f"{address}/32", "dev", "lo"])
    with inside(wire.server_ns):
        web = socket.create_server(("0.0.0.0", 443))
    zone = {API: (f"{API}. 30 A {WEB}",), OWN: (f"{OWN}. 30 A {WEB}",)}
    with web, Server(wire.server_ns, zone=zone) as made:
        yield made


def reaches(wire: Wire, address: str, port: int = 443, pod: str = POD) -> bool:
    with wire.pod_socket(socket.SOCK_STREAM, pod) as sock:
        sock.settimeout(0.5)
        try:
            sock.connect((address, port))
        except TimeoutError:
            return False
        return True


def opened(wire: Wire) -> set[tuple[int, bytes]]:
    """(endpoint, address) of all that the kernel's table holds."""
    keys = [FqdnKey.unpack(key) for key, _ in wire.maps["fqdn"].items()]
    return {(key.endpoint, key.address) for key in keys}


def memory_mb(wire: Wire) -> float:
    """Of the daemon."""
    assert wire.daemon is not None
    lines = Path(f"/proc/{wire.daemon.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


@contextlib.contextmanager
def beside(netns: str, script: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own, whose turns nobody else takes, in a namespace: it must still run at the end."""
    argv = ["nsenter", f"--net=/run/netns/{netns}", sys.executable, "-c", script, *arguments]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        try:
            yield process
            assert process.poll() is None
        finally:
            process.kill()


# ---- from outside ----

FORGER = """
import random, signal, socket, struct, sys, time
source, target, answer, rate = sys.argv[1], sys.argv[2], bytes.fromhex(sys.argv[3]), int(sys.argv[4])
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
raw.bind((source, 0))
began, sent = time.monotonic(), 0
signal.signal(signal.SIGUSR1, lambda *_: print(sent, time.monotonic() - began, flush=True))
print("begun", flush=True)
while True:
    if sent > rate * (time.monotonic() - began):
        time.sleep(0.001)
        continue
    header = struct.pack("!HHHH", 53, random.randrange(32768, 61000), 8 + len(answer), 0)
    raw.sendto(header + random.randbytes(2) + answer[2:], (target, 0))
    sent += 1
"""


def udp_arrived(wire: Wire) -> int:
    """Datagrams that the node has had for itself: read, for a port that is not open, or for a full socket."""
    lines = wire.nsenter(wire.node, "cat", "/proc/net/snmp").stdout.splitlines()
    names, values = (line.split() for line in lines if line.startswith("Udp:"))
    counters = dict(zip(names, values, strict=True))
    return sum(int(counters[name]) for name in ("InDatagrams", "NoPorts", "InErrors"))


def test_ten_thousand_forged_answers_a_second_change_none(wire: Wire, server: Server) -> None:
    """Whoever cannot see the questions has to guess port and id of one that waits."""
    wire.start()
    forged = answer_to(question(API), f"{API}. 30 A {FORGED}")
    server.silent = True
    with contextlib.ExitStack() as stack:
        asking = [stack.enter_context(wire.pod_socket()) for _ in range(20)]
        before = udp_arrived(wire)
        with beside(wire.server_ns, FORGER, SERVER, NODE, forged.hex(), "10000") as forger:
            for sock in asking:
                sock.connect((SERVER, 53))
                sock.send(question(API))
            time.sleep(1.5)  # now and then a port is guessed
            forger.send_signal(signal.SIGUSR1)
            assert forger.stdout is not None
            sent, took_s = map(float, forger.stdout.readline().split())
            assert udp_arrived(wire) - before > 0.9 * sent
            assert sent / took_s > 4000, "the forger is too slow to be one"
            server.speak()
            answers = [dnslib.DNSRecord.parse(sock.recv(512)) for sock in asking]
    assert [[str(record.rdata) for record in answer.rr] for answer in answers] == [[WEB]] * 20
    assert opened(wire) == {(ENDPOINT, pack(WEB))}
    assert not reaches(wire, FORGED)


def test_a_forger_who_knows_the_port_has_few_guesses(wire: Wire, server: Server) -> None:
    """... not the 65,536 that there are ids: at 10,000 a second it would have found the right one while the proxy
    waits."""
    wire.start()
    server.silent = True
    forged = answer_to(question(API), f"{API}. 30 A {FORGED}")
    with wire.pod_socket() as sock:
        sock.settimeout(LOOK_UP_S)
        sock.connect((SERVER, 53))
        sock.send(question(API))
        eventually(lambda: len(server.kept) == 1, "the question is under way")
        asked, (_, port) = server.kept[0]
        right = int.from_bytes(asked[:2])
        with inside(wire.server_ns), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw:
            raw.bind((SERVER, 0))
            for guess in [(right + 1 + number) % 65536 for number in range(MAX_FOREIGN)] + [right]:
                header = struct.pack("!HHHH", 53, port, 8 + len(forged), 0)
                raw.sendto(header + guess.to_bytes(2) + forged[2:], (NODE, 0))
        assert dnslib.DNSRecord.parse(sock.recv(512)).header.rcode == dnslib.RCODE.SERVFAIL
    assert opened(wire) == set()
    assert counted(wire, "answer to another question") == MAX_FOREIGN
    server.kept.clear()
    server.silent = False
    assert wire.look_up(API).header.rcode == 0


def test_an_answer_after_its_time_opens_nothing(wire: Wire, server: Server) -> None:
    wire.start(upstream_timeout_s=0.2)
    server.silent = True
    with wire.pod_socket() as sock:
        sock.settimeout(0.3)
        sock.connect((SERVER, 53))
        sock.send(question(API))
        eventually(lambda: counted(wire, "server silent") == 1, "the question is given up")
        server.speak()
        with pytest.raises(TimeoutError):
            sock.recv(512)
    assert opened(wire) == set()


# ---- from the server ----


def circle(asked: bytes) -> bytes:
    """An answer whose record is owned by a name that leads to itself."""
    here = len(asked)
    record = struct.pack("!HHHIH4s", 0xC000 | here, 1, 1, 30, 4, socket.inet_aton(FORGED))
    return asked[:2] + b"\x81\x80" + asked[4:6] + b"\0\1\0\0\0\0" + asked[12:] + record


def many(asked: bytes) -> bytes:
    return answer_to(asked, *(f"{API}. 30 A 198.18.{number >> 8}.{number & 255}" for number in range(2000)))


HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    "compression loop": circle,
    "cut in a record": lambda asked: answer_to(asked, f"{API}. 30 A {FORGED}")[:-2],
    "more behind the end": lambda asked: answer_to(asked, f"{API}. 30 A {FORGED}") + bytes(1000),
    "2,000 addresses": many,
    "alias of an allowed name": lambda asked: answer_to(
        asked, f"evil.example. 30 CNAME {API}.", f"{API}. 30 A {FORGED}"
    ),
    "another name beside": lambda asked: answer_to(asked, f"{API}. 30 A {FORGED}", f"x.io. 30 A {FORGED}"),
}


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_answer_opens_nothing(wire: Wire, server: Server, kind: str, transport: str) -> None:
    wire.start()
    server.replies[API] = HOSTILE[kind]
    answer = wire.look_up(API) if transport == "udp" else wire.look_up_by_tcp(API)[0]
    assert (answer.header.rcode, answer.rr) == (dnslib.RCODE.SERVFAIL, [])
    assert opened(wire) == set()
    del server.replies[API]
    assert wire.look_up(API).header.rcode == 0


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_a_name_that_opens_nothing_opens_nothing_by_an_alias_of_one_that_does(
    wire: Wire, server: Server, transport: str
) -> None:
    """It may be asked, and whoever owns it says what lies behind it: here, a record of a name that is not theirs."""
    asked = "q.x.io"
    server.zone[asked] = (f"{asked}. 30 CNAME {API}.", f"{API}. 30 A {FORGED}")
    wire.start()
    answer = wire.look_up(asked) if transport == "udp" else wire.look_up_by_tcp(asked)[0]
    assert [str(record.rdata) for record in answer.rr] == [f"{API}.", FORGED]
    assert opened(wire) == set()
    assert not reaches(wire, FORGED)
    wire.look_up(API)
    assert opened(wire) == {(ENDPOINT, pack(WEB))}
    assert not reaches(wire, FORGED)


def test_64_kb_by_tcp_come_through_whole(wire: Wire, server: Server) -> None:
    text = " ".join(['"' + "x" * 255 + '"'] * 15)
    server.zone[API] = (f"{API}. 30 A {WEB}", *(f"{API}. 30 TXT {text}" for _ in range(16)))
    size = len(answer_to(question(API), *server.zone[API]))
    assert 60_000 < size < 65_536
    wire.start()
    with wire.pod_socket(socket.SOCK_STREAM) as sock:
        sock.connect((SERVER, 53))
        sock.sendall(framed(question(API)))
        assert len(receive_framed(sock)) == size
    assert opened(wire) == {(ENDPOINT, pack(WEB))}


def test_a_truncated_answer_opens_what_it_holds_and_the_rest_comes_by_tcp(wire: Wire, server: Server) -> None:
    def cut(asked: bytes) -> bytes:
        answer = bytearray(answer_to(asked))
        answer[2] |= 0x02
        return bytes(answer)

    wire.start()
    server.replies[API] = cut
    assert wire.look_up(API).header.tc == 1
    assert opened(wire) == set()
    del server.replies[API]
    assert wire.look_up_by_tcp(API)[0].header.rcode == 0
    assert reaches(wire, WEB)


def test_addresses_of_aaaa_alone_and_of_hints_are_those_that_open(wire: Wire, server: Server) -> None:
    hints = f"{API}. 30 HTTPS 1 . alpn=h2 ipv4hint={HINTED} ipv6hint=2001:db8::11"
    server.replies[API] = lambda asked: answer_to(
        asked, f"{API}. 30 AAAA 2001:db8::10" if asked[-3] == dnslib.QTYPE.AAAA else hints
    )
    wire.start()
    assert wire.look_up(API, "AAAA").header.rcode == 0
    assert opened(wire) == {(ENDPOINT, pack("2001:db8::10"))}
    assert not reaches(wire, HINTED)
    assert wire.look_up(API, "HTTPS").header.rcode == 0
    assert opened(wire) == {(ENDPOINT, pack(text)) for text in ("2001:db8::10", "2001:db8::11", HINTED)}
    assert reaches(wire, HINTED)


@pytest.mark.parametrize("inward", [NODE, "169.254.169.254", STRANGER, SERVER, ROUTER, "100.64.0.9"])
def test_an_allowed_name_that_turns_inwards_opens_nothing(wire: Wire, server: Server, inward: str) -> None:
    """The node, what is link-local, a pod, a Service, the LAN, the provider's: whoever owns the name says so."""
    never_open = ["10.244.0.0/16", "10.96.0.0/12", "127.0.0.0/8", "169.254.0.0/16"]  # as the role has it
    wire.start(never_open=never_open)
    assert wire.look_up(API).header.rcode == 0
    assert reaches(wire, WEB)
    with inside(wire.node):
        here = socket.create_server((NODE, 443))
    server.zone[API] = (f"{API}. 30 A {WEB}", f"{API}. 30 A {inward}")
    with here:
        assert len(wire.look_up(API).rr) == 2
        assert not reaches(wire, inward)
    assert opened(wire) == {(ENDPOINT, pack(WEB))}
    (refused,) = wire.ask("status")["refused"]
    assert (refused["pod"], refused["name"], refused["address"]) == (POD, f"{API}.", inward)


# ---- from a pod ----

FLOOD = """
import itertools, socket, struct, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect((sys.argv[1], 53))
head = struct.pack("!6H", 7, 0x100, 1, 0, 0, 0)
tail = bytes([5]) + b"flood" + bytes([7]) + b"example" + bytes([0, 0, 1, 0, 1])
print("begun", flush=True)
for number in itertools.count():
    label = b"%d" % (number % 100000)
    sock.send(head + bytes([len(label)]) + label + tail)
"""


def test_a_flood_of_names_that_are_not_there_takes_no_look_up_from_another_pod(
    wire: Wire, server: Server, programs: Programs
) -> None:
    wire.start()
    with beside(wire.pods[STRANGER], FLOOD, SERVER):
        began = time.monotonic()
        for number in range(200):
            answer = wire.look_up(API, timeout_s=LOOK_UP_S)
            assert answer.header.rcode == 0, number
            time.sleep(0.005)
        took = time.monotonic() - began
    flooded = sum(name != API for _, name in server.asked)
    assert 0 < flooded < DNS_BURST + DNS_RATE * took
    assert programs.counted(Verdict.DNS_FLOOD) > flooded


def test_a_flood_during_a_restart_leaves_room_for_the_question_of_another_pod(
    wire: Wire, server: Server, programs: Programs
) -> None:
    with wire.pod_socket() as sock:
        sock.connect((SERVER, 53))
        with beside(wire.pods[STRANGER], FLOOD, SERVER):
            eventually(lambda: programs.counted(Verdict.REDIRECTED_DNS) > DNS_BURST + DNS_RATE, "a queue")
            sock.send(question(API))
        wire.start()
        assert dnslib.DNSRecord.parse(sock.recv(512)).header.rcode == 0


def test_connections_that_wait_for_a_restart_leave_room_for_another_pods(
    wire: Wire, server: Server, programs: Programs
) -> None:
    wire.start()
    wire.look_up(API)
    wire.stop()
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            sock = stack.enter_context(wire.pod_socket(socket.SOCK_STREAM, STRANGER))
            sock.setblocking(False)
            sock.connect_ex((SERVER, 53))
        asker = stack.enter_context(wire.pod_socket(socket.SOCK_STREAM))
        asker.settimeout(0.9)  # before a SYN that found no room is sent again
        asker.connect((SERVER, 53))
        asker.settimeout(LOOK_UP_S)
        asker.sendall(framed(question(API)))
        wire.start()
        assert dnslib.DNSRecord.parse(receive_framed(asker)).header.rcode == 0


def test_answers_that_a_pod_does_not_read_fill_no_memory(wire: Wire, server: Server) -> None:
    """As many and as large as they may be: 4 MB a connection, for as long as it may be silent."""

    def large(asked: bytes) -> bytes:
        if len(server.asked) % AT_ONCE == 1:
            time.sleep(0.3)  # all other questions are under way by then
        record = struct.pack("!HHHIH", 0xC00C, 65280, 1, 30, 65000)
        return asked[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + asked[12:] + record + bytes(65000)

    server.replies[API] = large
    wire.start()
    before = memory_mb(wire)
    with contextlib.ExitStack() as stack:
        for number in range(1, 6):
            sock = stack.enter_context(wire.pod_socket(socket.SOCK_STREAM))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect((SERVER, 53))
            sock.sendall(framed(question(API)) * AT_ONCE)
            eventually(lambda number=number: counted(wire, "answered") == AT_ONCE * number, "all answers")  # type: ignore[misc]
        assert memory_mb(wire) < before + 10
    assert wire.look_up(OWN, pod=STRANGER).header.rcode == 0


def test_a_pod_that_asks_by_tcp_without_end_takes_no_ports_from_another(wire: Wire, server: Server) -> None:
    """A connection that the proxy closes would keep its port for a minute, and a node has 28,000."""
    wire.nsenter(wire.node, "sysctl", "-q", "net.ipv4.ip_local_port_range=40000 40099")
    wire.start()
    for _ in range(3):
        assert {answer.header.rcode for answer in wire.look_up_by_tcp(*[OWN] * 50, pod=STRANGER)} == {0}
    assert wire.look_up_by_tcp(API)[0].header.rcode == 0


@pytest.mark.parametrize(
    ("address", "port", "kind"),
    [
        (ROUTER, 53, socket.SOCK_DGRAM),
        (ROUTER, 53, socket.SOCK_STREAM),
        (DOH, 853, socket.SOCK_STREAM),
        (DOH, 853, socket.SOCK_DGRAM),
        (DOH, 443, socket.SOCK_STREAM),
        (DOH, 443, socket.SOCK_DGRAM),
        (SERVER, 853, socket.SOCK_STREAM),
        (SERVER, 443, socket.SOCK_STREAM),
    ],
    ids=["UDP", "TCP", "DoT", "DoQ", "DoH", "DoH3", "DoT of the cluster's DNS", "DoH of the cluster's DNS"],
)
def test_no_other_way_leads_to_a_dns_server(
    wire: Wire, server: Server, programs: Programs, address: str, port: int, kind: socket.SocketKind
) -> None:
    wire.start()
    wire.look_up(API)
    with inside(wire.server_ns):
        there = socket.socket(socket.AF_INET, kind)
        there.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with there, wire.pod_socket(kind) as sock:
        sock.settimeout(0.3)
        if (port, kind) != (443, socket.SOCK_STREAM):  # served already
            there.bind((address, port))
        denied = programs.counted(Verdict.DEFAULT_DENY)
        with pytest.raises(TimeoutError):
            sock.connect((address, port))
            sock.send(question(API))
            sock.recv(512)
        assert programs.counted(Verdict.DEFAULT_DENY) > denied
        if kind == socket.SOCK_DGRAM:
            there.settimeout(0)
            with pytest.raises(BlockingIOError):
                there.recv(512)
    assert [transport for transport, _ in server.asked] == ["udp"]


def test_the_next_pod_with_an_address_inherits_nothing(wire: Wire, server: Server, programs: Programs) -> None:
    """Neither what its predecessor learned, nor the answer that was under way."""
    wire.start()
    wire.look_up(API)
    assert reaches(wire, WEB)
    server.silent = True
    with wire.pod_socket() as sock:
        sock.settimeout(LOOK_UP_S)
        sock.connect((SERVER, 53))
        sock.send(question(API))
        eventually(lambda: len(server.kept) == 1, "the question is under way")
        programs.admit(POD, 77)
        wire.rules(rules_text(endpoint(77, POD, {SELECTOR: API})))
        assert not reaches(wire, WEB)
        server.zone[API] = (f"{API}. 30 A {HINTED}",)
        server.speak()
        assert dnslib.DNSRecord.parse(sock.recv(512)).header.rcode == dnslib.RCODE.SERVFAIL
    assert opened(wire) == {(ENDPOINT, pack(WEB))}
    assert not reaches(wire, HINTED)
    wire.look_up(API)
    assert reaches(wire, HINTED)
