"""The kernel's half and the daemon's half together: what a pod may reach is what it was told by name, and no more."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import dnslib
import pytest

from instruments.dns_programs import ENDPOINT, SELECTOR, Programs, compiled
from instruments.dns_talk import endpoint, question, rules_text
from instruments.dns_wire import NODE, POD, ROUTER, SERVER, Server, Wire, eventually, framed, receive_framed
from instruments.netns import inside
from lab.shell import run, wait_until
from netstack.core.address import pack
from netstack.core.verdict import Verdict
from netstack.kernel.layout import FQDN_SELECTORS, IDENTITY_WORLD, FqdnKey
from netstack.kernel.programs import Compiled

pytestmark = pytest.mark.root

API, WEB, NEIGHBOUR = "api.anthropic.com", "192.0.2.10", "192.0.2.66"
ZONE = {API: (f"{API}. 30 A {WEB}",), "evil.example": (f"evil.example. 30 A {NEIGHBOUR}",)}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return compiled(tmp_path_factory.mktemp("programs"))


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    with Wire(tmp_path) as made:
        made.rules(rules_text(endpoint(ENDPOINT, POD, {SELECTOR: API})))
        made.keep_sockets()
        yield made


@pytest.fixture
def programs(wire: Wire, built: Compiled) -> Programs:
    return Programs(wire, built)


@pytest.fixture
def server(wire: Wire) -> Iterator[Server]:
    """Its host also has the addresses of two web servers."""
    for address in (WEB, NEIGHBOUR):
        run(["ip", "-n", wire.server_ns, "addr", "add", f"{address}/32", "dev", "lo"])
    with inside(wire.server_ns):
        web = socket.create_server(("0.0.0.0", 443))
    with web, Server(wire.server_ns, zone=dict(ZONE)) as made:
        yield made


def reaches(wire: Wire, address: str, port: int = 443) -> bool:
    with wire.pod_socket(socket.SOCK_STREAM) as sock:
        sock.settimeout(0.5)
        try:
            sock.connect((address, port))
        except TimeoutError:
            return False
        return True


def test_an_address_is_open_once_its_name_was_looked_up_and_no_other(
    wire: Wire, server: Server, programs: Programs
) -> None:
    wire.start()
    assert not reaches(wire, WEB)
    assert wire.look_up(API).header.rcode == 0
    assert reaches(wire, WEB)
    assert not reaches(wire, NEIGHBOUR)
    assert wire.look_up("evil.example").header.rcode == dnslib.RCODE.REFUSED
    assert not reaches(wire, NEIGHBOUR)
    assert server.asked == [("udp", API)]
    assert programs.counted(Verdict.REDIRECTED_DNS) >= 2
    assert wire.maps["fqdn_use"].get(FqdnKey(ENDPOINT, pack(WEB)).pack()) is not None


def test_dns_by_tcp_goes_the_same_way(wire: Wire, server: Server, programs: Programs) -> None:
    wire.start()
    allowed, refused = sorted(wire.look_up_by_tcp(API, "evil.example"), key=lambda answer: answer.header.id)
    assert (allowed.header.rcode, refused.header.rcode) == (0, dnslib.RCODE.REFUSED)
    assert server.asked == [("tcp", API)]
    assert reaches(wire, WEB)


def test_more_names_than_an_address_has_slots_for_lead_to_it_if_one_rule_allows_them(
    wire: Wire, server: Server, programs: Programs
) -> None:
    """As those of one provider do, behind one front end."""
    names = {SELECTOR + number: f"n{number}.example" for number in range(2 * FQDN_SELECTORS)}
    server.zone.update({name: (f"{name}. 30 A {WEB}",) for name in names.values()})
    for selector in names:
        programs.allow(443, selector)
    wire.rules(rules_text(endpoint(ENDPOINT, POD, names) | {"alike": [list(names)]}))
    wire.start()
    for name in names.values():
        assert wire.look_up(name).header.rcode == 0, name
    assert reaches(wire, WEB)
    assert len(wire.learned(ENDPOINT, WEB)) == FQDN_SELECTORS


def test_another_dns_server_is_not_reached(wire: Wire, server: Server, programs: Programs) -> None:
    wire.start()
    with Server(wire.server_ns, ROUTER, zone=dict(ZONE)) as other, wire.pod_socket() as sock:
        sock.settimeout(0.5)
        sock.connect((ROUTER, 53))
        sock.send(question(API))
        with pytest.raises(TimeoutError):
            sock.recv(512)
        assert other.asked == []


def test_with_the_daemon_dead_what_was_learned_stays_open_and_nothing_opens(
    wire: Wire, server: Server, programs: Programs
) -> None:
    wire.start()
    wire.look_up(API)
    wire.kill()
    assert reaches(wire, WEB)
    assert not reaches(wire, NEIGHBOUR)
    with wire.pod_socket() as udp, wire.pod_socket(socket.SOCK_STREAM) as tcp:
        udp.connect((SERVER, 53))
        udp.send(question(API))
        tcp.connect((SERVER, 53))
        tcp.sendall(framed(question(API)))
        wire.start()
        assert dnslib.DNSRecord.parse(udp.recv(512)).header.rcode == 0
        assert dnslib.DNSRecord.parse(receive_framed(tcp)).header.rcode == 0


def test_without_the_sockets_questions_go_nowhere(wire: Wire, server: Server, programs: Programs) -> None:
    """The server asked may well be reachable: that a redirect finds nobody must not let the question pass."""
    for sock in wire.listeners:
        sock.close()
    wire.listeners = []
    with pytest.raises(TimeoutError):
        wire.look_up(API, timeout_s=0.5)
    assert not reaches(wire, SERVER, 53)
    assert server.asked == []
    assert programs.counted(Verdict.NO_PROXY) >= 2


def test_a_policy_deleted_while_the_daemon_is_dead_closes_the_address(
    wire: Wire, server: Server, programs: Programs
) -> None:
    wire.start()
    wire.look_up(API)
    wire.kill()
    assert reaches(wire, WEB)
    for key, _ in list(wire.maps["policy"].items()):
        wire.maps["policy"].delete(key)
    assert not reaches(wire, WEB)


# ---- what was told past the proxy ----


@contextlib.contextmanager
def unrestricted(wire: Wire, built: Compiled) -> Iterator[Programs]:
    """The pod asks and connects as it likes. After it, its policy is in force."""
    programs = Programs(wire, built, restricted=False)
    wire.rules(rules_text())
    yield programs
    restrict(wire, programs)


def restrict(wire: Wire, programs: Programs) -> None:
    wire.rules(rules_text(endpoint(ENDPOINT, POD, {SELECTOR: API})))
    programs.restrict(POD, ENDPOINT)


@contextlib.contextmanager
def connected(wire: Wire, address: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The pod's connection, and its other end."""
    with inside(wire.server_ns):
        listening = socket.create_server((address, 8443))
    with listening, wire.pod_socket(socket.SOCK_STREAM) as sock:
        sock.connect((address, 8443))
        with listening.accept()[0] as other:
            yield sock, other


