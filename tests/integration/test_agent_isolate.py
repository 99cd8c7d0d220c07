"""Pods that another plugin connected, before netstack came or beside it: named, and isolated if a policy selects them.

What is attacked is made by hand as such plugins do it: a veth on a bridge that is the gateway (flannel, the bridge
plugin), and a veth to which the host routes one address, of a range that is not the cluster's (Cilium, Calico).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

import pytest
import yaml
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from instruments.board import LAN, NODE, Board, Pod, ip, wait_for
from instruments.watch import Watch, mac_of, sender
from netstack.core.verdict import Verdict

pytestmark = pytest.mark.root
MARK, PROOF = b"this-must-not-pass", b"this-may-pass-by"
PORT = 8080


def policy(name: str, app: str) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Ingress", "Egress"]},
    }


class Old:
    """A pod of another plugin's. `gateway_mac`: whom its packets go to."""

    def __init__(self, board: Board, name: str, address: str, *, bridged: bool) -> None:
        self.board, self.name, self.address, self.device = board, name, address, f"old{name}"
        self.netns = board.sandbox(f"default/{name}").netns
        ip("link", "add", self.device, "netns", board.node, "type", "veth", "peer", "name", "eth0", "netns", self.netns)
        ip("-n", self.netns, "addr", "add", f"{address}/{24 if bridged else 32}", "dev", "eth0")
        ip("-n", self.netns, "link", "set", "eth0", "up")
        ip("-n", board.node, "link", "set", self.device, "up")
        if bridged:
            ip("-n", board.node, "link", "set", self.device, "master", "cni0")
            ip("-n", self.netns, "route", "add", "default", "via", "10.244.1.1")
            self.gateway_mac = mac_of(board.node, "cni0")
        else:
            ip("-n", board.node, "route", "add", f"{address}/32", "dev", self.device)
            ip("-n", self.netns, "route", "add", "default", "dev", "eth0")
            self.gateway_mac = mac_of(board.node, self.device)
        self.mac = mac_of(self.netns)
        ip("-n", board.node, "neigh", "replace", address, "lladdr", self.mac, "dev", "cni0" if bridged else self.device)
        metadata = {"name": name, "namespace": "default", "labels": {"app": name}}
        status = {"phase": "Running", "podIPs": [{"ip": address}]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"nodeName": "n1"}, "status": status}
        board.put(f"pod-{name}", pod)

    def up(self) -> bool:
        return "state UP" in ip("-n", self.board.node, "link", "show", self.device)

    def send(self, payload: bytes, *addresses: str) -> None:
        packets = (IP(src=self.address, dst=to) / UDP(sport=4001, dport=PORT) / Raw(payload) for to in addresses)
        with closing(sender(self.netns)) as raw:
            for packet in packets:
                raw.send(bytes(Ether(src=self.mac, dst=self.gateway_mac) / packet))


def source(data: bytes, watch: Watch) -> str:
    """The source address of what was watched: of a frame, or at the host of a packet."""
    return str((IP(data) if watch.name.endswith(" host") else Ether(data)[IP]).src)


