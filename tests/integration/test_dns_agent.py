"""A policy by name, whole: the real agent compiles it, the real proxy teaches, the real programs judge packets."""

from __future__ import annotations

import contextlib
import itertools
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dnslib
import pytest
import yaml

from instruments.board import LAN, Board, Pod, ip, wait_for
from instruments.dns_talk import question
from instruments.dns_wire import Server, framed, receive_framed
from instruments.netns import inside

pytestmark = pytest.mark.root

API, WEB = "api.x.io", "192.0.2.10"
EVIL, NEIGHBOR = "evil.example", "192.0.2.66"
CLUSTER_DNS, CACHE = "10.96.0.10", "169.254.20.10"
ZONE = {
    API: (f"{API}. 30 A {WEB}",),
    EVIL: (f"{EVIL}. 30 A {NEIGHBOR}",),
    "a.b.x.io": (f"a.b.x.io. 30 A {WEB}",),
    "x.io": (f"x.io. 30 A {NEIGHBOR}",),
    "nas.home.lan": (f"nas.home.lan. 30 A {LAN}",),
}
SHUT = "egress: [{}]"
BY_NAME = "egress: [{toFQDNs: [{%s}], toPorts: [{ports: [{port: '443', protocol: TCP}]}]}]"
LISTED = BY_NAME % f"matchName: {API}"
NO_ANSWER_S = 0.4
SEARCH = "search default.svc.cluster.local svc.cluster.local home.lan\n"


class Home:
    """A board with the cluster's DNS as a pod, and two web servers out in the world."""

    def __init__(self, board: Board) -> None:
        self.board = board
        for address in (WEB, NEIGHBOR):
            ip("-n", board.lan, "addr", "add", f"{address}/32", "dev", "lo")
        self._dns_pod = board.add("kube-system/coredns", {"k8s-app": "kube-dns"})
        board.put("kube-dns", *_cluster_dns(self._dns_pod.address))
        self.server = Server(self._dns_pod.netns, self._dns_pod.address, zone=dict(ZONE))
        self._pods = itertools.count(1)
        self.begin()

    def begin(self) -> None:
        """A new pod, that has learned nothing."""
        self.pod = self.board.add(f"default/agent{next(self._pods)}", {"app": "agent"})
        self.server.asked.clear()

    def clear(self) -> None:
        """As it was, but for the pod."""
        for path in self.board.folder.glob("manifests/*-policy.yaml"):
            self.delete(path.stem)
        if self.board.dns is None:
            self.board.start_dns()

    def apply(self, name: str, spec: str, **annotations: str) -> None:
        """Put the policy in force."""
        metadata = {"name": name, "namespace": "default", "annotations": annotations}
        kind = {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy"}
        selected = yaml.safe_load("endpointSelector: {matchLabels: {app: agent}}")
        before = self.board.ask("status")["generation"]
        self.board.put(f"{name}-policy", {**kind, "metadata": metadata, "spec": selected | yaml.safe_load(spec)})
        wait_for(f"{name} to be in force", lambda: self.board.ask("status")["generation"] != before)

    def delete(self, name: str) -> None:
        before = self.board.ask("status")["generation"]
        (self.board.folder / f"manifests/{name}.yaml").unlink()
        wait_for(f"{name} to be gone", lambda: self.board.ask("status")["generation"] != before)

    def socket(self, kind: socket.SocketKind = socket.SOCK_STREAM, pod: Pod | None = None) -> socket.socket:
        with inside((pod or self.pod).netns):
            sock = socket.socket(socket.AF_INET, kind)
        sock.settimeout(5)
        return sock

    def look_up(self, name: str, *, server: str = CLUSTER_DNS, transport: str = "udp", timeout_s: float = 5) -> int:
        """The response code. TimeoutError."""
        with self.socket(socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout_s)
            sock.connect((server, 53))
            sock.sendall(question(name) if transport == "udp" else framed(question(name)))
            answer = sock.recv(512) if transport == "udp" else receive_framed(sock)
            return int(dnslib.DNSRecord.parse(answer).header.rcode)

    def connects(self, address: str, port: int = 443) -> bool:
        """Whether a connection of the pod arrives there, by TCP."""
        with inside(self.board.lan), contextlib.closing(socket.create_server((address, port))), self.socket() as sock:
            sock.settimeout(NO_ANSWER_S)
            try:
                sock.connect((address, port))
            except TimeoutError:
                return False
            return True

    def delivers(self, address: str, port: int) -> bool:
        """... or by UDP."""
        with inside(self.board.lan):
            there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with there, self.socket(socket.SOCK_DGRAM) as sock:
            there.bind((address, port))
            there.settimeout(NO_ANSWER_S)
            sock.sendto(b"x", (address, port))
            try:
                return there.recv(1) == b"x"
            except TimeoutError:
                return False

    @contextlib.contextmanager
    def connected(self, address: str) -> Iterator[tuple[socket.socket, socket.socket]]:
        """A connection of the pod to port 443, and its other end."""
        with inside(self.board.lan):
            listening = socket.create_server((address, 443))
        with listening, self.socket() as sock:
            sock.connect((address, 443))
            with listening.accept()[0] as other:
                yield sock, other

    def resolves(self, name: str, resolver: str, search: str = "", by: str = "getent -s dns ahostsv4") -> set[str]:
        """The addresses that a program in the pod finds: by default glibc's."""
        conf = self.board.folder / "resolv.conf"
        conf.write_text(f"nameserver {resolver}\n{search}options ndots:5 timeout:2 attempts:1\n")
        script = f"mount --bind {conf} /etc/resolv.conf; {by} {name}"
        enter = ["nsenter", f"--net=/run/netns/{self.pod.netns}", "unshare", "--mount", "sh", "-c", script]
        found = subprocess.run(enter, capture_output=True, text=True, check=False)
        return {line.split()[0] for line in found.stdout.splitlines()}


def _cluster_dns(address: str) -> list[dict[str, Any]]:
    metadata = {"name": "kube-dns", "namespace": "kube-system"}
    ports = [{"name": f"dns-{way}", "port": 53, "protocol": way.upper()} for way in ("udp", "tcp")]
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"clusterIP": CLUSTER_DNS, "ports": ports, "selector": {"k8s-app": "kube-dns"}},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**metadata, "labels": {"kubernetes.io/service-name": "kube-dns"}},
            "addressType": "IPv4",
            "ports": ports,
            "endpoints": [{"addresses": [address], "nodeName": "n1"}],
        },
    ]


