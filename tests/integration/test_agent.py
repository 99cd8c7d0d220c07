"""The agent on real namespaces: pods, services, policy, restarts; and the CNI plugin's errors."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from instruments.apiserver import ApiServer
from instruments.board import LAN, NODE, Board, CniFailure, ip, wait_for
from instruments.netns import inside
from instruments.watch import Watch, mac_of, sender
from netstack.agent.__main__ import WANTS
from netstack.core.verdict import Verdict

pytestmark = pytest.mark.root
OTHER_NODE = "192.168.86.22"


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    with Board(tmp_path) as board:
        board.load()
        board.start()
        yield board


def policy(name: str, spec: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "default"}
    kind = {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy"}
    return {**kind, "metadata": metadata, "spec": yaml.safe_load(spec)}


def service(
    name: str, address: str, targets: list[str], port: int = 80, target_port: int = 8080
) -> list[dict[str, Any]]:
    metadata = {"name": name, "namespace": "default"}
    labels = {"kubernetes.io/service-name": name}
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"clusterIP": address, "ports": [{"port": port, "targetPort": target_port}]},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**metadata, "labels": labels},
            "addressType": "IPv4",
            "ports": [{"port": target_port, "protocol": "TCP"}],
            "endpoints": [{"addresses": [target], "nodeName": "n1"} for target in targets],
        },
    ]


def test_a_pod_reaches_its_node_the_lan_and_a_second_pod(board: Board) -> None:
    one, two = board.add("default/one"), board.add("default/two")
    assert (one.address, two.address) == ("10.244.1.3", "10.244.1.4")
    board.serve(two, 8080)
    board.serve(board.node, 8081, address=NODE)
    board.serve(board.lan, 8082)
    assert board.connect(one, two.address, 8080) == f"hello {one.address}"
    assert board.connect(one, NODE, 8081) == f"hello {one.address}"
    assert board.connect(board.node, two.address, 8080).startswith("hello")
    assert board.connect(one, LAN, 8082) == f"hello {NODE}", "masqueraded to the node's address"


def test_a_cluster_ip_by_the_socket_and_by_packets(board: Board) -> None:
    client, server = board.add("default/client"), board.add("default/server")
    board.serve(server, 8080)
    board.put("svc", *service("web", "10.96.0.1", [server.address]))
    wait_for("the service", lambda: board.connect(client, "10.96.0.1", 80) == f"hello {client.address}")
    assert board.connect(board.node, "10.96.0.1", 80).startswith("hello")
    sockets = board.counter(Verdict.TRANSLATED)
    assert sockets > 0
    assert board.connect(client, "10.96.0.1", 80, hooked=False) == f"hello {client.address}"
    assert board.counter(Verdict.TRANSLATED) == sockets, "no socket was translated, only packets were"


@pytest.fixture
def other_node(board: Board) -> Iterator[str]:
    """The LAN's host is the node n2 too; towards pods it has that address."""
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "n2"},
        "spec": {"podCIDR": "10.244.2.0/24"},
        "status": {"addresses": [{"type": "InternalIP", "address": OTHER_NODE}]},
    }
    board.put("n2", node)
    ip("-n", board.lan, "addr", "add", f"{OTHER_NODE}/24", "dev", "eth0")
    ip("-n", board.lan, "route", "add", "10.244.1.0/24", "via", NODE, "src", OTHER_NODE)
    mac = mac_of(board.lan)
    wait_for("its MAC", lambda: mac in ip("-n", board.node, "neigh", "show", OTHER_NODE, "dev", "eth0"))
    yield OTHER_NODE


