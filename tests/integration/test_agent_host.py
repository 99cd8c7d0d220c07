"""Policies for nodes on real namespaces: who reaches the node, whom it reaches, and that nobody is locked out."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from instruments.board import LAN, NODE, Board, ip, wait_for
from instruments.netns import inside

pytestmark = pytest.mark.root
POLICY = """
nodeSelector: {}
ingress: [{fromEntities: [cluster], toPorts: [{ports: [{port: "8081", protocol: TCP}]}]}]
egress: [{toCIDR: [192.168.86.50/32], toPorts: [{ports: [{port: "8082", protocol: TCP}]}]}]
"""
SHORT_S = 0.4


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    with Board(tmp_path) as board:
        board.load()
        board.start()
        yield board


def policy() -> dict[str, Any]:
    head = {"apiVersion": "cilium.io/v2", "kind": "CiliumClusterwideNetworkPolicy", "metadata": {"name": "shut"}}
    return head | {"spec": yaml.safe_load(POLICY)}


def connection(stack: ExitStack, client: str, server: str, address: str, port: int) -> tuple[socket.socket, ...]:
    """(client's end, server's end) of a TCP connection that stays."""
    with inside(server):
        listener = stack.enter_context(socket.create_server((address, port)))
    with inside(client):
        one = stack.enter_context(socket.create_connection((address, port), timeout=2))
    other = stack.enter_context(listener.accept()[0])
    other.settimeout(2)
    return one, other


def test_a_node_is_shut_but_for_its_rules_and_for_what_is_kept(board: Board) -> None:
    pod = board.add("default/pod")
    board.serve(pod, 8080)
    for port in (22, 8081, 8084):
        board.serve(board.node, port, address=NODE)
    for port in (8082, 8085):
        board.serve(board.lan, port)

    def reached() -> dict[str, bool]:
        ways = {
            "lan to ssh": (board.lan, NODE, 22),
            "lan to a port for pods": (board.lan, NODE, 8081),
            "lan to another port": (board.lan, NODE, 8084),
            "pod to its port": (pod, NODE, 8081),
            "pod to another port": (pod, NODE, 8084),
            "node to its own pod": (board.node, pod.address, 8080),
            "node to a listed port": (board.node, LAN, 8082),
            "node to another port": (board.node, LAN, 8085),
            "pod to the lan": (pod, LAN, 8085),
        }
        return {name: bool(board.connect(where, to, port, SHORT_S)) for name, (where, to, port) in ways.items()}

    def shut() -> bool:
        return not board.connect(board.lan, NODE, 8084, SHORT_S)

    assert all(reached().values())
    denied = {"lan to a port for pods", "lan to another port", "pod to another port", "node to another port"}
    with ExitStack() as stack:
        old = connection(stack, board.node, board.lan, LAN, 8087)
        kept = connection(stack, board.lan, board.node, NODE, 6443)
        board.put("shut", policy())
        wait_for("the node to be shut", shut)
        assert {name for name, passed in reached().items() if not passed} == denied

        for one, other in (kept, kept[::-1]):
            one.sendall(b"still there")
            assert other.recv(64) == b"still there", "an established connection goes on, whoever speaks next"
        old[1].sendall(b"unheard")
        old[0].settimeout(SHORT_S)
        with pytest.raises(TimeoutError):
            old[0].recv(64)

    host = board.ask("status")["host"]
    assert (host["enforces"], host["policies"]) == (["ingress", "egress"], ["CiliumClusterwideNetworkPolicy shut"])
    assert host["kept"].startswith("always reachable: SSH (TCP 22)")

    board.stop(signal.SIGKILL)
    assert {name for name, passed in reached().items() if not passed} == denied, "programs and tables stay"
    board.start()
    assert {name for name, passed in reached().items() if not passed} == denied

    (board.folder / "manifests/shut.yaml").unlink()
    wait_for("the node to be open", lambda: not shut())
    assert all(reached().values())


WORLD = """
endpointSelector: {}
egress: [{toEntities: [world]}, {toCIDR: [0.0.0.0/0]}]
"""


def test_the_node_is_host_by_whatever_address_a_pod_sends_to_it(board: Board) -> None:
    """Another device's, of a device that comes later, and the LAN's broadcast."""
    ip("-n", board.node, "link", "add", "second", "type", "veth", "peer", "name", "third")
    ip("-n", board.node, "address", "add", "172.17.0.1/16", "dev", "second")
    ip("-n", board.node, "link", "set", "second", "up")
    pod = board.add("default/pod", {"app": "a"})
    board.serve(board.node, 8080, address="0.0.0.0")
    board.serve(board.lan, 8082)
    head = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "p", "namespace": "default"},
    }
    board.put("p", head | {"spec": yaml.safe_load(WORLD)})
    wait_for("the policy", lambda: board.connect(pod, NODE, 8080, SHORT_S) == "")
    assert board.connect(pod, LAN, 8082)
    assert board.connect(pod, "172.17.0.1", 8080, SHORT_S) == ""
    ip("-n", board.node, "address", "add", "172.18.0.1/16", "dev", "second")
    wait_for("the address", lambda: board.connect(pod, "172.18.0.1", 8080, SHORT_S) == "")
    with inside(board.node), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("", 9))
        listening.settimeout(SHORT_S)
        with inside(pod.netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
            sending.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sending.sendto(b"wake up", ("192.168.86.255", 9))
        with pytest.raises(TimeoutError):
            listening.recv(100)
    board.put("p", head | {"spec": yaml.safe_load(WORLD.replace("world", "host"))})
    for address in (NODE, "172.17.0.1", "172.18.0.1"):
        wait_for(address, lambda address=address: board.connect(pod, address, 8080, SHORT_S))  # type: ignore[misc]
