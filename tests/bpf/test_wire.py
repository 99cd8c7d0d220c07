"""Two nodes, their pods and a LAN, with the loader's own attachments: what passes is seen at the other end.

The kernel's part (routing between pods and nodes, strict reverse-path filtering, neighbours) is what the agent sets up.
Processes of these tests sit in no cgroup of the nodes, so every service packet is translated by tc.
"""

from __future__ import annotations

import errno
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from bpf.home import Home, home
from bpf.namespaces import Namespace
from bpf.packet import monotonic_ns
from netstack.core.address import ANY, Prefix, pack
from netstack.core.verdict import Verdict
from netstack.kernel import layout as l
from netstack.kernel.attach import TrafficControl, attach_pinned

pytestmark = pytest.mark.root

CLIENT, VIP, SERVICE, GATEWAY, PROXY = "192.168.86.50", "192.168.86.18", "10.96.0.10", "169.254.1.1", "169.254.1.53"
TRANSPARENT = 19  # IP_TRANSPARENT
FIN_WAIT2, LISTEN = 5, 10
STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
FORGED = 5


@dataclass
class Pod:
    namespace: Namespace
    address: str
    number: int
    identity: int
    device: int = 0
    mac: bytes = b""
    host_mac: bytes = b""


class Node:
    """One node: its home, its pods, and what an agent would write."""

    def __init__(self, made: Home, number: int) -> None:
        self.home = made
        self.number = number
        self.namespace = made.namespace
        self.address = f"192.168.86.2{number}"
        self.pods: list[Pod] = []
        with self.namespace.entered(), TrafficControl() as traffic:
            link = traffic.link("eth0")
            assert link is not None
            self.uplink, self.mac = link.index, link.mac

    def configure(self, generation: int = 1) -> None:
        config = l.Config(
            node4=pack(self.address),
            pod_net4=pack(f"10.244.{self.number}.0"),
            pod_net4_bits=120,
            uplink=self.uplink,
            generation=generation,
        )
        self.home.put("config", l.Number(0), config)

    def add(self, pod: Pod) -> Pod:
        """What CNI ADD does: a veth, addresses, the one neighbour, the programs, and only then the endpoint."""
        name = f"pod{pod.number}"
        self.namespace.link(name, "eth0", pod.namespace)
        pod.namespace.ip("addr", "add", f"{pod.address}/32", "dev", "eth0")
        pod.namespace.ip("route", "add", GATEWAY, "dev", "eth0")
        pod.namespace.ip("route", "add", "default", "via", GATEWAY)
        with pod.namespace.entered(), TrafficControl() as traffic:
            inside = traffic.link("eth0")
        with self.namespace.entered(), TrafficControl() as traffic:
            outside = traffic.link(name)
            assert inside is not None and outside is not None
            attach_pinned(traffic, self.home.pins, outside.index)
            traffic.put_neighbour(outside.index, pack(pod.address), inside.mac)
        self.namespace.ip("route", "add", pod.address, "dev", name)
        with pod.namespace.entered(), TrafficControl() as traffic:
            traffic.put_neighbour(inside.index, pack(GATEWAY), outside.mac)
        pod.device, pod.mac, pod.host_mac = outside.index, inside.mac, outside.mac
        self.pods.append(pod)
        self.enforce(pod, 0)
        return pod

    def enforce(self, pod: Pod, directions: int) -> None:
        endpoint = l.Endpoint(pod.number, pod.device, pod.identity, directions, pod.mac, pod.host_mac)
        self.home.flows().add(pod.number)
        self.home.put("endpoints", l.AddressKey(pack(pod.address)), endpoint)

    def identity(self, prefix: str, identity: int, node: str) -> None:
        parsed = Prefix.parse(prefix)
        self.home.put("identities", l.PrefixKey(parsed.bits, parsed.address), l.Identity(identity, 0, pack(node)))

    def rule(self, pod: Pod, action: int, peer: int, port: int, direction: int, protocol: int = 6) -> None:
        key = l.PolicyKey(l.POLICY_BITS_PORT, pod.number, peer, direction, protocol, port)
        self.home.put("policy", key, l.PolicyRule(1, action))

    def service(
        self, address: str, port: int, number: int, backend: tuple[str, int, str], scopes: tuple[int, ...]
    ) -> None:
        at, at_port, node = backend
        self.home.put("backends", l.Number(number), l.Backend(pack(at), pack(node), at_port))
        self.home.put("slots", l.Number(number), l.Number(number))
        for scope in scopes:
            for protocol in (6, 17):
                key = l.ServiceKey(pack(address) if address else ANY, port, protocol, scope)
                self.home.put("services", key, l.Service(number, number, 1, 0, 0, 1))

    def owns(self, address: str, seconds: float) -> None:
        deadline = monotonic_ns(seconds) if seconds else 0
        self.home.put("vips", l.VipKey(pack(address), self.uplink), l.Vip(deadline, 1, self.mac))

    def count(self, verdict: Verdict) -> int:
        with self.home.map("counters") as counters:
            return counters.sums()[verdict]


