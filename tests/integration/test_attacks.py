"""A pod with raw sockets under policies that deny it nearly everything, and a LAN that lies: what arrives is looked at.

One node with the real loader, agent and CNI plugin. `attacker` may reach `friend` at one port; `victim` accepts
`friend` alone, and pods like it on the other node, which is there in name only; no policy is for `stranger`; a service
in all its forms stands for the victim. After each set of frames (tests/instruments/attacks.py) one that is allowed goes
the same way: when it has arrived, so would have the others.
"""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from instruments import attacks
from instruments.attacks import ALLOWED, DENIED, FROM_A_POD, FROM_THE_LAN, MARK, NODE_PORT, SERVICE, Scene
from instruments.board import LAN, NODE, ROOT, Board, Pod, ip, wait_for
from instruments.netns import inside
from instruments.watch import Watch, mac_of, sender, sending
from netstack.core.verdict import Verdict

pytestmark = pytest.mark.root
OTHER_NODE, REMOTE, CLUSTER_IP, VIP = "192.168.86.22", "10.244.2.3", "10.96.0.10", "192.168.86.18"
PROOF = b"this-may-pass-by"
LIE = b"another-is-meant"
ENDS = """
endpointSelector: {matchLabels: {app: attacker}}
ingress: [{fromEndpoints: [{matchLabels: {app: friend}}]}]
egress: [{toEndpoints: [{matchLabels: {app: friend}}], toPorts: [{ports: [{port: "8080"}]}]}]
"""
VICTIM = """
endpointSelector: {matchLabels: {app: victim}}
ingress: [{fromEndpoints: [{matchLabels: {app: friend}}]}]
"""


def policy(name: str, spec: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "default"}
    kind = {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy"}
    return {**kind, "metadata": metadata, "spec": yaml.safe_load(spec)}


def service(address: str) -> list[dict[str, Any]]:
    metadata = {"name": "web", "namespace": "default"}
    ports = [
        {"name": p.lower(), "port": SERVICE, "targetPort": ALLOWED, "protocol": p, "nodePort": NODE_PORT}
        for p in ("TCP", "UDP")
    ]
    spec = {"type": "LoadBalancer", "clusterIP": CLUSTER_IP, "ports": ports}
    status = {"loadBalancer": {"ingress": [{"ip": VIP}]}}
    piece = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {**metadata, "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": p.lower(), "port": ALLOWED, "protocol": p} for p in ("TCP", "UDP")],
        "endpoints": [{"addresses": [address], "nodeName": "n1"}],
    }
    return [{"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec, "status": status}, piece]


class Field:
    """The board with its pods, who watches where, and the scene as each attacker sees it."""

    def __init__(self, board: Board, stack: ExitStack) -> None:
        self.board = board
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": "n2"},
            "spec": {"podCIDRs": ["10.244.2.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": OTHER_NODE}]},
        }
        far = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "far", "namespace": "default", "labels": {"app": "friend"}},
            "spec": {"nodeName": "n2"},
            "status": {"phase": "Running", "podIPs": [{"ip": REMOTE}]},
        }
        board.put("n2", node, far)
        board.put("attacker", policy("attacker", ENDS))
        board.put("victim", policy("victim", VICTIM))
        names = ("attacker", "friend", "victim", "stranger")
        made = (board.add(f"default/{name}", {"app": name}) for name in names)
        self.attacker, self.friend, self.victim, self.stranger = made
        board.put("web", *service(self.victim.address))
        wait_for("the policies", lambda: len(board.ask("status")["policies"]) == 2)
        ip("-n", board.node, "neigh", "replace", OTHER_NODE, "lladdr", "02:00:00:00:00:22", "dev", "eth0")
        self.stack = stack
        with inside(self.friend.netns):
            silent = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        silent.bind(("0.0.0.0", ALLOWED))  # so that no port is said to be unreachable
        self.watches = {
            "friend": self.watch(self.friend.netns),
            "victim": self.watch(self.victim.netns),
            "lan": self.watch(board.lan),
            "host": self.watch(board.node, ""),
            "attacker": self.watch(self.attacker.netns),
        }
        wait_for("the service", lambda: self.asks(self.friend, CLUSTER_IP, SERVICE, self.victim))

    def watch(self, namespace: str, device: str = "eth0") -> Watch:
        made = Watch(namespace, device)
        self.stack.callback(made.close)
        return made

    def scene(self, mac: str, gateway_mac: str, attacker: Pod) -> Scene:
        addresses = (attacker.address, self.friend.address, self.victim.address)
        return Scene(mac, gateway_mac, *addresses, REMOTE, NODE, OTHER_NODE, LAN, CLUSTER_IP, VIP)

    def of_a_pod(self, pod: Pod, attacker: Pod | None = None) -> Scene:
        return self.scene(mac_of(pod.netns), mac_of(self.board.node, pod.device), attacker or self.attacker)

    def of_the_lan(self) -> Scene:
        return self.scene(mac_of(self.board.lan), mac_of(self.board.node), self.attacker)

    def send(self, namespace: str, frames: list[bytes]) -> None:
        with closing(sender(namespace)) as raw:
            for frame in frames:
                raw.send(frame)

    def asks(self, source: Pod, address: str, port: int, target: Pod) -> bool:
        """A datagram of a raw socket that arrives."""
        scene, watch = self.of_a_pod(source), self.watches[target.name]
        packet = IP(src=source.address, dst=address) / UDP(sport=4444, dport=port) / Raw(PROOF)
        self.send(source.netns, [scene.frame(packet)])
        return arrives(watch)

    def quiet(self) -> None:
        for watch in self.watches.values():
            watch.seen()