def speaks(ends: tuple[socket.socket, socket.socket]) -> bool:
    """Within what a few repetitions by TCP take."""
    sock, other = ends
    sock.send(b"still here")
    other.settimeout(2)
    try:
        return bool(other.recv(64))
    except TimeoutError:
        return False


def heard(wire: Wire) -> int:
    return int(wire.ask("status")["heard"])


def test_a_policy_that_begins_cuts_no_connection_that_it_allows_and_every_other(
    wire: Wire, server: Server, built: Compiled
) -> None:
    wire.start()
    with contextlib.ExitStack() as stack:
        with unrestricted(wire, built) as programs:
            assert wire.look_up(API).header.rcode == 0
            assert wire.look_up("evil.example").header.rcode == 0
            eventually(lambda: heard(wire) == 2, "both names to be heard")
            told = {entry["address"]: entry["names"] for entry in wire.ask("names")}
            assert told == {WEB: [f"{API}."], NEIGHBOUR: ["evil.example."]}
            programs.allow(8443)
            allowed, other = (stack.enter_context(connected(wire, address)) for address in (WEB, NEIGHBOUR))
        assert speaks(allowed)
        assert reaches(wire, WEB)
        assert not speaks(other)
        assert not reaches(wire, NEIGHBOUR)
    assert server.asked == [("udp", API), ("udp", "evil.example")]


