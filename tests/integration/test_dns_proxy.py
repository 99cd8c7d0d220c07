"""netstack-dns on real transparent sockets: one pod with rules, one without, a server that notes what it is asked."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import dnslib
import pytest

from instruments.dns_talk import answer_to, endpoint, question, rules_text
from instruments.dns_wire import (
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
from lab.shell import run

pytestmark = pytest.mark.root

API = "api.anthropic.com"
ZONE = {
    API: (f"{API}. 30 A 192.0.2.10", f"{API}. 30 A 192.0.2.11"),
    "www.x.io": ("www.x.io. 5000 CNAME edge.cdn.example.", "edge.cdn.example. 20 A 192.0.2.20"),
    "evil.example": ("evil.example. 30 A 198.51.100.66",),
    "spoiled.x.io": ("spoiled.x.io. 5 A 192.0.2.30", "bank.example. 5 A 198.51.100.7"),
    "db.svc.cluster.local": ("db.svc.cluster.local. 5 A 10.96.7.7",),
}
RULES = rules_text(endpoint(12, POD, {3: API, 4: "*.x.io"}, queries=("*.svc.cluster.local",)), generation=7)


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    with Wire(tmp_path) as made:
        made.redirect()
        made.rules(RULES)
        yield made


@pytest.fixture
def server(wire: Wire) -> Iterator[Server]:
    with Server(wire.server_ns, zone=dict(ZONE)) as made:
        yield made


def addresses(answer: dnslib.DNSRecord) -> list[str]:
    return [str(record.rdata) for record in answer.rr if record.rtype == dnslib.QTYPE.A]


def test_an_allowed_name_is_answered_by_the_address_asked_and_learned(wire: Wire, server: Server) -> None:
    wire.start()
    before = time.monotonic()
    answer = wire.look_up("Api.Anthropic.COM")
    assert addresses(answer) == ["192.0.2.10", "192.0.2.11"]
    assert str(answer.q.qname) == "Api.Anthropic.COM."
    for address in addresses(answer):
        (selector, expires_s), *more = wire.learned(12, address).items()
        assert (selector, more) == (3, [])
        assert before + 3600 <= expires_s <= time.monotonic() + 3601
    assert server.asked == [("udp", API)]
    names = wire.ask("names")
    assert [(n["address"], n["names"], n["selectors"][0]["rule"]) for n in names] == [
        ("192.0.2.10", [f"{API}."], f"matchName: {API}"),
        ("192.0.2.11", [f"{API}."], f"matchName: {API}"),
    ]


def test_a_name_that_is_not_allowed_never_reaches_the_server(wire: Wire, server: Server) -> None:
    wire.start()
    for name in ("evil.example", "secret-42.evil.example", f"{API}.evil.example"):
        assert wire.look_up(name).header.rcode == dnslib.RCODE.REFUSED
        (answer,) = wire.look_up_by_tcp(name)
        assert answer.header.rcode == dnslib.RCODE.REFUSED
    assert server.asked == []
    assert list(wire.maps["fqdn"].items()) == []
    assert {entry["name"] for entry in wire.ask("status")["refused"]} >= {"evil.example."}


def test_a_pod_without_rules_is_refused_everything(wire: Wire, server: Server) -> None:
    wire.start(refuse_with="NXDOMAIN")
    assert wire.look_up(API, pod=STRANGER).header.rcode == dnslib.RCODE.NXDOMAIN
    assert server.asked == []


def test_addresses_behind_an_alias_are_learned_for_the_name(wire: Wire, server: Server) -> None:
    wire.start(min_ttl_s=0)
    answer = wire.look_up("www.x.io")
    assert addresses(answer) == ["192.0.2.20"]
    ((selector, expires_s),) = wire.learned(12, "192.0.2.20").items()
    assert selector == 4
    assert expires_s <= time.monotonic() + 21


def test_an_answer_with_a_record_beside_the_chain_is_held_back(wire: Wire, server: Server) -> None:
    wire.start()
    assert wire.look_up("spoiled.x.io").header.rcode == dnslib.RCODE.SERVFAIL
    assert list(wire.maps["fqdn"].items()) == []


def test_names_that_may_only_be_asked_and_names_that_are_not_there_pass(wire: Wire, server: Server) -> None:
    wire.start()
    assert addresses(wire.look_up("db.svc.cluster.local")) == ["10.96.7.7"]
    assert wire.look_up("nothing.x.io").header.rcode == dnslib.RCODE.NXDOMAIN
    assert list(wire.maps["fqdn"].items()) == []


def test_questions_by_tcp_are_asked_by_tcp(wire: Wire, server: Server) -> None:
    wire.start()
    answers = wire.look_up_by_tcp(API, "evil.example", "www.x.io")
    by_id = {answer.header.id: answer for answer in answers}
    assert addresses(by_id[1000]) == ["192.0.2.10", "192.0.2.11"]
    assert by_id[1001].header.rcode == dnslib.RCODE.REFUSED
    assert addresses(by_id[1002]) == ["192.0.2.20"]
    assert sorted(server.asked) == [("tcp", API), ("tcp", "www.x.io")]
    assert wire.learned(12, "192.0.2.10") and wire.learned(12, "192.0.2.20")


@pytest.mark.parametrize("size", [512, 513, 1232])
def test_who_asks_with_edns_gets_the_whole_answer_with_its_options(wire: Wire, server: Server, size: int) -> None:
    arrived, left = [], []

    def padded(asked: bytes) -> bytes:
        answer = bytearray(answer_to(asked, *ZONE[API]))
        answer[10:12] = (1).to_bytes(2)  # one additional record: OPT, with padding (RFC 7830)
        length = size - len(answer) - 15
        answer += b"\0" + struct.pack("!HHIHHH", 41, 1232, 0, length + 4, 12, length) + bytes(length)
        arrived.append(asked)
        left.append(bytes(answer))
        return left[-1]

    server.replies[API] = padded
    wire.start()
    asked = question(API, edns=True)
    with wire.pod_socket() as sock:
        sock.connect((SERVER, 53))
        sock.send(asked)
        answer = sock.recv(65535)
    assert len(answer) == size
    assert (arrived[0][2:], answer) == (asked[2:], asked[:2] + left[0][2:])
    (opt,) = dnslib.DNSRecord.parse(answer).ar
    assert (opt.rtype, opt.edns_len) == (dnslib.QTYPE.OPT, 1232)
    assert wire.learned(12, "192.0.2.10").keys() == {3}


def test_the_address_is_in_the_table_whenever_its_answer_is_seen(wire: Wire, server: Server) -> None:
    """Each name has an address of its own; the table is read in the instant in which the answer is here."""
    wire.start()
    for number in range(300):
        address = f"203.0.{number >> 8}.{number & 255}"
        server.zone[f"n{number}.x.io"] = (f"n{number}.x.io. 5 A {address}",)
        wire.look_up(f"n{number}.x.io")
        assert wire.learned(12, address).keys() == {4}


def test_an_answer_whose_address_cannot_be_written_does_not_leave(wire: Wire, server: Server) -> None:
    wire.make_map("fqdn", 2)
    wire.start()
    assert len(addresses(wire.look_up(API))) == 2
    for _ in range(3):
        held_back = wire.look_up("www.x.io")
        assert (held_back.header.rcode, held_back.rr) == (dnslib.RCODE.SERVFAIL, [])
    assert counted(wire, "address not writable") == 3
    assert wire.log().count("an answer for 10.244.1.5 is held back") == 1
    assert len(addresses(wire.look_up(API))) == 2


def test_a_name_whose_addresses_rotate_takes_no_room_from_another(wire: Wire, server: Server) -> None:
    wire.start(max_addresses_per_pod=9, max_addresses_per_name=6)
    for number in range(10):
        server.zone[API] = (f"{API}. 30 A 203.0.113.{number}",)
        assert wire.look_up(API).header.rcode == (0 if number < 6 else dnslib.RCODE.SERVFAIL)
    assert counted(wire, "address not writable") == 4
    assert f"held back: endpoint 12 has learned 6 addresses of {API}., the most of one name" in wire.log()
    assert addresses(wire.look_up("www.x.io")) == ["192.0.2.20"]


def test_a_new_rule_counts_for_the_next_question(wire: Wire, server: Server) -> None:
    wire.start()
    assert wire.look_up("evil.example").header.rcode == dnslib.RCODE.REFUSED
    wire.rules(rules_text(endpoint(12, POD, {8: "evil.example"}), generation=8))
    assert addresses(wire.look_up("evil.example")) == ["198.51.100.66"]
    assert wire.look_up(API).header.rcode == dnslib.RCODE.REFUSED
    (wire.folder / "dns-rules.json").write_text('{"generation": 9, "endpoints": [{}]}')
    assert wire.look_up("evil.example").header.rcode == 0
    status = wire.ask("status")
    assert status["generation"] == 8
    assert status["rules_error"].endswith("endpoints[0].endpoint: must be a number, not None")


def test_killed_and_started_again_nothing_learned_is_lost_nor_any_question_that_waits(
    wire: Wire, server: Server
) -> None:
    wire.keep_sockets()
    wire.start()
    wire.look_up(API)
    learned = wire.learned(12, "192.0.2.10")
    wire.kill()
    with wire.pod_socket() as udp, wire.pod_socket(socket.SOCK_STREAM) as tcp:
        udp.connect((SERVER, 53))
        udp.send(question("www.x.io"))
        tcp.connect((SERVER, 53))  # accepted by the kernel: the listener is systemd's
        tcp.sendall(framed(question(API)))
        assert wire.learned(12, "192.0.2.10") == learned
        wire.start()
        assert addresses(dnslib.DNSRecord.parse(udp.recv(512))) == ["192.0.2.20"]
        assert addresses(dnslib.DNSRecord.parse(receive_framed(tcp))) == ["192.0.2.10", "192.0.2.11"]
    assert wire.learned(12, "192.0.2.10").keys() == {3}
    assert {n["address"] for n in wire.ask("names")} == {"192.0.2.10", "192.0.2.11", "192.0.2.20"}


def test_started_again_it_knows_the_names_of_what_is_open(wire: Wire, server: Server) -> None:
    wire.start()
    wire.look_up(API)
    before = [(n["address"], n["names"], n["from"]) for n in wire.ask("names")]
    assert before == [(a, [f"{API}."], {f"{API}.": SERVER}) for a in ("192.0.2.10", "192.0.2.11")]
    wire.stop()
    wire.start()
    assert [(n["address"], n["names"], n["from"]) for n in wire.ask("names")] == before
    wire.kill()
    (wire.folder / "run/dns-names.json").write_text('[["half')
    wire.start()
    assert [(n["address"], n["names"]) for n in wire.ask("names")] == [("192.0.2.10", []), ("192.0.2.11", [])]
    assert "names of addresses are not known until they are asked again" in wire.log()


def test_a_broken_rules_file_at_the_start_leaves_the_last_whole_one_in_force(wire: Wire, server: Server) -> None:
    wire.start()
    eventually(lambda: (wire.folder / "state/rules.json").exists(), "a copy of the rules is kept")
    wire.stop()
    (wire.folder / "dns-rules.json").write_text("")
    wire.start()
    assert addresses(wire.look_up(API)) == ["192.0.2.10", "192.0.2.11"]
    assert wire.look_up("evil.example").header.rcode == dnslib.RCODE.REFUSED


def test_without_rules_ever_everything_is_refused(wire: Wire, server: Server) -> None:
    os.unlink(wire.folder / "dns-rules.json")
    wire.start()
    assert wire.look_up(API).header.rcode == dnslib.RCODE.REFUSED
    assert server.asked == []


def test_told_to_stop_it_serves_until_nobody_waits_and_leaves_the_rest_to_its_successor(
    wire: Wire, server: Server
) -> None:
    wire.keep_sockets()
    wire.start()
    server.silent = True
    with wire.pod_socket() as first, wire.pod_socket() as second, wire.pod_socket() as third:
        for sock in (first, second, third):
            sock.connect((SERVER, 53))
        first.send(question(API))
        eventually(lambda: server.asked == [("udp", API)], "the question is under way")
        assert wire.daemon is not None
        wire.daemon.terminate()
        wire.await_notice("1 questions under way")
        second.send(question("www.x.io"))
        eventually(lambda: server.asked == [("udp", API), ("udp", "www.x.io")], "it to be served too")
        server.speak()
        assert addresses(dnslib.DNSRecord.parse(first.recv(512))) == ["192.0.2.10", "192.0.2.11"]
        assert addresses(dnslib.DNSRecord.parse(second.recv(512))) == ["192.0.2.20"]
        wire.stop()
        third.send(question("www.x.io"))
        wire.start()
        assert addresses(dnslib.DNSRecord.parse(third.recv(512))) == ["192.0.2.20"]


def test_told_to_stop_while_a_server_is_silent_it_goes_after_its_time(wire: Wire, server: Server) -> None:
    wire.start(finish_within_s=0.2)
    server.silent = True
    with wire.pod_socket() as sock:
        sock.connect((SERVER, 53))
        sock.send(question(API))
        eventually(lambda: server.asked == [("udp", API)], "the question is under way")
        wire.stop()


class Askers:
    """A pod's programs that look names up one after the other, each with one try."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self.answered = 0
        self.failed: list[tuple[float, str]] = []
        """When it was asked, and how."""

    def begin(
        self,
        how: str,
        *,
        server: str = SERVER,
        name: str = API,
        timeout_s: float = 5.0,
        rest_s: float = 0.0,
        many: int = 1,
    ) -> None:
        """The time-out is long where the start of a daemon, on a machine that has other things to do, lies within."""
        work = functools.partial(
            self._ask_on, functools.partial(look_up, self._wire, how, server, name, timeout_s), rest_s
        )
        self._threads += [threading.Thread(target=work) for _ in range(many)]
        for thread in self._threads[-many:]:
            thread.start()

    def _ask_on(self, ask: functools.partial[list[str]], rest_s: float) -> None:
        while not self._stopping.is_set():
            began = time.monotonic()
            found: list[str] = []
            with contextlib.suppress(OSError, EOFError):
                found = ask()
            if found:
                self.answered += 1
            else:
                self.failed.append((began, f"{ask.args[1:]} after {time.monotonic() - began:.2f} s"))
            self._stopping.wait(rest_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()


def look_up(wire: Wire, how: str, server: str, name: str, timeout_s: float = 5.0) -> list[str]:
    with wire.pod_socket(socket.SOCK_DGRAM if how == "udp" else socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        sock.connect((server, 53))
        sock.sendall(question(name) if how == "udp" else framed(question(name)))
        return addresses(dnslib.DNSRecord.parse(sock.recv(512) if how == "udp" else receive_framed(sock)))


@contextlib.contextmanager
def slow(wire: Wire, address: str, after_s: float = 1.5) -> Iterator[Server]:
    """A server that thinks long."""
    run(["ip", "-n", wire.server_ns, "addr", "add", f"{address}/32", "dev", "lo"])
    asleep = threading.Event()

    def thought(asked: bytes) -> bytes:
        asleep.wait(after_s)
        return answer_to(asked, *ZONE["www.x.io"])

    with Server(wire.server_ns, address, replies={"www.x.io": thought}) as server:
        yield server


def test_a_restart_costs_no_look_up_by_udp_or_tcp_nor_of_a_slow_server(wire: Wire, server: Server) -> None:
    wire.keep_sockets()
    wire.start()
    wire.look_up(API)  # the pod knows its gateway's MAC: the kernel takes up to 0.8 s to answer for another
    by_udp, by_tcp = "10.96.0.11", "10.96.0.12"
    with slow(wire, by_udp) as first, slow(wire, by_tcp) as second, Askers(wire) as askers:
        for how, patient in (("udp", by_udp), ("tcp", by_tcp)):
            askers.begin(how, rest_s=0.01, many=2)
            askers.begin(how, server=patient, name="www.x.io", timeout_s=2, rest_s=9)
        eventually(lambda: first.asked != [] != second.asked and askers.answered > 20, "all to be under way")
        before = askers.answered
        wire.stop()
        wire.start()
        eventually(lambda: askers.answered > before + 20, "all to go on")
    assert askers.failed == []


def test_killed_under_load_it_loses_at_most_what_it_had_read(
    wire: Wire, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    wire.keep_sockets()
    wire.start()
    wire.look_up("www.x.io")
    with Askers(wire) as askers:
        askers.begin("udp", many=12)
        askers.begin("tcp", many=4)
        eventually(lambda: askers.answered > 100, "load")
        learned = {address: wire.learned(12, address) for address in ("192.0.2.10", "192.0.2.11", "192.0.2.20")}
        wire.kill()
        killed = time.monotonic()
        wire.start()
        before = askers.answered
        eventually(lambda: askers.answered > before + 100, "all to go on")
    with capsys.disabled():
        print(f" [{len(askers.failed)} of {len(askers._threads)} under way asked again]", end="")
    assert all(asked < killed for asked, _ in askers.failed), askers.failed
    assert len(askers.failed) <= 16, "each asker has one question under way"
    for how in ("udp", "tcp"):
        assert look_up(wire, how, SERVER, API)
    assert all(learned.values())
    assert all(wire.learned(12, address).keys() == held.keys() for address, held in learned.items())


def test_who_has_said_all_may_still_listen(wire: Wire, server: Server) -> None:
    """RFC 7766 says nothing against it, and `nc` and others close their half at once."""
    wire.start()
    with slow(wire, "10.96.0.11", 0.1), wire.pod_socket(socket.SOCK_STREAM) as sock:
        sock.connect(("10.96.0.11", 53))
        sock.sendall(framed(question("www.x.io", ident=1)) + framed(question("evil.example", ident=2)))
        sock.shutdown(socket.SHUT_WR)
        found = {answer.header.id: answer for answer in map(dnslib.DNSRecord.parse, iter_framed(sock))}
    assert addresses(found[1]) == ["192.0.2.20"]
    assert found[2].header.rcode == dnslib.RCODE.REFUSED
    eventually(lambda: wire.ask("status")["in_flight"] == 0, "the end of it")


def iter_framed(sock: socket.socket) -> Iterator[bytes]:
    """Until the other end has said all."""
    with contextlib.suppress(EOFError):
        while True:
            yield receive_framed(sock)


def test_a_server_that_refuses_is_said_at_once_and_a_silent_one_is_given_up(wire: Wire) -> None:
    wire.start(upstream_timeout_s=0.2)
    assert wire.look_up(API).header.rcode == dnslib.RCODE.SERVFAIL  # nobody listens: ICMP port unreachable
    (by_tcp,) = wire.look_up_by_tcp(API)
    assert by_tcp.header.rcode == dnslib.RCODE.SERVFAIL
    assert counted(wire, "server silent") == 0
    with Server(wire.server_ns, silent=True):
        with pytest.raises(TimeoutError):
            wire.look_up(API, timeout_s=0.4)
        eventually(lambda: counted(wire, "server silent") == 1, "the question is given up")
    assert wire.ask("status")["in_flight"] == 0


def test_one_pods_flood_does_not_starve_another(wire: Wire, server: Server) -> None:
    other = endpoint(13, STRANGER, {9: "www.x.io"})
    wire.rules(rules_text(endpoint(12, POD, {3: API}), other))
    wire.start(max_in_flight_per_pod=4, max_connections_per_pod=2)
    server.silent = True
    with wire.pod_socket() as flood:
        flood.connect((SERVER, 53))
        for ident in range(20):
            flood.send(question(API, ident=ident))
        codes = [flood.recv(512)[3] & 15 for _ in range(16)]
        assert codes == [dnslib.RCODE.SERVFAIL] * 16
        server.speak()
        assert addresses(wire.look_up("www.x.io", pod=STRANGER)) == ["192.0.2.20"]
    connections = [wire.pod_socket(socket.SOCK_STREAM) for _ in range(3)]
    try:
        for sock in connections:
            sock.connect((SERVER, 53))
        with pytest.raises((EOFError, ConnectionResetError, BrokenPipeError)):
            connections[2].sendall(framed(question(API)))
            receive_framed(connections[2])
        assert addresses(wire.look_up_by_tcp("www.x.io", pod=STRANGER)[0]) == ["192.0.2.20"]
    finally:
        for sock in connections:
            sock.close()


def test_junk_neither_ends_the_daemon_nor_reaches_the_server(wire: Wire, server: Server) -> None:
    wire.start()
    with wire.pod_socket() as udp, wire.pod_socket(socket.SOCK_STREAM) as tcp:
        udp.connect((SERVER, 53))
        for junk in (b"", b"x", bytes(12), bytes(1500), question(API) + b"x", b"\xc0\x0c" * 300):
            udp.send(junk)
        tcp.connect((SERVER, 53))
        tcp.sendall(b"\xff\xff" + bytes(65535) + framed(question(API)))
        assert addresses(dnslib.DNSRecord.parse(receive_framed(tcp))) == ["192.0.2.10", "192.0.2.11"]
    assert counted(wire, "query malformed") == 7
    assert server.asked == [("tcp", API)]


def test_where_only_a_policy_on_trial_brings_questions_updates_and_zone_transfers_pass(
    wire: Wire, server: Server
) -> None:
    wire.rules(rules_text(endpoint(12, POD, queries=("*",), passes=(API,))))
    server.zone["x.io"] = ("x.io. 5 A 192.0.2.1",)
    server.zone["large.x.io"] = tuple(f"large.x.io. 5 A 198.18.{number // 256}.{number % 256}" for number in range(300))
    wire.start()
    update = question("x.io", "SOA")[:2] + b"\x28\0" + question("x.io", "SOA")[4:]
    with wire.pod_socket() as udp, wire.pod_socket(socket.SOCK_STREAM) as tcp:
        udp.connect((SERVER, 53))
        udp.send(update)
        answer = udp.recv(512)
        assert answer[:2] == update[:2] and answer[2] >> 3 == 0b10101
        udp.send(question("large.x.io"))
        assert len(addresses(dnslib.DNSRecord.parse(udp.recv(65535)))) == 300
        tcp.connect((SERVER, 53))
        tcp.sendall(framed(question("x.io", "AXFR")))
        assert addresses(dnslib.DNSRecord.parse(receive_framed(tcp))) == ["192.0.2.1"]
    noted = wire.ask("status")["refused"]
    assert [item["reason"] for item in noted if item["on_trial"]] == [
        *("kind of query not allowed", "name not allowed", "answer with too many addresses"),
        "kind of query not allowed",
    ]


def test_asking_the_proxy_by_its_own_address_does_not_go_round_in_circles(wire: Wire, server: Server) -> None:
    wire.start()
    with wire.pod_socket() as sock:
        sock.settimeout(0.3)
        sock.connect(("169.254.1.53", 53))
        sock.send(question(API))
        with pytest.raises(TimeoutError):
            sock.recv(512)
    assert counted(wire, "forwarded") == 0


def test_another_dns_server_is_asked_by_its_own_address(wire: Wire, server: Server) -> None:
    wire.start()
    with Server(wire.server_ns, ROUTER, zone={API: (f"{API}. 30 A 192.0.2.99",)}), wire.pod_socket() as sock:
        sock.connect((ROUTER, 53))
        sock.send(question(API))
        assert addresses(dnslib.DNSRecord.parse(sock.recv(512))) == ["192.0.2.99"]
    assert server.asked == []


def test_a_server_behind_another_port_answers_from_it(wire: Wire, server: Server) -> None:
    """A Service that translates port 53 to the port of its pods: the proxy sees the translated one."""
    wire.start()
    with Server(wire.server_ns, ROUTER, 8053, zone=dict(ZONE)) as behind:
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            with wire.pod_socket(kind) as sock:
                sock.connect((ROUTER, 8053))
                stream = kind == socket.SOCK_STREAM
                sock.sendall(framed(question(API)) if stream else question(API))
                answer = receive_framed(sock) if stream else sock.recv(512)
                assert addresses(dnslib.DNSRecord.parse(answer)) == ["192.0.2.10", "192.0.2.11"]
        assert behind.asked == [("udp", API), ("tcp", API)]
    assert server.asked == []


@pytest.mark.parametrize("refusal", ["REFUSED", "NXDOMAIN"])
def test_glibc_finds_an_allowed_name_through_kubelets_search_list(wire: Wire, server: Server, refusal: str) -> None:
    """ndots:5 makes it try the cluster's suffixes first, and all of those are refused."""
    wire.start(refuse_with=refusal)
    conf = wire.folder / "resolv.conf"
    conf.write_text(
        f"nameserver {SERVER}\nsearch openclaw.svc.cluster.lan svc.cluster.lan cluster.lan\noptions ndots:5\n"
    )
    script = f"mount --bind {conf} /etc/resolv.conf; getent -s dns ahostsv4 {API}"
    found = wire.nsenter(wire.pods[POD], "unshare", "--mount", "bash", "-c", script)
    assert {line.split()[0] for line in found.stdout.splitlines()} == {"192.0.2.10", "192.0.2.11"}
    assert {name for _, name in server.asked} == {API}


def test_sockets_that_are_not_transparent_are_refused_by_name(wire: Wire) -> None:
    wire.listeners = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM)]
    with pytest.raises(RuntimeError, match=r"is not transparent \(Transparent=yes in netstack-dns.socket\)"):
        wire.start()


def test_without_its_table_it_says_which(wire: Wire) -> None:
    run(["rm", str(wire.folder / "bpf/fqdn")])
    with pytest.raises(RuntimeError, match=r"open .*/bpf/fqdn: No such file"):
        wire.start()