def arrives(watch: Watch, mark: bytes = PROOF) -> bool:
    try:
        wait_for("the mark", lambda: watch.marked(mark), 0.3)
    except AssertionError:
        return False
    return True


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    with ExitStack() as stack:
        board = stack.enter_context(Board(tmp_path_factory.mktemp("board"), 7))
        board.load()
        board.start()
        yield Field(board, stack)


def proof(scene: Scene, source: str, destination: str) -> bytes:
    return scene.frame(IP(src=source, dst=destination) / UDP(sport=4001, dport=ALLOWED) / Raw(PROOF))


def proven(watch: Watch) -> list[bytes]:
    """What came until the proof did."""
    seen: list[bytes] = []

    def here() -> bool:
        seen.extend(watch.seen())
        return any(PROOF in data for data in seen)

    wait_for("what is allowed", here)
    return seen


def test_the_watchers_see(field: Field) -> None:
    """Every one of them: a test of what does not arrive is worth what its eyes are."""
    field.quiet()
    scene = field.of_a_pod(field.friend)
    seen_by = {field.victim.address: "victim", LAN: "lan", NODE: "host", field.attacker.address: "attacker"}
    for to, watch in seen_by.items():
        field.send(field.friend.netns, [proof(scene, field.friend.address, to)])
        assert proven(field.watches[watch])
    scene = field.of_a_pod(field.attacker)
    field.send(field.attacker.netns, [proof(scene, field.attacker.address, field.friend.address)])
    assert proven(field.watches["friend"])


def a_fragment(data: bytes) -> bool:
    """The smallest bears no mark: of the frames that pass, none has MF or an offset."""
    frame = Ether(data)
    return frame.type == 0x0800 and int.from_bytes(data[20:22]) & 0x3FFF != 0


def of_the_gateway(data: bytes) -> bool:
    """The answer to the only question that is answered: who has 169.254.1.1?"""
    frame = Ether(data)
    return ARP in frame and (frame[ARP].op, frame[ARP].psrc) == (2, attacks.GATEWAY)


def known(field: Field) -> set[str]:
    """The node's neighbours: all of the attacker's device, and elsewhere those that stay as they are."""
    shown = ip("-n", field.board.node, "neigh").splitlines()
    return {line for line in shown if f" dev {field.attacker.device} " in line or "PERMANENT" in line}


