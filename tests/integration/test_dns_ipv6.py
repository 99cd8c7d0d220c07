"""Questions that a pod asks over IPv6, through the real programs: as those over IPv4 (test_dns_programs.py).

The pod of dns_wire has a second address here, which the CNI plugin does not give yet; what the agent would write and
route for it, this file does.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dnslib
import pytest

from instruments.dns_programs import ENDPOINT, SELECTOR, Programs, compiled
from instruments.dns_talk import endpoint, question, rules_text
from instruments.dns_wire import POD, SERVER, Server, Wire, framed, receive_framed
from instruments.netns import inside
from lab.shell import run
from netstack.core.address import pack
from netstack.core.verdict import Verdict
from netstack.dns import sockets
from netstack.kernel.layout import Identity, PrefixKey
from netstack.kernel.programs import Compiled

pytestmark = pytest.mark.root

POD6, NODE6, SERVER6, ROUTER6, GATEWAY6 = "fd00:244:1::5", "fd00:86::21", "fd00:96::a", "fd00:86::1", "fe80::1"
API, WEB, NEIGHBOUR = "api.anthropic.com", "2001:db8::10", "2001:db8::66"
ZONE = {API: (f"{API}. 30 AAAA {WEB}",), "evil.example": (f"evil.example. 30 AAAA {NEIGHBOUR}",)}


class Wire6(Wire):
    """The same namespaces with IPv6 beside IPv4."""

    def _build(self) -> None:
        super()._build()
        pod = self.pods[POD]
        for netns, device, address in (
            (self.node, "eth0", f"{NODE6}/64"),
            (self.server_ns, "eth0", f"{ROUTER6}/64"),
            (pod, "eth0", f"{POD6}/128"),
            *((self.server_ns, "lo", f"{address}/128") for address in (SERVER6, WEB, NEIGHBOUR)),
        ):
            run(["ip", "-n", netns, "addr", "add", address, "dev", device, "nodad"])
        self.nsenter(self.node, "sysctl", "-q", "net.ipv6.conf.all.forwarding=1")
        self._ip(self.node, f"-6 route add default via {ROUTER6}", f"-6 route add {POD6}/128 dev pod5")
        self._ip(self.server_ns, f"-6 route add fd00:244::/32 via {NODE6}")
        self._ip(pod, f"-6 route add default via {GATEWAY6} dev eth0 onlink")
        self._ip(self.node, "-6 rule add fwmark 0x53000000/0xff000000 lookup 1053")
        self._ip(self.node, "-6 route add local default dev lo table 1053")

    def keep_sockets(self) -> None:
        with inside(self.node):
            self.listeners = sockets.opened("169.254.1.53", "fd6e:6574::53")

    def pod_socket6(self, kind: socket.SocketKind = socket.SOCK_DGRAM) -> socket.socket:
        with inside(self.pods[POD]):
            sock = socket.socket(socket.AF_INET6, kind)
        sock.settimeout(5)
        return sock

    def look_up6(self, name: str, kind: str = "AAAA", timeout_s: float = 5.0) -> dnslib.DNSRecord:
        with self.pod_socket6() as sock:
            sock.settimeout(timeout_s)
            sock.connect((SERVER6, 53))
            sock.send(question(name, kind))
            return dnslib.DNSRecord.parse(sock.recv(65535))


class Programs6(Programs):
    def __init__(self, wire: Wire6, built: Compiled) -> None:
        super().__init__(wire, built)
        macs = (self._link(wire.pods[POD], "eth0")["address"], self._link(wire.node, "pod5")["address"])
        for netns, address, mac, device in (
            (wire.node, POD6, macs[0], "pod5"),
            (wire.pods[POD], GATEWAY6, macs[1], "eth0"),
        ):
            run(["ip", "-n", netns, "neigh", "replace", address, "lladdr", mac, "dev", device, "nud", "permanent"])

    def _fill(self) -> None:
        super()._fill()
        self.config = replace(self.config, node6=pack(NODE6), pod_net6=pack("fd00:244:1::"), pod_net6_bits=48)

    def admit(self, address: str, number: int) -> None:
        super().admit(address, number)  # with a new generation, so the whole of config is written
        tables = self.wire.maps
        tables["endpoints"].put(pack(POD6), tables["endpoints"].get(pack(POD)) or b"")
        for four, six, node in ((POD, POD6, pack(NODE6)), (SERVER, SERVER6, bytes(16))):
            identity = Identity.unpack(tables["identities"].get(PrefixKey(128, pack(four)).pack()) or b"")
            tables["identities"].put(PrefixKey(128, pack(six)).pack(), replace(identity, node=node).pack())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return compiled(tmp_path_factory.mktemp("programs"))


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire6]:
    with Wire6(tmp_path) as made:
        made.rules(rules_text(endpoint(ENDPOINT, POD, {SELECTOR: API}) | {"addresses": [POD, POD6]}))
        made.keep_sockets()
        yield made


@pytest.fixture
def programs(wire: Wire6, built: Compiled) -> Programs6:
    return Programs6(wire, built)


@pytest.fixture
def server(wire: Wire6) -> Iterator[Server]:
    with inside(wire.server_ns):
        web = socket.create_server(("::", 443), family=socket.AF_INET6)
    with web, Server(wire.server_ns, SERVER6, zone=dict(ZONE)) as made:
        yield made


def reaches(wire: Wire6, address: str) -> bool:
    with wire.pod_socket6(socket.SOCK_STREAM) as sock:
        sock.settimeout(0.5)
        try:
            sock.connect((address, 443))
        except TimeoutError:
            return False
        return True


def test_an_address_is_open_once_its_name_was_looked_up_and_no_other(
    wire: Wire6, server: Server, programs: Programs6
) -> None:
    wire.start()
    assert not reaches(wire, WEB)
    answer = wire.look_up6("Api.Anthropic.COM")
    assert [str(record.rdata) for record in answer.rr] == [WEB]
    assert wire.learned(ENDPOINT, WEB).keys() == {SELECTOR}
    assert reaches(wire, WEB)
    assert wire.look_up6("evil.example").header.rcode == dnslib.RCODE.REFUSED
    assert not reaches(wire, NEIGHBOUR)
    assert server.asked == [("udp", API)]
    assert programs.counted(Verdict.REDIRECTED_DNS) >= 2


def test_dns_by_tcp_goes_the_same_way(wire: Wire6, server: Server, programs: Programs6) -> None:
    wire.start()
    with wire.pod_socket6(socket.SOCK_STREAM) as sock:
        sock.connect((SERVER6, 53))
        for name in (API, "evil.example"):
            sock.sendall(framed(question(name, "AAAA")))
        codes = {dnslib.DNSRecord.parse(receive_framed(sock)).header.rcode for _ in range(2)}
    assert codes == {dnslib.RCODE.NOERROR, dnslib.RCODE.REFUSED}
    assert server.asked == [("tcp", API)]
    assert reaches(wire, WEB)


def test_beside_it_questions_over_ipv4_are_served(wire: Wire6, server: Server, programs: Programs6) -> None:
    wire.start()
    with Server(wire.server_ns, zone=dict(ZONE)) as four:
        assert wire.look_up(API, "AAAA").header.rcode == 0
        assert wire.look_up6(API).header.rcode == 0
        assert (four.asked, server.asked) == ([("udp", API)], [("udp", API)])


def test_what_is_asked_while_the_daemon_is_away_is_answered_by_the_next(
    wire: Wire6, server: Server, programs: Programs6
) -> None:
    wire.start()
    wire.kill()
    with wire.pod_socket6() as udp, wire.pod_socket6(socket.SOCK_STREAM) as tcp:
        for sock in (udp, tcp):
            sock.connect((SERVER6, 53))
        udp.send(question(API, "AAAA"))
        tcp.sendall(framed(question(API, "AAAA")))
        wire.start()
        assert dnslib.DNSRecord.parse(udp.recv(512)).header.rcode == 0
        assert dnslib.DNSRecord.parse(receive_framed(tcp)).header.rcode == 0


def test_another_server_of_the_node_is_not_taken_for_the_proxy(
    wire: Wire6, server: Server, programs: Programs6
) -> None:
    """It listens at [::]:53, and the proxy does not: questions go nowhere."""
    for sock in wire.listeners:
        sock.close()
    wire.listeners = []
    with Server(wire.node, "::", zone=dict(ZONE)) as other:
        with pytest.raises(TimeoutError):
            wire.look_up6(API, timeout_s=0.5)
        with wire.pod_socket6(socket.SOCK_STREAM) as tcp, pytest.raises(TimeoutError):
            tcp.settimeout(0.5)
            tcp.connect((SERVER6, 53))
        assert (other.asked, server.asked) == ([], [])
    assert programs.counted(Verdict.NO_PROXY) >= 2