def test_a_name_that_a_policy_let_the_pod_ask_for_is_known_to_the_one_that_names_it(
    wire: Wire, server: Server, programs: Programs
) -> None:
    """As where a policy looks at names by rules.dns and lets the pod out, and is then narrowed to some of them."""
    wire.rules(rules_text(endpoint(ENDPOINT, POD, {9: "other.example"}, queries=("*",))))
    programs.allow(8443, IDENTITY_WORLD)
    wire.start()
    for name in (API, "evil.example"):
        assert wire.look_up(name).header.rcode == 0
    told = {entry["address"]: entry["names"] for entry in wire.ask("names")}
    assert told == {WEB: [f"{API}."], NEIGHBOUR: ["evil.example."]}
    with connected(wire, WEB) as allowed, connected(wire, NEIGHBOUR) as other:
        wire.rules(rules_text(endpoint(ENDPOINT, POD, {SELECTOR: API})))
        programs.allow(8443)
        programs.shut(8443, IDENTITY_WORLD)
        programs.restrict(POD, ENDPOINT)
        assert speaks(allowed)
        assert not speaks(other)


def test_a_connection_to_a_dns_server_of_the_node_itself_does_not_outlive_a_policy_that_names(
    wire: Wire, server: Server, built: Compiled
) -> None:
    """The kernel has a socket for it, as it has one for each connection that the proxy has accepted."""
    wire.start()
    with contextlib.ExitStack() as stack:
        with unrestricted(wire, built) as programs, inside(wire.node):
            listening = stack.enter_context(socket.create_server((NODE, 53)))
            sock = stack.enter_context(wire.pod_socket(socket.SOCK_STREAM))
            sock.connect((NODE, 53))
            ends = sock, stack.enter_context(listening.accept()[0])
            programs.redirect_at_the_node()
        assert not speaks(ends)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        asked = stack.enter_context(wire.pod_socket(socket.SOCK_STREAM))
        asked.connect((NODE, 53))
        asked.sendall(framed(question("evil.example")))
        answer = dnslib.DNSRecord.parse(receive_framed(asked))
        assert answer.header.rcode == dnslib.RCODE.REFUSED, "what is the proxy's is still its own"


def test_what_was_heard_outlives_the_daemon_and_counts_for_a_policy_that_began_meanwhile(
    wire: Wire, server: Server, built: Compiled
) -> None:
    wire.start()
    with unrestricted(wire, built):
        wire.look_up(API)
        eventually(lambda: heard(wire) == 1, "the name to be heard")
        wire.stop()
    assert not reaches(wire, WEB)
    wire.start()
    assert reaches(wire, WEB)


def test_killed_it_has_what_it_wrote_down(wire: Wire, server: Server, built: Compiled) -> None:
    wire.start()
    with unrestricted(wire, built):
        wire.look_up(API)
        eventually(lambda: heard(wire) == 1, "the name to be heard")
        wait_until(lambda: (wire.folder / "run/dns-heard.json").exists(), "a copy", timeout_s=15)
        wire.kill()
    wire.start()
    assert reaches(wire, WEB)


def test_answers_while_the_daemon_is_away_are_heard_later(wire: Wire, server: Server, built: Compiled) -> None:
    with unrestricted(wire, built):
        wire.look_up(API)
        wire.start()
        eventually(lambda: heard(wire) == 1, "the name to be heard")
    eventually(lambda: reaches(wire, WEB), "the address to open")


def test_a_server_of_the_lan_is_not_believed(wire: Wire, server: Server, built: Compiled) -> None:
    wire.start()
    with unrestricted(wire, built), Server(wire.server_ns, ROUTER, zone=dict(ZONE)), wire.pod_socket() as sock:
        sock.connect((ROUTER, 53))
        sock.send(question(API))
        assert sock.recv(512)
        eventually(lambda: heard(wire) == 1, "the name to be heard")
    wire.look_up("evil.example")  # by now the rules are in force
    assert heard(wire) == 1
    assert not reaches(wire, WEB)


def test_without_a_ring_it_serves_and_says_so(wire: Wire, server: Server, programs: Programs) -> None:
    run(["rm", str(wire.folder / "bpf/heard")])
    wire.start()
    assert wire.look_up(API).header.rcode == 0
    assert "what pods are told past the proxy stays unknown: open" in wire.log()