@pytest.mark.parametrize("name", FROM_A_POD)
def test_a_pod_gets_nothing_through(field: Field, name: str) -> None:
    scene = field.of_a_pod(field.attacker)
    frames = FROM_A_POD[name](scene)
    assert len(frames) > 2
    field.quiet()
    neighbours = known(field)
    field.send(field.attacker.netns, [*frames, proof(scene, field.attacker.address, field.friend.address)])
    seen = {"friend": proven(field.watches["friend"])}
    seen |= {where: watch.seen() for where, watch in field.watches.items() if where != "friend"}
    for where, found in seen.items():
        assert [data.hex() for data in found if MARK[:8] in data] == [], where
    assert [data.hex() for where in ("friend", "victim", "lan") for data in seen[where] if a_fragment(data)] == []
    answers = [data.hex() for data in seen["attacker"] if not of_the_gateway(data)]
    assert answers == [], "nobody answers, not even with an error"
    assert known(field) == neighbours


@pytest.mark.parametrize("name", FROM_A_POD)
def test_a_pod_that_no_policy_holds_back_gets_nothing_into_one_that_denies_it(field: Field, name: str) -> None:
    """What the attacker's own policy would have stopped is stopped at the victim: once more as if that were friend."""
    scene = field.of_a_pod(field.stranger, attacker=field.stranger)
    frames = [*FROM_A_POD[name](scene), *FROM_A_POD[name](replace(scene, friend=scene.victim))]
    free = IP(src=scene.attacker, dst=scene.friend) / UDP(sport=4001, dport=DENIED) / Raw(PROOF)
    field.quiet()
    field.send(field.stranger.netns, [*frames, scene.frame(free)])
    proven(field.watches["friend"])
    assert [data.hex() for data in field.watches["victim"].seen()] == []


@pytest.mark.parametrize("name", FROM_THE_LAN)
def test_the_lan_gets_nothing_through_to_a_pod_that_denies_it(field: Field, name: str) -> None:
    scene = field.of_the_lan()
    frames = FROM_THE_LAN[name](scene)
    assert len(frames) > 2
    field.quiet()
    field.send(field.board.lan, [*frames, proof(scene, LAN, field.friend.address)])
    seen = {"friend": proven(field.watches["friend"])}
    seen |= {where: field.watches[where].seen() for where in ("victim", "attacker")}
    for where in ("victim", "attacker"):
        assert [data.hex() for data in seen[where] if MARK[:8] in data] == [], where
    assert [data.hex() for found in seen.values() for data in found if a_fragment(data)] == []


def test_a_connection_that_ends_is_no_way_back(field: Field) -> None:
    """friend may call the attacker, who may not call back from that port, not in the middle of the end either."""
    scene, other = field.of_a_pod(field.attacker), field.of_a_pod(field.friend)
    here, there = field.attacker.address, field.friend.address

    def call(flags: str, payload: bytes = b"") -> None:
        packet = IP(src=there, dst=here) / TCP(sport=5000, dport=80, flags=flags) / Raw(payload or PROOF)
        field.send(field.friend.netns, [other.frame(packet)])
        proven(field.watches["attacker"])

    def answer(flags: str, *, arriving: bool) -> None:
        field.quiet()
        data = PROOF if arriving else MARK
        packet = IP(src=here, dst=there) / TCP(sport=80, dport=5000, flags=flags) / Raw(data)
        field.send(field.attacker.netns, [scene.frame(packet), proof(scene, here, there)])
        assert any(MARK in frame for frame in proven(field.watches["friend"])) is False

    answer("SA", arriving=False)
    call("S")
    answer("S", arriving=False)
    answer("SA", arriving=True)
    call("A")
    answer("S", arriving=False)
    call("FA")
    answer("S", arriving=False)
    answer("FA", arriving=True)
    answer("S", arriving=False)
    call("A")
    answer("S", arriving=False)
    call("R")
    answer("S", arriving=False)


# ---- while something happens ----