@dataclass
class Lan:
    switch: Namespace
    client: Namespace
    nodes: tuple[Node, Node]
    near: Pod  # on the first node
    neighbour: Pod  # beside it
    far: Pod  # on the second node


def _sysctl(namespace: Namespace, **values: int) -> None:
    with namespace.entered():
        for name, value in values.items():
            Path("/proc/sys/net/ipv4", *name.split("__")).write_text(str(value))


@contextmanager
def two_nodes(folder: Callable[[str], Path]) -> Iterator[Lan]:
    """`folder`: makes one of this name."""
    with ExitStack() as stack:

        def namespace() -> Namespace:
            made = Namespace()
            stack.callback(made.close)
            return made

        switch, client = namespace(), namespace()
        switch.ip("link", "add", "br0", "type", "bridge")
        switch.ip("link", "set", "br0", "up")

        def plug(host: Namespace, name: str, address: str) -> None:
            host.link("eth0", name, switch)
            switch.ip("link", "set", name, "master", "br0")
            host.ip("addr", "add", f"{address}/24", "dev", "eth0")

        plug(client, "client", CLIENT)
        nodes = []
        for number in (1, 2):
            host = namespace()
            plug(host, f"node{number}", f"192.168.86.2{number}")
            host.ip("route", "add", f"10.244.{3 - number}.0/24", "via", f"192.168.86.2{3 - number}")
            _sysctl(host, ip_forward=1, conf__all__rp_filter=1, conf__eth0__rp_filter=1)
            made = stack.enter_context(home(folder(f"node{number}"), host))
            made.load()
            nodes.append(Node(made, number))
        first, second = nodes
        near = first.add(Pod(namespace(), "10.244.1.3", 11, 1001))
        neighbour = first.add(Pod(namespace(), "10.244.1.4", 12, 1002))
        far = second.add(Pod(namespace(), "10.244.2.3", 21, 1003))
        for node in nodes:
            node.configure()
            for number in (1, 2):
                identity = l.IDENTITY_HOST if number == node.number else l.IDENTITY_REMOTE_NODE
                node.identity(f"192.168.86.2{number}/32", identity, f"192.168.86.2{number}")
                node.identity(f"10.244.{number}.0/24", l.IDENTITY_UNMANAGED, f"192.168.86.2{number}")
            for owner in nodes:
                for pod in owner.pods:
                    node.identity(f"{pod.address}/32", pod.identity, owner.address)
            node.service(VIP, 80, 40, (far.address, 8080, second.address), (l.SCOPE_WORLD, l.SCOPE_CLUSTER))
            node.service(SERVICE, 80, 41, (far.address, 8081, second.address), (l.SCOPE_CLUSTER,))
            node.service(SERVICE, 81, 42, (neighbour.address, 8082, first.address), (l.SCOPE_CLUSTER,))
            node.service("", 30080, 43, (node.address, 8123, node.address), (l.SCOPE_WORLD,))
            node.owns(VIP, 0)
            with node.namespace.entered(), TrafficControl() as traffic:
                traffic.keep_neighbour(node.uplink, pack(nodes[2 - node.number].address))
        yield Lan(switch, client, (first, second), near, neighbour, far)