@contextlib.contextmanager
def furnished(folder: Path, number: int = 0, **settings: Any) -> Iterator[Home]:
    with Board(folder, number, **settings) as board:
        board.load()
        board.start()
        home = Home(board)
        board.start_dns()
        with home.server:
            wait_for("the cluster's DNS", lambda: not home.look_up(API))
            home.server.asked.clear()
            yield home


@pytest.fixture(scope="module")
def furniture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with furnished(tmp_path_factory.mktemp("board")) as made:
        yield made


@pytest.fixture
def home(furniture: Home) -> Iterator[Home]:
    furniture.begin()
    yield furniture
    furniture.clear()


def test_names_without_ports_open_every_port_and_protocol_of_their_addresses(home: Home) -> None:
    home.apply("by-name", f"egress: [{{toFQDNs: [{{matchName: {API}}}]}}]")
    assert not home.connects(NEIGHBOR) and not home.delivers(NEIGHBOR, 9)
    assert home.look_up(API) == 0
    assert home.connects(WEB) and home.connects(WEB, 8443) and home.delivers(WEB, 9)
    assert not home.connects(NEIGHBOR) and not home.delivers(NEIGHBOR, 9)
    assert home.look_up(EVIL) == dnslib.RCODE.REFUSED
    assert home.server.asked == [("udp", API)]


def test_a_range_of_ports_ends_where_it_says(home: Home) -> None:
    ports = "{port: '8001', endPort: 8010, protocol: TCP}"
    home.apply("by-name", f"egress: [{{toFQDNs: [{{matchName: {API}}}], toPorts: [{{ports: [{ports}]}}]}}]")
    assert home.look_up(API) == 0
    assert {port for port in (8000, 8001, 8006, 8010, 8011) if home.connects(WEB, port)} == {8001, 8006, 8010}
    assert not home.delivers(WEB, 8006)
    assert not home.connects(NEIGHBOR, 8006)