def to_itself(packet: bytes) -> bool:
    """The node tells itself that an answer of its own found no neighbour, as it does seconds after the LAN has asked it
    with another's address. What it answered would have been seen here too."""
    error = IP(packet)
    return ICMP in error and error[ICMP].type == 3 and error.src == error.dst == error[ICMP].payload.src


@contextmanager
def probing(field: Field) -> Iterator[Callable[[], int]]:
    """The attacker sends what is denied, round and round; the result says how many rounds so far."""
    scene = field.of_a_pod(field.attacker)
    frames = [frame for name in ("denied_peers", "services_of_a_denied_pod") for frame in FROM_A_POD[name](scene)]
    frames += attacks.spoofed_source(scene)[:20]
    field.quiet()
    with sending(field.attacker.netns, frames, 0.005) as rounds:
        yield rounds
    for where in ("friend", "victim", "lan"):
        assert [frame.hex() for frame in field.watches[where].marked(MARK)] == [], where
    assert [packet for packet in field.watches["host"].marked(MARK) if not to_itself(packet)] == []


def further(rounds: Callable[[], int], more: int = 3) -> None:
    start = rounds()
    wait_for("the probes", lambda: rounds() >= start + more)


def test_killing_the_agent_opens_nothing(field: Field) -> None:
    with probing(field) as rounds:
        for _ in range(3):
            field.board.stop(signal.SIGKILL)
            further(rounds)
            field.board.start()
            further(rounds)


def test_a_folder_of_manifests_that_is_gone_opens_nothing(field: Field) -> None:
    """Not to an agent that starts without it either: what is not known any more is not what is allowed."""
    folder = field.board.folder / "manifests"
    away = folder.with_name("away")

    def complains() -> bool:
        return any(f"{folder}: (content): cannot be read" in reason for reason in field.board.ask("status")["broken"])

    def in_force() -> tuple[int, list[tuple[str, str]]]:
        status = field.board.ask("status")
        return status["generation"], [(view["policy"], view["state"]) for view in status["policies"]]

    before = in_force()
    with probing(field) as rounds:
        folder.rename(away)
        try:
            wait_for("the complaint", complains, 10)  # it was seen to go: a look at every file is 30 s apart
            further(rounds)
            field.board.stop(signal.SIGKILL)
            further(rounds)
            field.board.start()
            assert complains()
            assert in_force() == before
            further(rounds)
        finally:
            away.rename(folder)
        wait_for("the folder", lambda: not complains())
        further(rounds)
    assert in_force() == before


def test_another_set_of_programs_takes_over_under_fire(field: Field, tmp_path: Path) -> None:
    config = field.board.folder / "agent.yaml"
    text = config.read_text()
    settings = yaml.safe_load(text)
    source = tmp_path / "bpf"
    (source / "lib").mkdir(parents=True)
    for path in (ROOT / "files/bpf").rglob("*.[ch]"):
        (source / path.relative_to(ROOT / "files/bpf")).write_bytes(path.read_bytes())
    conntrack = source / "lib" / "conntrack.h"
    changed = conntrack.read_text().replace("(60 * NANOSECONDS)", "(61 * NANOSECONDS)")
    assert changed != conntrack.read_text()
    conntrack.write_text(changed)
    try:
        with probing(field) as rounds:
            for chosen in (source, ROOT / "files/bpf", source, ROOT / "files/bpf"):
                settings["datapath"]["bpf_source"] = str(chosen)
                config.write_text(yaml.safe_dump(settings))
                assert "pod_ingress" in field.board.load(), "it is another program"
                further(rounds)
    finally:
        config.write_text(text)