class Field:
    """Two old pods of each kind (`...-shut` is for the policies), and what listens."""

    def __init__(self, board: Board, stack: ExitStack) -> None:
        self.board = board
        ip("-n", board.node, "link", "add", "cni0", "type", "bridge")
        ip("-n", board.node, "addr", "add", "10.244.1.1/24", "dev", "cni0")
        ip("-n", board.node, "link", "set", "cni0", "up")
        ip("-n", board.lan, "route", "add", "10.244.1.0/24", "via", NODE)
        ip("-n", board.lan, "route", "add", "10.0.0.0/24", "via", NODE)
        self.old = {
            "bridged": (Old(board, "free", "10.244.1.3", bridged=True), Old(board, "shut", "10.244.1.5", bridged=True)),
            "routed": (Old(board, "loose", "10.0.0.3", bridged=False), Old(board, "held", "10.0.0.5", bridged=False)),
        }
        self.watches: dict[str, Watch] = {}
        self.marked: dict[str, list[bytes]] = {}
        """What was seen of an attack while something else was looked for."""
        pods = [pod for pair in self.old.values() for pod in pair]
        for name, netns, device in (
            *((pod.name, pod.netns, "eth0") for pod in pods),
            ("lan", board.lan, "eth0"),
            ("host", board.node, ""),
        ):
            self.watches[name] = Watch(netns, device)
            stack.callback(self.watches[name].close)

    def view(self, name: str) -> dict[str, Any] | None:
        found = [item for item in self.board.ask("status")["unmanaged"] if item["pod"] == f"default/{name}"]
        return found[0] if found else None

    def isolated(self, name: str) -> bool:
        view = self.view(name)
        return bool(view and view["isolated"])

    def passes(self, pod: Old) -> bool:
        """In both directions, to and from the LAN."""
        pod.send(PROOF, LAN)
        back = IP(src=LAN, dst=pod.address) / UDP(sport=4001, dport=PORT) / Raw(PROOF)
        with closing(sender(self.board.lan)) as raw:
            raw.send(bytes(Ether(src=mac_of(self.board.lan), dst=mac_of(self.board.node)) / back))
        return all(self.arrives(name) for name in ("lan", pod.name))

    def arrives(self, name: str) -> bool:
        def here() -> bool:
            seen = self.watches[name].seen()
            self.marked[name] = [*self.marked.get(name, []), *(data for data in seen if MARK in data)]
            return any(PROOF in data for data in seen)

        try:
            return bool(wait_for("the mark", here, 0.5))
        except AssertionError:
            return False

    def attack(self, pod: Old, friend: Old) -> None:
        """It sends to all and all send to it; what its neighbour sends and is sent arrives afterwards."""
        others = [other.address for pair in self.old.values() for other in pair if other is not pod]
        self.marked.clear()
        for watch in self.watches.values():
            watch.seen()
        pod.send(MARK, LAN, NODE, "10.244.1.1", *others)
        if friend.gateway_mac == pod.gateway_mac:  # on one bridge: straight
            packet = IP(src=pod.address, dst=friend.address) / UDP(dport=PORT) / Raw(MARK)
            with closing(sender(pod.netns)) as raw:
                raw.send(bytes(Ether(src=pod.mac, dst=friend.mac) / packet))
            with closing(sender(friend.netns)) as raw:
                raw.send(bytes(Ether(src=friend.mac, dst=pod.mac) / packet))
        to_it = IP(src=LAN, dst=pod.address) / UDP(sport=4001, dport=PORT) / Raw(MARK)
        with closing(sender(self.board.lan)) as raw:
            raw.send(bytes(Ether(src=mac_of(self.board.lan), dst=mac_of(self.board.node)) / to_it))
        friend.send(MARK, pod.address)
        assert self.passes(friend)
        for name, watch in self.watches.items():
            found = self.marked.pop(name, []) + watch.marked(MARK)
            # a bridge that does not know any more where the pod is floods what others send to it
            wrong = found if name == pod.name else [data for data in found if source(data, watch) == pod.address]
            assert [data.hex() for data in wrong] == [], name


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    with ExitStack() as stack:
        board = stack.enter_context(Board(tmp_path_factory.mktemp("board"), 6))
        board.load()
        field = Field(board, stack)
        board.start()
        yield field


@pytest.mark.parametrize(("kind", "word"), [("bridged", "shut"), ("routed", "held")])
def test_an_old_pod_that_a_policy_selects_is_isolated_and_no_other(field: Field, kind: str, word: str) -> None:
    board, (free, shut) = field.board, field.old[kind]
    assert shut.name == word
    view = field.view(word)
    assert view is not None and (view["devices"], view["policies"], view["isolated"]) == ([shut.device], [], False)
    assert view["reason"].endswith("; delete it, so that it is made anew")
    assert field.passes(free) and field.passes(shut)
    board.put("deny", policy("deny", word))
    wait_for("the isolation", lambda: field.isolated(word))
    field.attack(shut, free)
    (told,) = board.ask("status")["policies"]
    assert (told["selects"], told["isolated"], told["not_enforced"]) == (0, [f"default/{word}"], [])
    said = yaml.safe_load((board.folder / f"status/pod.default.{word}.yaml").read_text())["status"]["conditions"]
    assert [(item["status"], item["reason"]) for item in said] == [("False", "Isolated")]
    board.stop()
    field.attack(shut, free)
    board.start()
    field.attack(shut, free)
    assert field.isolated(word), "a restart finds it again, and knows who has taken it down"
    (board.folder / "manifests" / "deny.yaml").unlink()
    wait_for("no isolation", lambda: not field.isolated(word))
    assert not (board.folder / f"status/pod.default.{word}.yaml").exists()
    if kind == "routed":  # a route goes with its device; who had put it there is to put it there again
        ip("-n", board.node, "route", "add", f"{shut.address}/32", "dev", shut.device)
        ip("-n", board.node, "neigh", "replace", shut.address, "lladdr", shut.mac, "dev", shut.device)
        ip("-n", shut.netns, "route", "replace", "default", "dev", "eth0")
    assert field.passes(shut)