def test_two_stars_are_names_of_any_depth_below_a_domain(home: Home) -> None:
    home.apply("by-name", BY_NAME % "matchPattern: '**.x.io'")
    assert home.look_up("x.io") == home.look_up("evilx.io") == dnslib.RCODE.REFUSED
    assert home.server.asked == []
    assert home.look_up("a.b.x.io") == home.look_up("a.b.x.io", transport="tcp") == 0
    assert home.connects(WEB)
    assert not home.connects(NEIGHBOR)


def test_a_policy_deleted_while_the_proxy_is_dead_closes_what_it_opened(home: Home) -> None:
    home.apply("shut", SHUT)
    home.apply("by-name", LISTED)
    assert home.look_up(API) == 0
    with home.connected(WEB) as ends:
        home.board.stop_dns(signal.SIGKILL)
        assert speaks(*ends)
        home.delete("by-name-policy")
        assert not speaks(*ends)
    assert not home.connects(WEB)


def test_a_policy_that_begins_leaves_the_connections_to_names_that_it_allows(home: Home) -> None:
    """Nobody asked the proxy: it heard what the cluster's DNS told the pod."""
    assert home.look_up(API) == home.look_up(EVIL) == 0
    wait_for("both names to be heard", lambda: home.board.ask_dns("status")["heard"] >= 2)
    with home.connected(WEB) as allowed, home.connected(NEIGHBOR) as other:
        assert speaks(*allowed) and speaks(*other)
        home.apply("by-name", LISTED)
        assert speaks(*allowed)
        assert not speaks(*other)
    assert home.connects(WEB)
    assert not home.connects(NEIGHBOR)


def test_a_name_of_the_lan_opens_where_the_policy_says_so(home: Home) -> None:
    name = "nas.home.lan"
    home.apply("by-name", BY_NAME % f"matchName: {name}")
    assert home.look_up(name) == 0
    assert not home.connects(LAN)
    home.apply("by-name", BY_NAME % f"matchName: {name}", **{"netstack.kubelab.io/lan-names": "true"})
    assert not home.connects(LAN), "nobody has asked since"
    assert home.look_up(name) == 0
    assert home.connects(LAN)


def test_a_home_with_public_addresses_is_a_lan_too(home: Home) -> None:
    address, name = "198.51.100.7", "tv.example"
    home.server.zone[name] = (f"{name}. 30 A {address}",)
    home.apply("by-name", BY_NAME % f"matchName: {name}")
    ip("-n", home.board.lan, "addr", "add", f"{address}/32", "dev", "lo")
    assert home.look_up(name) == 0
    assert home.connects(address), "by the gateway"
    ip("-n", home.board.node, "addr", "add", "198.51.100.1/24", "dev", "eth0")
    rules = home.board.folder / "state/dns-rules.json"
    wait_for("the new network", lambda: "198.51.100.0/24" in rules.read_text())
    home.begin()
    assert home.look_up(name) == 0
    assert not home.connects(address)
    home.apply("by-name", BY_NAME % f"matchName: {name}", **{"netstack.kubelab.io/lan-names": "true"})
    assert home.look_up(name) == 0
    assert home.connects(address)
    ip("-n", home.board.node, "addr", "del", "198.51.100.1/24", "dev", "eth0")


def speaks(sock: socket.socket, other: socket.socket) -> bool:
    """Within what a repetition by TCP takes."""
    sock.send(b"still here")
    other.settimeout(1)
    try:
        return bool(other.recv(64))
    except TimeoutError:
        return False


# ---- musl, which Alpine has ----