def test_ten_thousand_policy_edits_open_nothing(field: Field) -> None:
    """Each turns what is allowed beside what is denied; none allows what the probes try."""
    beside = """
    endpointSelector: {{matchLabels: {{app: {who}}}}}
    ingress: [{{fromEndpoints: [{{}}], toPorts: [{{ports: [{{port: "{port}"}}]}}]}}]
    """

    def in_force() -> int:
        return int(field.board.ask("policy", policy="")["generation"])

    generations = {in_force()}
    with probing(field) as rounds:
        for number in range(10_000):
            spec = beside.format(who=("victim", "attacker")[number % 2], port=20_000 + number % 1000)
            field.board.put("edits", policy("edits", spec))
            if number % 40 == 39:  # one of these at least is in force before the next
                wait_for("a generation", lambda: in_force() not in generations)
                generations.add(in_force())
        further(rounds)
    assert len(generations) > 200
    wait_for("the last edit", lambda: any("edits" in str(rule) for rule in field.board.ask("rules").values()), 120)
    (field.board.folder / "manifests" / "edits.yaml").unlink()


BROKEN = {
    "a file that is no YAML": ("kind: CiliumNetworkPolicy\nspec: [", "while parsing"),
    "a policy that cannot be read": (policy("{name}", "endpointSelector: 7"), "endpointSelector"),
    "a policy that is refused as a whole": (
        policy("{name}", "{endpointSelector: {matchLabels: {app: nobody}}, ingress: [{fromNodes: [{}]}]}"),
        "fromNodes: is not supported",
    ),
}
"""What follows a good policy, and a word of the complaint. The last would select none of those pods."""


@pytest.mark.parametrize("how", BROKEN)
def test_a_new_version_that_is_broken_opens_nothing(field: Field, how: str) -> None:
    """Not to an agent either that starts with nothing else; and what the good one allows goes on."""
    version, complaint = BROKEN[how]
    text = version if isinstance(version, str) else yaml.safe_dump(version)

    def complaints() -> int:
        return sum(complaint in reason for reason in field.board.ask("status")["broken"])

    assert not complaints()
    with probing(field) as rounds:
        try:
            for name in ("attacker", "victim"):
                field.board.put(name, text.replace("{name}", name))
            wait_for("the complaints", lambda: complaints() == 2)
            further(rounds)
            field.board.stop(signal.SIGKILL)
            further(rounds)
            field.board.start()
            assert complaints() == 2
            further(rounds)
            assert field.asks(field.attacker, field.friend.address, ALLOWED, field.friend)
        finally:
            field.board.put("attacker", policy("attacker", ENDS))
            field.board.put("victim", policy("victim", VICTIM))
        wait_for("the policies", lambda: not complaints())
        further(rounds)


def test_a_policy_too_large_for_the_kernel_opens_nothing_and_is_said(field: Field) -> None:
    """It would allow all that the probes try, if a part of it came into force; what is allowed already stays so."""
    ports = [{"port": str(number)} for number in range(1, 40_000, 9)] + [{"port": str(ALLOWED)}, {"port": str(DENIED)}]
    everyone = [{"toPorts": [{"ports": ports[at : at + 40]}]} for at in range(0, len(ports), 40)]
    spec = yaml.safe_dump({"endpointSelector": {}, "ingress": everyone, "egress": everyone})

    def said() -> bool:
        status = field.board.ask("status")
        views = [view for view in status["policies"] if view["policy"].endswith("default/large")]
        reasons = [view.get("reason", "") for view in views] + status["broken"]
        return bool(views) and all("map policy is too small" in reason for reason in reasons)

    generation = field.board.ask("status")["generation"]
    with probing(field) as rounds:
        field.board.put("large", policy("large", spec))
        wait_for("the refusal", said, 60)
        further(rounds)
        assert field.board.ask("status")["generation"] == generation
        (field.board.folder / "manifests" / "large.yaml").unlink()
        wait_for("all to be well again", lambda: not said(), 60)
        further(rounds)