def test_another_nodes_host_reaches_a_pod_by_its_entities_alone(board: Board, other_node: str) -> None:
    """Not as `host`, which is the pod's own node, and not as the world or an address; nor by its address alone."""
    server = board.add("default/server", {"app": "server"})
    board.serve(server, 8080)
    watch = Watch(server.netns)
    before = board.counter(Verdict.SPOOFED)

    def connects(patience_s: float = 0.3) -> str:
        return board.connect(board.lan, server.address, 8080, patience_s)

    def arrives(mac: str, mark: bytes) -> None:
        packet = IP(src=other_node, dst=server.address) / UDP(sport=4001, dport=8080) / Raw(mark)
        with closing(sender(board.lan)) as raw:
            raw.send(bytes(Ether(src=mac, dst=mac_of(board.node)) / packet))

    wait_for("the first answer", lambda: connects() == f"hello {other_node}")
    rules = {
        "{}": False,
        "{fromEntities: [remote-node]}": True,
        "{fromEntities: [host]}": False,
        "{fromEntities: [cluster]}": True,
        "{fromEntities: [world]}": False,
        "{fromEntities: [all]}": True,
        "{fromCIDR: [192.168.86.0/24]}": False,
    }
    with closing(watch):
        for rule, allowed in rules.items():
            generation = board.ask("status")["generation"]
            board.put("p", policy("p", "{endpointSelector: {matchLabels: {app: server}}, ingress: [" + rule + "]}"))
            wait_for("the rule", lambda since=generation: board.ask("status")["generation"] > since)
            assert connects(2 if allowed else 0.3) == (f"hello {other_node}" if allowed else ""), rule
            assert board.connect(board.node, server.address, 8080).startswith("hello"), "its own node"
        board.put("p", policy("p", "{endpointSelector: {}, ingress: [{fromEntities: [remote-node]}]}"))
        wait_for("the rule", lambda: connects() != "")
        arrives("02:00:00:00:00:99", b"with-a-wrong-mac")
        arrives(mac_of(board.lan), b"with-its-own-mac")
        seen: list[bytes] = []
        wait_for("the datagram", lambda: seen.extend(watch.seen()) or any(b"with-its-own-mac" in data for data in seen))
        assert not any(b"with-a-wrong-mac" in data for data in seen)
    assert board.counter(Verdict.SPOOFED) == before + 1


def test_default_deny_holds_from_the_first_packet(board: Board) -> None:
    board.put("deny", policy("deny", "{endpointSelector: {matchLabels: {app: shut}}, ingress: [{}], egress: [{}]}"))
    board.serve(board.lan, 8082)
    other = board.add("default/other", {"app": "open"})
    board.serve(other, 8080)
    board.pod_object("default/shut", {"app": "shut"})
    shut = board.sandbox("default/shut")
    with closing(Watch(board.lan)) as watch:
        shut.result = board.cni("ADD", shut)
        assert board.connect(shut, LAN, 8082, 0.5) == ""
        assert board.connect(shut, other.address, 8080, 0.5) == ""
        assert board.connect(other, LAN, 8082) == f"hello {NODE}"
        packets = [frame for frame in map(Ether, watch.seen()) if TCP in frame and frame[TCP].dport == 8082]
    assert {packet[IP].src for packet in packets} == {NODE}
    begun = {(packet.sport, packet.seq) for packet in packets if packet[TCP].flags == "S"}
    assert len(begun) == 1, "only the open pod's SYN, however often it was sent"
    assert board.counter(Verdict.DEFAULT_DENY) > 0