@pytest.fixture(scope="module")
def musl(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A program that asks by this library."""
    program = tmp_path_factory.mktemp("musl") / "look_up"
    source = Path(__file__).parents[1] / "instruments/look_up.c"
    subprocess.run(["musl-gcc", "-static", "-o", program, source], check=True)
    return str(program)


@pytest.mark.parametrize(("refuse_with", "found"), [("NXDOMAIN", {WEB}), ("REFUSED", set())])
def test_musl_goes_on_to_the_name_if_names_with_search_domains_do_not_exist(
    home: Home, musl: str, refuse_with: str, found: set[str]
) -> None:
    home.begin()
    home.apply("by-name", LISTED)
    home.board.stop_dns()
    home.board.start_dns(refuse_with=refuse_with)
    try:
        assert home.resolves(API, CLUSTER_DNS, SEARCH, by=musl) == found
        assert [name for _, name in home.server.asked] == [API] * len(found)
        assert home.connects(WEB) == bool(found)
        assert home.resolves(API, CLUSTER_DNS, by=musl) == {WEB}, "without search domains it asks for the name alone"
    finally:
        home.board.stop_dns()


# ---- search domains ----


DOMAINS = ("<namespace>.svc.cluster.local", "svc.cluster.local", "home.lan")


@pytest.fixture(scope="module")
def expanding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with furnished(tmp_path_factory.mktemp("board"), 1, dns_search=DOMAINS) as home:
        home.apply("by-name", LISTED)
        yield home


def test_a_resolver_with_search_domains_goes_on_to_the_name(expanding: Home) -> None:
    expanding.begin()
    assert expanding.resolves(API, CLUSTER_DNS, SEARCH) == {WEB}
    assert [name for _, name in expanding.server.asked] == [
        f"{API}.default.svc.cluster.local",
        f"{API}.svc.cluster.local",
        f"{API}.home.lan",
        API,
    ]
    assert expanding.connects(WEB)
    assert expanding.resolves(EVIL, CLUSTER_DNS, SEARCH) == set()
    assert len(expanding.server.asked) == 4, "nothing of a name that is not allowed went to the server"


def test_what_autopath_answers_opens_the_name_that_was_meant(expanding: Home) -> None:
    expanding.begin()
    expanded = f"{API}.default.svc.cluster.local"
    expanding.server.zone[expanded] = f"{expanded}. 30 CNAME {API}.", f"{API}. 30 A {WEB}"
    assert not expanding.connects(WEB)
    assert expanding.resolves(API, CLUSTER_DNS, SEARCH) == {WEB}
    assert expanding.server.asked == [("udp", expanded)]
    assert expanding.connects(WEB)
    del expanding.server.zone[expanded]


# ---- a DNS cache on the node ----


@contextlib.contextmanager
def caching(home: Home) -> Iterator[Server]:
    ip("-n", home.board.node, "addr", "add", f"{CACHE}/32", "dev", "lo")
    with Server(home.board.node, CACHE, zone=dict(ZONE)) as cache:
        yield cache


def test_a_cache_on_the_node_is_asked_through_the_proxy(tmp_path: Path) -> None:
    with furnished(tmp_path, 2, dns_caches=[CACHE]) as home, caching(home) as cache:
        home.apply("by-name", LISTED)
        home.board.serve(home.board.node, 8080, address=CACHE)
        for transport in ("udp", "tcp"):
            assert home.look_up(API, server=CACHE, transport=transport) == 0
            assert home.look_up(EVIL, server=CACHE, transport=transport) == dnslib.RCODE.REFUSED
        assert cache.asked == [("udp", API), ("tcp", API)]
        assert home.server.asked == []
        assert home.connects(WEB)
        assert not home.connects(NEIGHBOR)
        assert home.board.connect(home.pod, CACHE, 8080, NO_ANSWER_S) == "", "its other ports are the node's"
        assert home.resolves(API, CACHE) == {WEB}
        home.board.stop_dns(signal.SIGKILL)
        with pytest.raises((TimeoutError, ConnectionError)):
            home.look_up(API, server=CACHE, timeout_s=NO_ANSWER_S)
        assert len(cache.asked) == 3


def test_a_cache_that_no_setting_names_is_not_asked(home: Home) -> None:
    with caching(home) as cache:
        assert home.look_up(API, server=CACHE) == 0
        home.apply("by-name", LISTED)
        for transport in ("udp", "tcp"):
            with pytest.raises(TimeoutError):
                home.look_up(API, server=CACHE, transport=transport, timeout_s=NO_ANSWER_S)
        assert cache.asked == [("udp", API)]