def test_the_next_pod_with_an_address_inherits_nothing(tmp_path: Path) -> None:
    with Board(tmp_path, 8, pod_cidr="10.244.1.0/29") as board, ExitStack() as stack:
        board.load()
        board.start()
        board.put("shut", policy("shut", "{endpointSelector: {matchLabels: {app: shut}}, ingress: [{}], egress: [{}]}"))
        pods = [board.add(f"default/p{number}") for number in range(4)]
        first = pods[1]
        lan = mac_of(board.lan)
        opened = IP(src=first.address, dst=LAN) / UDP(sport=4001, dport=ALLOWED) / Raw(PROOF)
        watch = Watch(board.lan)
        stack.callback(watch.close)
        with closing(sender(first.netns)) as raw:
            raw.send(bytes(Ether(src=mac_of(first.netns), dst=mac_of(board.node, first.device)) / opened))
        asked = next(IP(data[14:]) for data in proven(watch) if PROOF in data)
        board.cni("DEL", first)
        second = board.add("default/next", {"app": "shut"})
        assert second.address == first.address
        inside = Watch(second.netns)
        stack.callback(inside.close)
        answers = [
            IP(src=LAN, dst=asked.src)
            / UDP(sport=ALLOWED, dport=asked.sport)
            / Raw(MARK),  # by the masquerade's memory
            IP(src=LAN, dst=second.address) / UDP(sport=ALLOWED, dport=4001) / Raw(MARK),  # straight
            IP(src=LAN, dst=second.address) / ICMP(type=3, code=3) / opened / Raw(MARK),
        ]
        ip("-n", board.lan, "route", "replace", "10.244.1.0/24", "via", NODE)
        before = board.counter(Verdict.DEFAULT_DENY)
        with closing(sender(board.lan)) as raw:
            for packet in answers:
                raw.send(bytes(Ether(src=lan, dst=mac_of(board.node)) / packet))
        wait_for("the denials", lambda: board.counter(Verdict.DEFAULT_DENY) >= before + len(answers))
        assert inside.marked(MARK) == []


def test_a_pod_whose_peers_talk_on_leaves_its_flows_to_nobody(tmp_path: Path) -> None:
    """It goes in the middle of flows with a pod and with the LAN, which send on; the next pod with its address sends on
    too what it sent. The peer accepts the one and not the other; the next pod accepts nobody."""
    peer_of = "{endpointSelector: {matchLabels: {app: peer}}, ingress: [{fromEndpoints: [{matchLabels: {app: old}}]}]}"
    to_pods = "{endpointSelector: {matchLabels: {app: new}}, ingress: [{}], egress: [{toEndpoints: [{}]}]}"
    with Board(tmp_path, 8, pod_cidr="10.244.1.0/29") as board, ExitStack() as stack:
        board.load()
        board.start()
        board.put("rules", policy("peer", peer_of), policy("new", to_pods))
        old, peer, free, _ = (board.add(f"default/{name}", {"app": name}) for name in ("old", "peer", "free", "full"))
        wait_for("the policies", lambda: len(board.ask("status")["policies"]) == 2)
        ip("-n", board.lan, "route", "replace", "10.244.1.0/24", "via", NODE)
        there = {address: Watch(netns) for address, netns in ((peer.address, peer.netns), (LAN, board.lan))}
        here = Watch(old.netns)
        for watch in (*there.values(), here):
            stack.callback(watch.close)

        def sends(pod: Pod, mark: bytes, *to: str, flags: str = "A") -> list[bytes]:
            pair = (UDP(sport=4001, dport=ALLOWED), TCP(sport=4001, dport=ALLOWED, flags=flags))
            head = Ether(src=mac_of(pod.netns), dst=mac_of(board.node, pod.device))
            return [bytes(head / IP(src=pod.address, dst=one) / way / Raw(mark)) for one in to for way in pair]

        def send(pod: Pod, frames: list[bytes]) -> None:
            with closing(sender(pod.netns)) as raw:
                for frame in frames:
                    raw.send(frame)

        def answers(to: str) -> list[bytes]:
            """To what came there: back to its source, and by the LAN straight to the pod too."""
            found: list[bytes] = []
            wait_for("both flows", lambda: found.extend(there[to].marked(PROOF)) or len(found) >= 2)
            back = []
            for data in found:
                asked = Ether(data)
                for address, port in {(asked[IP].src, asked.sport), (old.address, 4001)}:
                    way = TCP(sport=ALLOWED, dport=port, flags="SA") if TCP in asked else UDP(sport=ALLOWED, dport=port)
                    head = Ether(src=asked.dst, dst=asked.src) / IP(src=to, dst=address)
                    back.append(bytes(head / way / Raw(MARK)))
            return back

        send(old, sends(old, PROOF, *there, flags="S"))
        from_peer, from_lan = answers(peer.address), answers(LAN)
        with sending(peer.netns, from_peer) as talk, sending(board.lan, from_lan) as more:
            arrived: set[tuple[str, int]] = set()

            def alive() -> bool:
                arrived.update((packet[IP].src, packet[IP].proto) for packet in map(Ether, here.marked(MARK)))
                return len(arrived) == 4

            wait_for("every answer", alive)
            board.cni("DEL", old)
            new = board.add("default/new", {"app": "new"})
            assert new.address == old.address
            for watch in there.values():
                watch.seen()
            further(talk, 20)
            further(more, 20)
            (counted,) = json.loads(ip("-n", new.netns, "-j", "-s", "link", "show", "eth0"))
            assert counted["stats64"]["rx"]["packets"] == 0, "not one since the device is there"
            send(new, [*sends(new, LIE, *there, flags="S"), *sends(new, LIE, *there)])
            watch = Watch(free.netns)
            stack.callback(watch.close)
            send(new, sends(new, PROOF, free.address))
            proven(watch)
        assert [data for watch in there.values() for data in watch.marked(LIE)] == []