def test_policy_changes_take_effect_and_a_broken_one_changes_nothing(board: Board) -> None:
    client = board.add("default/client", {"app": "client"})
    server = board.add("default/server", {"app": "server"})
    board.serve(server, 8080)
    assert board.connect(client, server.address, 8080) == f"hello {client.address}"
    spec = "{endpointSelector: {matchLabels: {app: server}}, ingress: [{fromEndpoints: [{matchLabels: {app: %s}}]}]}"
    board.put("p", policy("p", spec % "friend"))
    wait_for("the deny", lambda: board.connect(client, server.address, 8080, 0.3) == "")
    board.put("p", policy("p", spec % "client"))
    wait_for("the allow", lambda: board.connect(client, server.address, 8080, 0.3) != "")
    board.put("p", policy("p", "{endpointSelector: {}, ingress: [{fromNodes: [{}]}]}"))
    (shown,) = wait_for(
        "the refusal", lambda: [p for p in board.ask("status")["policies"] if p["state"].startswith("refused")]
    )
    assert shown["state"] == "refused, last good version enforced"
    assert "spec.ingress[0].fromNodes: is not supported" in shown["reason"]
    status = yaml.safe_load((board.folder / "status/ciliumnetworkpolicy.default.p.yaml").read_text())
    assert status["status"]["conditions"][0]["reason"] == "Refused"
    assert f"{shown['reason']}; its last good version stays in force" in board.log()
    assert board.connect(client, server.address, 8080) == f"hello {client.address}"
    board.stop()
    board.start()
    (shown,) = board.ask("status")["policies"]
    assert shown["state"] == "refused, last good version enforced", "a restart remembers the good version"


def test_a_policy_that_was_never_good_denies_what_it_selects(board: Board) -> None:
    client = board.add("default/client", {"app": "client"})
    server = board.add("default/server", {"app": "server"})
    board.serve(server, 8080)
    board.serve(client, 8080)
    assert board.connect(client, server.address, 8080) == f"hello {client.address}"
    spec = "{endpointSelector: {matchLabels: {app: server}}, ingress: [{%s: [{}]}]}"
    board.put("p", policy("p", spec % "fromNodes"))
    (shown,) = wait_for("the refusal", lambda: board.ask("status")["policies"])
    assert shown["state"] == "refused, denying"
    assert f"{shown['reason']}; the pods that it selects deny instead" in board.log()
    denied = board.counter(Verdict.DEFAULT_DENY)
    assert board.connect(client, server.address, 8080, 0.3) == ""
    assert board.counter(Verdict.DEFAULT_DENY) > denied
    assert board.connect(server, client.address, 8080) == f"hello {server.address}", "it has no rules for egress"
    board.stop()
    assert board.connect(client, server.address, 8080, 0.3) == "", "without an agent"
    board.start()
    assert board.connect(client, server.address, 8080, 0.3) == "", "a restart remembers no good version"
    board.put("p", policy("p", spec % "fromEndpoints"))
    wait_for("the allow", lambda: board.connect(client, server.address, 8080, 0.3) != "")


def test_the_agent_restarts_without_a_write_and_without_a_lost_packet(board: Board) -> None:
    client, server = board.add("default/client", {"app": "a"}), board.add("default/server")
    board.serve(server, 8080)
    board.put("svc", *service("web", "10.96.0.1", [server.address]))
    board.put("p", policy("p", "{endpointSelector: {matchLabels: {app: a}}, egress: [{toEndpoints: [{}]}]}"))
    wait_for("the service", lambda: board.connect(client, "10.96.0.1", 80) != "")
    wait_for("the policy", lambda: board.ask("status")["policies"])
    generation = board.ask("status")["generation"]
    ping = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{client.netns}", "ping", "-i", "0.01", "-c", "300", server.address],
        stdout=subprocess.PIPE,
        text=True,
    )
    board.stop()
    assert board.connect(client, "10.96.0.1", 80) != "", "without an agent"
    with pytest.raises(CniFailure, match="netstack-agent does not answer") as failure:
        board.cni("ADD", board.sandbox("default/late"))
    assert failure.value.code == 11
    board.start()
    status = board.ask("status")
    assert sum(status["map_writes"].values()) == 0, status["map_writes"]
    assert status["generation"] == generation
    assert "300 received, 0% packet loss" in ping.communicate()[0]