@pytest.fixture(scope="module")
def lan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lan]:
    with two_nodes(tmp_path_factory.mktemp) as made:
        yield made


# ---- talk ----


def opened(
    namespace: Namespace, kind: int, *, bind: tuple[str, int] | None = None, transparent: bool = False
) -> socket.socket:
    """A socket of this namespace; it may be used from anywhere."""
    with namespace.entered():
        made = socket.socket(socket.AF_INET, kind)
    made.settimeout(3)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if transparent:
        made.setsockopt(socket.IPPROTO_IP, TRANSPARENT, 1)
    if bind is not None:
        made.bind(bind)
        if kind == STREAM:
            made.listen()
    return made


@contextmanager
def connection(
    client: Namespace, to: tuple[str, int], server: Namespace, at: tuple[str, int]
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A TCP connection from `client` to the address `to`, which `server` accepts at `at`: (client's end, server's)."""
    with opened(server, STREAM, bind=at) as listener, opened(client, STREAM) as near:
        near.connect(to)
        far, _ = listener.accept()
        far.settimeout(3)
        with far:
            yield near, far


def exchange(near: socket.socket, far: socket.socket, size: int = 200_000) -> None:
    """Bytes both ways, more than one segment, so that offloads and checksums are real."""
    for source, sink in ((near, far), (far, near)):
        sent = (bytes(i * 7 & 0xFF for i in range(256)) * (size // 256 + 1))[:size]
        received = bytearray()
        source.setblocking(False)
        view, deadline = memoryview(sent), time.monotonic() + 10
        while len(received) < size:
            assert time.monotonic() < deadline
            if view:
                with suppress(BlockingIOError):
                    view = view[source.send(view) :]
            received += sink.recv(65536)
        source.settimeout(3)
        assert received == sent


def wait_until(condition: Callable[[], bool], patience_s: float = 30) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def refused(client: Namespace, to: tuple[str, int]) -> None:
    """Nothing comes back, not even a reset."""
    with opened(client, STREAM) as near:
        near.settimeout(0.4)
        with pytest.raises(TimeoutError):
            near.connect(to)


# ---- the LAN to a LoadBalancer address ----


@pytest.fixture
def owner(lan: Lan) -> Iterator[Callable[[int], None]]:
    """Make one node the owner of the address; afterwards nobody is."""

    def own(index: int) -> None:
        for i, node in enumerate(lan.nodes):
            node.owns(VIP, 60 if i == index else 0)

    yield own
    for node in lan.nodes:
        node.owns(VIP, 0)
    lan.client.ip("neigh", "flush", "dev", "eth0")


def mac_of(lan: Lan, address: str) -> str:
    words = lan.client.ip("neigh", "show", address, "dev", "eth0").split()
    return words[words.index("lladdr") + 1] if "lladdr" in words else ""


def test_an_address_that_nobody_owns_is_silent(lan: Lan) -> None:
    with opened(lan.client, STREAM) as near:
        near.settimeout(5)
        with pytest.raises(OSError) as refusal:
            near.connect((VIP, 80))
    assert refusal.value.errno == errno.EHOSTUNREACH


def test_the_owner_answers_and_another_nodes_pod_serves(lan: Lan, owner: Callable[[int], None]) -> None:
    owner(0)
    with connection(lan.client, (VIP, 80), lan.far.namespace, (lan.far.address, 8080)) as (near, far):
        assert mac_of(lan, VIP) == lan.nodes[0].mac.hex(":")
        assert far.getpeername()[0] == CLIENT  # nobody stands between
        assert near.getpeername() == (VIP, 80)
        exchange(near, far)


def test_a_connection_survives_the_move_of_its_address(lan: Lan, owner: Callable[[int], None]) -> None:
    owner(0)
    with connection(lan.client, (VIP, 80), lan.far.namespace, (lan.far.address, 8080)) as (near, far):
        exchange(near, far)
        owner(1)
        mac = lan.nodes[1].mac.hex(":")
        lan.client.ip("neigh", "replace", VIP, "dev", "eth0", "lladdr", mac, "nud", "reachable")
        exchange(near, far)
        owner(0)
        mac = lan.nodes[0].mac.hex(":")
        lan.client.ip("neigh", "replace", VIP, "dev", "eth0", "lladdr", mac, "nud", "reachable")
        exchange(near, far)


def test_a_second_load_drops_no_packet(lan: Lan, owner: Callable[[int], None]) -> None:
    owner(0)
    with connection(lan.client, (VIP, 80), lan.far.namespace, (lan.far.address, 8080)) as (near, far):
        exchange(near, far)
        for node in lan.nodes:
            assert node.home.load() == []
        exchange(near, far)


def test_other_ports_of_the_address_are_silent_and_not_routed(lan: Lan, owner: Callable[[int], None]) -> None:
    owner(0)
    before = lan.nodes[0].count(Verdict.NO_SERVICE)
    refused(lan.client, (VIP, 81))
    assert lan.nodes[0].count(Verdict.NO_SERVICE) > before


def test_a_node_port_reaches_a_server_of_the_host(lan: Lan) -> None:
    node = lan.nodes[0]
    with connection(lan.client, (node.address, 30080), node.namespace, (node.address, 8123)) as (near, far):
        assert far.getpeername()[0] == CLIENT
        exchange(near, far)


# ---- pods ----


def test_pods_talk_on_one_node_and_between_nodes(lan: Lan) -> None:
    for server in (lan.neighbour, lan.far):
        with connection(lan.near.namespace, (server.address, 7000), server.namespace, (server.address, 7000)) as (
            near,
            far,
        ):
            assert far.getpeername()[0] == lan.near.address
            exchange(near, far)


@pytest.mark.parametrize(("port", "at"), [(80, 8081), (81, 8082)])
def test_a_service_that_no_socket_hook_translated(lan: Lan, port: int, at: int) -> None:
    server = lan.far if port == 80 else lan.neighbour
    with connection(lan.near.namespace, (SERVICE, port), server.namespace, (server.address, at)) as (near, far):
        assert far.getpeername()[0] == lan.near.address
        exchange(near, far)


def test_a_pod_asks_the_world_with_its_nodes_address(lan: Lan) -> None:
    with connection(lan.near.namespace, (CLIENT, 9000), lan.client, (CLIENT, 9000)) as (near, far):
        host, port = far.getpeername()
        assert host == lan.nodes[0].address and 49152 <= port <= 65535
        exchange(near, far)


def test_masqueraded_datagrams_and_their_errors(lan: Lan) -> None:
    with opened(lan.near.namespace, DATAGRAM) as near:
        with opened(lan.client, DATAGRAM, bind=(CLIENT, 9001)) as far:
            near.connect((CLIENT, 9001))
            near.send(b"?")
            data, peer = far.recvfrom(10)
            far.sendto(b"!", peer)
            assert (data, near.recv(10), peer[0]) == (b"?", b"!", lan.nodes[0].address)
        near.send(b"?")  # nobody listens any more: port unreachable, quoted packet and all, back to the pod
        with pytest.raises(ConnectionRefusedError):
            near.recv(10)


def test_a_pod_pings_the_world(lan: Lan) -> None:
    with lan.near.namespace.entered():
        Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 0")
        ping = socket.socket(socket.AF_INET, DATAGRAM, socket.IPPROTO_ICMP)
    with ping:
        ping.settimeout(3)
        ping.sendto(struct.pack("!BBHHH", 8, 0, 0, 0, 1) + b"x" * 32, (CLIENT, 0))
        data, peer = ping.recvfrom(100)
        assert peer[0] == CLIENT and data[0] == 0 and data.endswith(b"x" * 32)


def test_the_node_reaches_its_pods_and_they_reach_it(lan: Lan) -> None:
    node = lan.nodes[0]
    node.enforce(lan.near, l.ENFORCE_INGRESS)
    try:
        at = (lan.near.address, 7001)
        with connection(node.namespace, at, lan.near.namespace, at) as (near, far):
            exchange(near, far)
    finally:
        node.enforce(lan.near, 0)
    with connection(lan.near.namespace, (node.address, 7002), node.namespace, (node.address, 7002)) as (near, far):
        exchange(near, far)


def test_default_deny_on_the_wire_and_a_rule_that_opens_one_port(lan: Lan) -> None:
    node, pod = lan.nodes[0], lan.near
    node.enforce(pod, l.ENFORCE_EGRESS | l.ENFORCE_INGRESS)
    try:
        to = (lan.far.address, 7003)
        with opened(lan.far.namespace, STREAM, bind=to), opened(pod.namespace, STREAM, bind=(pod.address, 7003)):
            refused(pod.namespace, to)
            refused(lan.far.namespace, (pod.address, 7003))
        node.rule(pod, l.ACTION_ALLOW, lan.far.identity, 7003, l.DIRECTION_EGRESS)
        with connection(pod.namespace, to, lan.far.namespace, to) as (near, far):
            exchange(near, far)
            node.rule(pod, l.ACTION_DENY, lan.far.identity, 7003, l.DIRECTION_EGRESS)
            exchange(near, far)  # the generation is the old one still
            node.configure(generation=2)
            near.send(b"cut")
            far.send(b"cut")
            for end in (near, far):
                end.settimeout(0.4)
                with pytest.raises(TimeoutError):
                    end.recv(10)
    finally:
        node.enforce(pod, 0)


# ---- DNS ----


@contextmanager
def local_delivery(node: Node) -> Iterator[None]:
    """What the agent sets up for marked packets."""
    rule = ["rule", "add", "fwmark", "0x53000000/0xff000000", "lookup", "1053"]
    node.namespace.ip(*rule)
    node.namespace.ip("route", "add", "local", "default", "dev", "lo", "table", "1053")
    node.namespace.ip("addr", "add", f"{PROXY}/32", "dev", "lo")
    try:
        yield
    finally:
        node.namespace.ip("addr", "del", f"{PROXY}/32", "dev", "lo")
        node.namespace.ip("route", "flush", "table", "1053")
        node.namespace.ip(*(word.replace("add", "del") for word in rule))


@pytest.fixture
def dns(lan: Lan) -> Iterator[tuple[str, int]]:
    """DNS of the near pod towards the far pod goes to the proxy."""
    node, pod = lan.nodes[0], lan.near
    node.enforce(pod, l.ENFORCE_EGRESS)
    for protocol in (6, 17):
        node.rule(pod, l.ACTION_REDIRECT_DNS, lan.far.identity, 53, l.DIRECTION_EGRESS, protocol)
    try:
        with local_delivery(node):
            yield lan.far.address, 53
    finally:
        node.enforce(pod, 0)


def ask(pod: Pod, server: tuple[str, int], seconds: float = 3) -> bytes:
    with opened(pod.namespace, DATAGRAM) as near:
        near.settimeout(seconds)
        near.connect(server)
        near.send(b"question")
        return near.recv(100)


def test_without_a_proxy_no_question_gets_through(lan: Lan, dns: tuple[str, int]) -> None:
    """Neither to the server that was asked nor to one that listens on the node's port 53."""
    before = lan.nodes[0].count(Verdict.NO_PROXY)
    with (
        opened(lan.far.namespace, DATAGRAM, bind=dns) as server,
        opened(lan.nodes[0].namespace, DATAGRAM, bind=("0.0.0.0", 53)) as other,
    ):
        with pytest.raises(TimeoutError):
            ask(lan.near, dns, 0.4)
        for silent in (server, other):
            silent.setblocking(False)
            with pytest.raises(BlockingIOError):
                silent.recv(100)
    refused(lan.near.namespace, dns)
    assert lan.nodes[0].count(Verdict.NO_PROXY) > before


def test_the_proxy_gets_datagrams_and_answers_as_the_server(lan: Lan, dns: tuple[str, int]) -> None:
    node = lan.nodes[0]
    with (
        opened(node.namespace, DATAGRAM, bind=(PROXY, 53), transparent=True) as proxy,
        opened(lan.near.namespace, DATAGRAM) as near,
    ):
        proxy.setsockopt(socket.IPPROTO_IP, 20, 1)  # IP_RECVORIGDSTADDR
        near.connect(dns)
        for _ in range(2):  # the first packet of the flow, and one that conntrack knows
            near.send(b"question")
            data, ancillary, _, peer = proxy.recvmsg(100, 100)
            assert (data, peer[0]) == (b"question", lan.near.address)
            asked = socket.inet_ntoa(ancillary[0][2][4:8])
            assert asked == dns[0]
            source = struct.pack("=I4s4s", 0, socket.inet_aton(asked), bytes(4))
            proxy.sendmsg([b"answer"], [(socket.IPPROTO_IP, 8, source)], 0, peer)  # IP_PKTINFO
            assert near.recv(100) == b"answer"


def test_the_proxy_accepts_connections_as_the_server(lan: Lan, dns: tuple[str, int]) -> None:
    node = lan.nodes[0]
    with (
        opened(node.namespace, STREAM, bind=(PROXY, 53), transparent=True) as proxy,
        opened(lan.near.namespace, STREAM) as near,
    ):
        near.connect(dns)
        accepted, peer = proxy.accept()
        accepted.settimeout(3)
        with accepted:
            assert peer[0] == lan.near.address and accepted.getsockname() == dns
            exchange(near, accepted)


def test_an_answer_past_the_proxy_does_not_arrive(lan: Lan, dns: tuple[str, int]) -> None:
    """The server itself sends what the pod waits for: it comes by the uplink, so it is not the proxy's."""
    node = lan.nodes[0]
    with (
        opened(node.namespace, DATAGRAM, bind=(PROXY, 53), transparent=True) as proxy,
        opened(lan.near.namespace, DATAGRAM) as near,
        opened(lan.far.namespace, DATAGRAM, bind=dns) as server,
    ):
        near.connect(dns)
        near.send(b"question")
        proxy.recv(100)
        before = node.count(Verdict.SPOOFED)
        for _ in range(FORGED):
            server.sendto(b"forged", (lan.near.address, near.getsockname()[1]))
        near.settimeout(0.4)
        with pytest.raises(TimeoutError):
            near.recv(100)
        assert node.count(Verdict.SPOOFED) >= before + FORGED  # a kernel's own words may be among the spoofed


@pytest.mark.parametrize("kind", [DATAGRAM, STREAM], ids=["udp", "tcp"])
@pytest.mark.parametrize("where", ["this node", "another node"])
def test_the_proxy_asks_in_the_pods_name(lan: Lan, dns: tuple[str, int], where: str, kind: int) -> None:
    """A server whose policy lets in that pod alone is asked with the pod's address; its answer goes to the proxy,
    though the pod itself lets in nobody."""
    node, pod = lan.nodes[0], lan.near
    home, server = (node, lan.neighbour) if where == "this node" else (lan.nodes[1], lan.far)
    protocol = 17 if kind == DATAGRAM else 6
    node.enforce(pod, l.ENFORCE_EGRESS | l.ENFORCE_INGRESS | l.PROXIED)
    home.enforce(server, l.ENFORCE_INGRESS)
    home.rule(server, l.ACTION_ALLOW, pod.identity, 1053, l.DIRECTION_INGRESS, protocol)
    try:
        with (
            opened(server.namespace, kind, bind=(server.address, 1053)) as listening,
            opened(node.namespace, kind, transparent=True) as proxy,
            opened(pod.namespace, kind, bind=(pod.address, 40053)) as eavesdropping,
            opened(node.namespace, kind, transparent=True) as stranger,
        ):
            proxy.bind(eavesdropping.getsockname())
            proxy.connect((server.address, 1053))
            far = listening if kind == DATAGRAM else listening.accept()[0]
            for _ in range(2):
                proxy.send(b"question")
                data, peer = far.recvfrom(100)
                assert data == b"question"
                if kind == DATAGRAM:
                    assert peer == (pod.address, proxy.getsockname()[1])
                    far.sendto(b"answer", peer)
                else:
                    assert far.getpeername() == proxy.getsockname()
                    far.send(b"answer")
                assert proxy.recv(100) == b"answer"
            asked_from = proxy.getsockname()
            proxy.close()
            if kind == DATAGRAM:  # with the proxy gone, the answer is nobody's: not even the pod's, at the very port
                far.sendto(b"late", asked_from)
            else:
                far.send(b"late")
            eavesdropping.settimeout(0.3)
            with pytest.raises(TimeoutError):
                eavesdropping.accept() if kind == STREAM else eavesdropping.recv(100)
            if where == "this node" and kind == DATAGRAM:  # in the name of who is not let in
                stranger.bind((lan.neighbour.address, 0))
                stranger.connect((server.address, 1053))
                stranger.send(b"question")
                far.settimeout(0.4)
                with pytest.raises(TimeoutError):
                    far.recv(100)
    finally:
        home.enforce(server, 0)
        node.enforce(pod, 0)


def states(namespace: Namespace, port: int) -> set[int]:
    """Of the TCP connections from or to this port, but listeners: enum in include/net/tcp_states.h."""
    with namespace.entered():
        lines = Path("/proc/thread-self/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    ends = ((line.split()[1:3], int(line.split()[3], 16)) for line in lines)
    return {state for pair, state in ends if any(end.endswith(f":{port:04X}") for end in pair) and state != LISTEN}


@pytest.mark.parametrize(("where", "port"), [("this node", 1055), ("another node", 1056)])
def test_the_servers_farewell_reaches_the_connection_that_the_proxy_has_closed(
    lan: Lan, dns: tuple[str, int], where: str, port: int
) -> None:
    """What is left of it then is no whole socket. A server that is not heard repeats itself for a minute."""
    node, pod = lan.nodes[0], lan.near
    server = lan.neighbour if where == "this node" else lan.far
    node.enforce(pod, l.ENFORCE_EGRESS | l.ENFORCE_INGRESS | l.PROXIED)
    try:
        with (
            opened(server.namespace, STREAM, bind=(server.address, port)) as listening,
            opened(node.namespace, STREAM, transparent=True) as proxy,
        ):
            proxy.bind((pod.address, 0))
            proxy.connect((server.address, port))
            with listening.accept()[0] as far:
                proxy.close()
                assert far.recv(1) == b""
                wait_until(lambda: states(node.namespace, port) == {FIN_WAIT2}, 5)
            wait_until(lambda: not states(server.namespace, port), 3)
    finally:
        node.enforce(pod, 0)


def test_a_port_may_be_the_pods_today_and_the_proxys_tomorrow(lan: Lan, dns: tuple[str, int]) -> None:
    """While the proxy asks in the pod's name, and only then, an answer is the proxy's, whoever asked from that port
    first."""
    node, pod, server = lan.nodes[0], lan.near, lan.neighbour
    with opened(server.namespace, DATAGRAM, bind=(server.address, 1054)) as listening:

        def answered(asker: Namespace) -> bool:
            with opened(asker, DATAGRAM, bind=(pod.address, 40054), transparent=True) as asking:
                asking.connect((server.address, 1054))
                asking.settimeout(0.4)
                asking.send(b"question")
                listening.sendto(b"answer", listening.recvfrom(100)[1])
                with suppress(TimeoutError):
                    return asking.recv(100) == b"answer"
            return False

        node.enforce(pod, 0)
        assert answered(pod.namespace)
        node.enforce(pod, l.ENFORCE_EGRESS | l.PROXIED)
        try:
            assert answered(node.namespace)
        finally:
            node.enforce(pod, 0)
        assert answered(pod.namespace)


# ---- who lies ----


def test_a_pod_without_an_endpoint_is_cut_off(lan: Lan) -> None:
    node = lan.nodes[0]
    with node.home.map("endpoints") as endpoints:
        endpoints.delete(pack(lan.near.address))
        try:
            refused(lan.near.namespace, (lan.neighbour.address, 7004))
            refused(node.namespace, (lan.near.address, 7004))
        finally:
            node.enforce(lan.near, 0)


def test_a_lan_host_that_uses_a_pods_address_gets_nowhere(lan: Lan) -> None:
    node = lan.nodes[0]
    lan.client.ip("addr", "add", f"{lan.neighbour.address}/32", "dev", "eth0")
    lan.client.ip("route", "add", "10.244.1.3/32", "via", node.address)
    try:
        before = node.count(Verdict.SPOOFED)
        with (
            opened(lan.client, DATAGRAM, bind=(lan.neighbour.address, 0)) as liar,
            opened(lan.near.namespace, DATAGRAM, bind=(lan.near.address, 7005)) as near,
        ):
            liar.sendto(b"lie", (lan.near.address, 7005))
            near.settimeout(0.4)
            with pytest.raises(TimeoutError):
                near.recv(10)
        assert node.count(Verdict.SPOOFED) > before  # where it takes long, the liar also asks by ARP for its next hop
    finally:
        lan.client.ip("route", "del", "10.244.1.3/32")
        lan.client.ip("addr", "del", f"{lan.neighbour.address}/32", "dev", "eth0")


def lie(lan: Lan, source: str, to: Pod, payload: bytes) -> None:
    """A datagram for port 7007 that a LAN host writes as it likes, with its own MAC."""
    node = lan.nodes[0]
    packet = IP(src=source, dst=to.address) / UDP(sport=7007, dport=7007) / Raw(payload)
    own = lan.client.ip("-br", "link", "show", "eth0").split()[2]
    with lan.client.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("eth0", 0))
        raw.send(bytes(Ether(src=own, dst=node.mac.hex(":")) / packet))


@pytest.mark.parametrize("who", ["a pod of the other node", "the other node", "no pod of its range"])
def test_a_lan_host_that_uses_another_nodes_addresses_gets_nowhere(lan: Lan, who: str) -> None:
    source = {"a pod of the other node": lan.far.address, "the other node": lan.nodes[1].address}.get(
        who, "10.244.2.99"
    )
    node = lan.nodes[0]
    wait_until(lambda: lan.nodes[1].mac.hex(":") in node.namespace.ip("neigh", "show", lan.nodes[1].address))
    with opened(lan.near.namespace, DATAGRAM, bind=(lan.near.address, 7007)) as near:
        before = node.count(Verdict.SPOOFED)
        lie(lan, source, lan.near, b"lie")
        wait_until(lambda: node.count(Verdict.SPOOFED) == before + 1)
        with opened(lan.far.namespace, DATAGRAM, bind=(lan.far.address, 7007)) as far:
            far.sendto(b"truth", (lan.near.address, 7007))
        assert near.recv(10) == b"truth"


def test_a_replaced_board_is_believed_again(lan: Lan) -> None:
    """Another MAC at the same address: the traffic of its pods goes on as soon as ARP knows."""
    other, mac = lan.nodes[1], lan.nodes[1].mac.hex(":")
    with opened(lan.near.namespace, DATAGRAM, bind=(lan.near.address, 7008)) as near:
        near.settimeout(0.2)

        def arrives() -> bool:
            with opened(lan.far.namespace, DATAGRAM, bind=(lan.far.address, 7008)) as far:
                far.sendto(b"truth", (lan.near.address, 7008))
            with suppress(TimeoutError):
                return near.recv(10) == b"truth"
            return False

        try:
            for now in ("02:00:00:00:aa:22", mac):
                other.namespace.ip("link", "set", "eth0", "down")
                other.namespace.ip("link", "set", "eth0", "address", now)
                other.namespace.ip("link", "set", "eth0", "up")
                other.namespace.ip("route", "replace", "10.244.1.0/24", "via", lan.nodes[0].address)
                wait_until(arrives)
        finally:
            other.namespace.ip("link", "set", "eth0", "address", mac)


def test_an_answer_comes_back_when_nothing_is_left_of_the_lan(lan: Lan) -> None:
    """All of the above left the nodes as they were."""
    for pod in (lan.near, lan.neighbour):
        at = (pod.address, 7006)
        with connection(lan.far.namespace, at, pod.namespace, at) as (near, far):
            exchange(near, far)
    assert "10.244" not in subprocess.run(["ip", "route"], capture_output=True, text=True, check=True).stdout