RATE_HZ = 2000


def test_programs_that_are_taken_away_come_back_at_once(tmp_path: Path) -> None:
    """Whoever takes them away (only root can) opens the pod for the moment that the agent needs to hear of it."""
    with Board(tmp_path, 9, audit_s=600) as board, ExitStack() as stack:
        board.load()
        board.start()
        board.put("shut", policy("shut", "{endpointSelector: {matchLabels: {app: shut}}, ingress: [{}], egress: [{}]}"))
        pod = board.add("default/shut", {"app": "shut"})
        ip("-n", board.lan, "route", "add", "10.244.1.0/24", "via", NODE)
        out = IP(src=pod.address, dst=LAN) / UDP(sport=4001, dport=ALLOWED) / Raw(MARK)
        back = IP(src=LAN, dst=pod.address) / UDP(sport=4001, dport=ALLOWED) / Raw(MARK)
        watches = [Watch(board.lan), Watch(pod.netns)]
        for watch in watches:
            stack.callback(watch.close)
        mac = mac_of(board.node, pod.device)
        stack.enter_context(sending(pod.netns, [bytes(Ether(src=mac_of(pod.netns), dst=mac) / out)], 1 / RATE_HZ))
        stack.enter_context(
            sending(board.lan, [bytes(Ether(src=mac_of(board.lan), dst=mac_of(board.node)) / back)], 1 / RATE_HZ)
        )

        def guarded() -> bool:
            shown = (board.run("tc", "filter", "show", "dev", pod.device, way).stdout for way in ("ingress", "egress"))
            return all("netstack/" in text for text in shown)

        def denied(times: int) -> bool:
            return board.counter(Verdict.DEFAULT_DENY) >= times

        for words in (("qdisc", "clsact"), ("filter", "ingress"), ("filter", "egress")):
            board.run("tc", words[0], "del", "dev", pod.device, words[1], check=True)
            wait_for("the programs", guarded)
            passed = [len(watch.marked(MARK)) for watch in watches]
            assert max(passed) < RATE_HZ / 2, "some milliseconds, or what a busy machine makes of them"
            wait_for("the flood", partial(denied, board.counter(Verdict.DEFAULT_DENY) + 1000))
            assert [len(watch.marked(MARK)) for watch in watches] == [0, 0], "and none after"