def test_a_list_in_which_nothing_has_changed_writes_nothing(tmp_path: Path) -> None:
    """The API server has forgotten the version from which the agent would go on (410)."""
    server = ApiServer(tmp_path / "server")
    server.bookmark_s = 60.0
    one = {"name": "one", "namespace": "default"}
    server.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})
    server.put({"apiVersion": "v1", "kind": "Pod", "metadata": one, "spec": {"nodeName": "n1"}})
    server.put(policy("p", "{endpointSelector: {}, egress: [{toCIDR: [192.168.86.50/32]}]}"))
    for item in service("web", "10.96.0.1", ["10.244.1.3"]):
        server.put(item)

    def lists() -> dict[str, int]:
        return {want.kind: server.count(list=True, kind=want.kind) for want in WANTS}

    def written() -> dict[str, int]:
        return dict(board.ask("status")["map_writes"])

    def in_step() -> bool:
        source = board.ask("status")["source"]
        return bool(source["connected"]) and not source["problems"]

    with Board(tmp_path, source="kubernetes", kubeconfig=str(server.folder / "kubeconfig")) as board:
        with inside(board.node):
            server.start()
        try:
            assert server.kubeconfig.exists()
            board.load()
            board.start()
            board.cni("ADD", board.sandbox("default/one"))
            wait_for("the agent to be in step", in_step)
            before, listed = written(), lists()
            assert before["policy"] and before["slots"], before
            server.put({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "other", "namespace": "default"}})
            server.compact(), server.cut()
            wait_for("everything to be listed again", lambda: all(n > listed[kind] for kind, n in lists().items()))
            wait_for("the agent to be in step again", in_step)
            assert written() == before
            server.put(service("late", "10.96.0.2", [])[0])
            wait_for("a change to be written", lambda: written() != before)
            assert {name for name, count in written().items() if count != before[name]} == {"services"}
        finally:
            server.stop()


def test_rules_have_names(board: Board) -> None:
    board.add("default/one", {"app": "a"})
    board.put("p", policy("p", "{endpointSelector: {}, egress: [{toEntities: [world]}]}"))
    rules = wait_for("the policy", lambda: board.ask("rules"))
    assert list(rules.values()) == ["CiliumNetworkPolicy default/p: spec.egress[0]"]


@pytest.mark.parametrize("off", [False, True])
def test_a_node_without_ipv6_among_such_that_have_it_carries_what_it_can(board: Board, off: bool) -> None:
    """The kernel refuses routes to their IPv6 ranges; `off`: that it should know their IPv6 addresses, too."""
    if off:
        board.run("sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=1", check=True)
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "n2"},
        "spec": {"podCIDRs": ["fd00:244:2::/64", "10.244.2.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": each} for each in ("fd00::22", OTHER_NODE)]},
    }
    board.put("n2", node)
    wait_for("the route", lambda: "10.244.2.0/24 via" in ip("-n", board.node, "route", "show", "proto", "78"))
    board.stop()
    board.start()
    board.add("default/one", {"app": "a"})
    board.put("p", policy("p", "{endpointSelector: {}, egress: [{toEntities: [world]}]}"))
    assert len(wait_for("the policy", lambda: board.ask("rules"))) == 1


def test_a_disk_that_refuses_keeps_what_is_in_force_until_it_takes_again(board: Board) -> None:
    client = board.add("default/client", {"app": "client"})
    server = board.add("default/server", {"app": "server"})
    board.serve(server, 8080)
    spec = "{endpointSelector: {matchLabels: {app: server}}, ingress: [{fromEndpoints: [{matchLabels: {app: %s}}]}]}"
    board.put("p", policy("p", spec % "client"))
    wait_for("the policy", lambda: board.ask("status")["policies"])
    good = board.folder / "state/policies"
    good.rename(good.with_name("aside"))
    good.write_text("a file in the way")
    board.put("p", policy("p", spec % "nobody"))
    wait_for("the complaint", lambda: any("the disk refused" in reason for reason in board.ask("status")["unready"]))
    assert board.connect(client, server.address, 8080) == f"hello {client.address}"
    good.unlink()
    wait_for("the change", lambda: board.connect(client, server.address, 8080, 0.3) == "")
    assert board.ask("status")["unready"] == []