def test_an_old_pod_that_a_policy_only_allows_something_goes_on(field: Field) -> None:
    board, (_, shut) = field.board, field.old["bridged"]
    spec = {
        "endpointSelector": {},
        "enableDefaultDeny": {"egress": False},
        "egress": [{"toCIDR": ["192.0.2.1/32"]}],
    }
    metadata = {"name": "open", "namespace": "default"}
    board.put("open", {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": metadata, "spec": spec})
    (told,) = wait_for("the policy", lambda: board.ask("status")["policies"])
    assert (told["isolated"], told["not_enforced"], field.passes(shut)) == ([], [], True)
    (board.folder / "manifests" / "open.yaml").unlink()
    wait_for("nothing of it", lambda: not board.ask("status")["policies"])


def test_an_agent_that_starts_isolates_before_it_answers(field: Field) -> None:
    board, (free, shut) = field.board, field.old["bridged"]
    board.stop()
    board.put("deny", policy("deny", "shut"))
    assert field.passes(shut)
    board.start()
    assert not shut.up()
    ip("-n", board.node, "link", "set", shut.device, "up")  # as the daemon of a plugin might that is still there
    wait_for("the audit", lambda: not shut.up())
    field.attack(shut, free)
    (board.folder / "manifests" / "deny.yaml").unlink()
    wait_for("no isolation", lambda: shut.up())


def test_a_pod_that_hides_its_address_is_known_by_its_device(field: Field) -> None:
    board, (_, shut) = field.board, field.old["bridged"]
    assert field.view("shut") is not None
    ip("-n", shut.netns, "addr", "flush", "dev", "eth0")
    board.put("deny", policy("deny", "shut"))
    wait_for("the isolation", lambda: field.isolated("shut") and not shut.up())
    (board.folder / "manifests" / "deny.yaml").unlink()
    wait_for("no isolation", lambda: shut.up())
    ip("-n", shut.netns, "addr", "add", f"{shut.address}/24", "dev", "eth0")


def test_no_new_pod_is_given_an_address_that_an_old_one_has(field: Field) -> None:
    pods: list[Pod] = [field.board.add(f"default/new{number}", {"app": "new"}) for number in range(3)]
    assert [pod.address for pod in pods] == ["10.244.1.4", "10.244.1.6", "10.244.1.7"]
    names = {item["pod"] for item in field.board.ask("status")["unmanaged"]}
    assert names == {"default/free", "default/shut", "default/loose", "default/held"}


def test_an_old_pod_is_nobody_to_a_new_one_of_its_node(field: Field) -> None:
    """On a bridge it could have any address: that of a pod whom a policy lets in."""
    new = field.board.add("default/near", {"app": "near"})

    def dropped(times: int) -> bool:
        return field.board.counter(Verdict.SPOOFED) >= times

    with closing(Watch(new.netns)) as watch:
        for old in (field.old["bridged"][0], field.old["routed"][0]):
            spoofed = field.board.counter(Verdict.SPOOFED) + 1
            old.send(MARK, new.address)
            wait_for("the verdict", partial(dropped, spoofed))
        assert watch.marked(MARK) == []


def test_a_policy_names_the_pods_of_the_nodes_network(field: Field) -> None:
    """On which it cannot be enforced; they are not cut off from anything, and neither is the node."""
    board = field.board
    metadata = {"name": "host", "namespace": "default", "labels": {"app": "host"}}
    spec = {"nodeName": "n1", "hostNetwork": True}
    status = {"phase": "Running", "podIPs": [{"ip": NODE}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status}
    board.put("host", pod, policy("host", "host"))
    (told,) = wait_for("the policy", lambda: board.ask("status")["policies"])
    assert (told["state"], told["selects"], told["not_enforced"], told["isolated"]) == (
        *("enforced", 0),
        *(["default/host"], []),
    )
    assert field.view("host") is None
    said = yaml.safe_load((board.folder / "status/networkpolicy.default.host.yaml").read_text())["status"]["conditions"]
    assert [(item["reason"], item["message"]) for item in said] == [
        ("NotEnforced", "not on pods that use the node's network: default/host")
    ]
    board.serve(board.node, 8081, address=NODE)
    assert board.connect(board.lan, NODE, 8081) == f"hello {LAN}"
    (board.folder / "manifests" / "host.yaml").unlink()
    wait_for("nothing of it", lambda: not board.ask("status")["policies"])


def test_a_policy_says_on_which_pod_it_is_not_enforced(field: Field) -> None:
    """One whose network has no device on the host, as of a macvlan plugin."""
    metadata = {"name": "direct", "namespace": "default", "labels": {"app": "direct"}}
    status = {"phase": "Running", "podIPs": [{"ip": "192.168.86.77"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"nodeName": "n1"}, "status": status}
    field.board.put("direct", pod, policy("direct", "direct"))
    (told,) = wait_for("the policy", lambda: field.board.ask("status")["policies"])
    assert (told["not_enforced"], told["isolated"]) == (["default/direct"], [])
    view = field.view("direct")
    assert view is not None and "in vain: no device of it was found on the host" in view["reason"]
    (field.board.folder / "manifests" / "direct.yaml").unlink()
    wait_for("nothing of it", lambda: field.view("direct") is None)