@contextmanager
def lying(field: Field) -> Iterator[Callable[[], int]]:
    """The LAN sends to the victim in the name of a pod of the other node, which may."""
    lie = IP(src=REMOTE, dst=field.victim.address) / UDP(sport=4000, dport=ALLOWED) / Raw(LIE)
    watch = field.watch(field.victim.netns)
    with sending(field.board.lan, [field.of_the_lan().frame(lie)] * 4) as rounds:
        yield rounds
    assert watch.marked(LIE) == []


def test_an_uplink_without_programs_is_not_believed_and_is_given_them(tmp_path: Path) -> None:
    """The loader fails, because somebody else's program is there; later the device goes, and another has its name."""

    def unready() -> str:
        return str(board.ask("status")["unready"])

    def uplink() -> str:
        return board.run("tc", "filter", "show", "dev", "eth0", "ingress").stdout

    with ExitStack() as stack:
        board = stack.enter_context(Board(tmp_path, 9))
        board.occupy("eth0")
        with pytest.raises(AssertionError, match="not ours"):
            board.load()
        board.start()
        field = Field(board, stack)
        assert "eth0 has no programs" in unready() and "not ours" in unready()
        with lying(field) as rounds:
            further(rounds, 100)
            board.run("tc", "filter", "del", "dev", "eth0", "ingress", "pref", "1", check=True)
            wait_for("the audit", lambda: "eth0" not in unready())
            assert "netstack/uplink_ingress" in uplink()
            further(rounds, 100)
        board.plug()
        ip("-n", board.node, "neigh", "replace", OTHER_NODE, "lladdr", "02:00:00:00:00:22", "dev", "eth0")
        with lying(field) as rounds:
            wait_for("the audit", lambda: "netstack/uplink_ingress" in uplink())
            further(rounds, 100)


def test_an_uplink_whose_programs_are_taken_away_is_not_believed_any_more(tmp_path: Path) -> None:
    """Nor until the next look, which puts them back."""
    with ExitStack() as stack:
        board = stack.enter_context(Board(tmp_path, 9, audit_s=600))
        board.load()
        board.start()
        field = Field(board, stack)
        lie = IP(src=REMOTE, dst=field.victim.address) / UDP(sport=4000, dport=ALLOWED) / Raw(LIE)
        watch = field.watch(field.victim.netns)

        def refused(times: int) -> None:
            wait_for("the lies", partial(lambda wanted: board.counter(Verdict.SPOOFED) >= wanted, before + times))

        stack.enter_context(sending(board.lan, [field.of_the_lan().frame(lie)], 1 / RATE_HZ))
        before = board.counter(Verdict.SPOOFED)
        refused(100)
        assert watch.marked(LIE) == []
        board.run("tc", "qdisc", "del", "dev", "eth0", "clsact", check=True)
        before = board.counter(Verdict.SPOOFED)
        refused(1)
        assert len(watch.marked(LIE)) < RATE_HZ / 2, "some milliseconds, or what a busy machine makes of them"
        refused(1000)
        assert watch.marked(LIE) == [], "and none after"


def test_removal_opens_nothing(tmp_path: Path) -> None:
    """The steps of playbooks/remove.yml. What the LAN sends in the name of a pod of another node is stopped by the
    uplink's program alone: it must be there as long as there is a pod."""
    with ExitStack() as stack:
        board = stack.enter_context(Board(tmp_path, 9))
        board.load()
        board.start()
        field = Field(board, stack)
        scene = field.of_a_pod(field.attacker)
        out = scene.frame(IP(src=scene.attacker, dst=LAN) / UDP(sport=4000, dport=ALLOWED) / attacks.DATA)
        with probing(field) as rounds, lying(field) as lies, sending(field.attacker.netns, [out] * 100):
            further(rounds)
            board.stop()
            further(rounds)
            board.load("--detach")
            further(rounds)
            board.run("ip", "-4", "route", "flush", "table", "all", "proto", "78", check=True)
            further(rounds)
            further(lies)
        assert "netstack/" not in board.run("tc", "filter", "show", "dev", "eth0", "ingress").stdout
