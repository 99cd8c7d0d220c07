"""Services at the socket: real sockets of a process in a cgroup of its own."""

from __future__ import annotations

import errno
import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from bpf import packet as c
from bpf.namespaces import Namespace
from bpf.packet import SERVICE, Packet
from netstack.core.address import pack
from netstack.core.verdict import Verdict
from netstack.kernel import layout as l
from netstack.kernel.bpf import attach_cgroup
from netstack.kernel.programs import CGROUP, PROGRAMS

pytestmark = pytest.mark.root
HERE, BACKEND = "127.0.0.1", "127.0.0.2"


@pytest.fixture
def cgroup(node: Packet) -> Iterator[Path]:
    """A cgroup with every socket program attached. It goes, and they with it, when its processes have ended."""
    path = Path("/sys/fs/cgroup/unified" if Path("/sys/fs/cgroup/unified").is_dir() else "/sys/fs/cgroup")
    path = path / f"nstbpf{os.getpid()}"
    path.mkdir()
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for spec in PROGRAMS.values():
            if spec.hook == CGROUP:
                attach_cgroup(descriptor, node.program(spec.name), spec.attach_type)
        yield path
    finally:
        os.close(descriptor)
        path.rmdir()


def inside(cgroup: Path | None, namespace: Namespace, work: Callable[[], Any]) -> Any:
    """`work()` in a process of this cgroup and namespace; what it returns, or raises the OSError that it raised."""
    near, far = multiprocessing.Pipe(duplex=False)

    def child(answer: Connection) -> None:
        if cgroup is not None:
            (cgroup / "cgroup.procs").write_text(str(os.getpid()))
        with namespace.entered():
            try:
                answer.send(work())
            except OSError as error:
                answer.send(error)

    process = multiprocessing.get_context("fork").Process(target=child, args=(far,))
    process.start()
    far.close()
    result = near.recv() if near.poll(10) else OSError(errno.ETIME, "the child said nothing in 10 s")
    process.join(5)
    if isinstance(result, OSError):
        raise result
    return result


def serve(family: int, kind: int, address: str, port: int) -> socket.socket:
    """A server that answers one message with where it is and who asked."""
    server = socket.socket(family, kind)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((address, port))
    server.settimeout(5)

    def answer() -> None:
        if kind == socket.SOCK_STREAM:
            connection, _ = server.accept()
            with connection:
                connection.sendall(f"{address}:{port}".encode())
        else:
            while True:
                try:
                    _, peer = server.recvfrom(100)
                except OSError:
                    return
                server.sendto(f"{address}:{port}".encode(), peer)

    if kind == socket.SOCK_STREAM:
        server.listen()
    threading.Thread(target=answer, daemon=True).start()
    return server


def ask_tcp(
    to: tuple[str, int], server: tuple[str, int] = (BACKEND, 8080), family: int = socket.AF_INET
) -> Callable[[], tuple[str, Any]]:
    """Connect to `to` while `server` listens: (who answered, whom the client believes to talk to)."""

    def work() -> tuple[str, Any]:
        server_family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
        with serve(server_family, socket.SOCK_STREAM, *server), socket.socket(family) as client:
            client.settimeout(5)
            client.connect(to)
            return client.recv(100).decode(), client.getpeername()[:2]

    return work


def tcp_service(node: Packet, backend: str = BACKEND, **more: Any) -> None:
    node.service(SERVICE, 80, [(backend, 8080, c.NODE)], **more)


def test_what_is_no_service_is_left_alone(node: Packet, cgroup: Path, wires: Namespace) -> None:
    tcp_service(node)
    with pytest.raises(ConnectionRefusedError):
        inside(cgroup, wires, ask_tcp((HERE, 80)))
    assert inside(cgroup, wires, ask_tcp((BACKEND, 8080))) == (f"{BACKEND}:8080", (BACKEND, 8080))
    assert node.counts() == {}


def test_a_service_of_the_lan_side_or_another_protocol_is_none(node: Packet, cgroup: Path, wires: Namespace) -> None:
    tcp_service(node, scope=l.SCOPE_WORLD)
    tcp_service(node, protocol=17, number=2)
    with pytest.raises(OSError, match="unreachable"):
        inside(cgroup, wires, ask_tcp((SERVICE, 80)))


def test_another_cgroup_is_not_ours(node: Packet, cgroup: Path, wires: Namespace) -> None:
    tcp_service(node)
    with pytest.raises(OSError, match="unreachable"):
        inside(None, wires, ask_tcp((SERVICE, 80)))


def test_connect_reaches_a_backend_and_shows_the_service(node: Packet, cgroup: Path, wires: Namespace) -> None:
    tcp_service(node)
    assert inside(cgroup, wires, ask_tcp((SERVICE, 80))) == (f"{BACKEND}:8080", (SERVICE, 80))
    assert node.counts() == {Verdict.TRANSLATED: 1}


def test_an_ipv6_socket_may_ask_for_an_ipv4_service(node: Packet, cgroup: Path, wires: Namespace) -> None:
    tcp_service(node)
    work = ask_tcp((f"::ffff:{SERVICE}", 80), family=socket.AF_INET6)
    assert inside(cgroup, wires, work) == (f"{BACKEND}:8080", (f"::ffff:{SERVICE}", 80))


def test_an_ipv6_service(node: Packet, cgroup: Path, wires: Namespace) -> None:
    node.service("fd00:96::a", 80, [("::1", 8080, c.NODE)])
    work = ask_tcp(("fd00:96::a", 80), ("::1", 8080), socket.AF_INET6)
    assert inside(cgroup, wires, work) == ("::1:8080", ("fd00:96::a", 80))


def test_a_service_without_backends_refuses(node: Packet, cgroup: Path, wires: Namespace) -> None:
    node.service(SERVICE, 80, [])
    with pytest.raises(ConnectionRefusedError):
        inside(cgroup, wires, ask_tcp((SERVICE, 80)))
    assert node.counts() == {Verdict.NO_BACKEND: 1}


def test_a_backend_that_vanished_from_its_slot_is_skipped(node: Packet, cgroup: Path, wires: Namespace) -> None:
    node.service(SERVICE, 80, [("127.0.0.3", 8080, c.NODE), (BACKEND, 8080, c.NODE)])
    node.maps["backends"].delete(l.Number(17).pack())
    for _ in range(4):
        assert inside(cgroup, wires, ask_tcp((SERVICE, 80)))[0] == f"{BACKEND}:8080"


@pytest.mark.parametrize("address", [c.NODE, c.OTHER_NODE])
def test_a_node_port_at_any_node(node: Packet, cgroup: Path, wires: Namespace, address: str) -> None:
    node.service("", 30080, [(BACKEND, 8080, c.NODE)])
    assert inside(cgroup, wires, ask_tcp((address, 30080))) == (f"{BACKEND}:8080", (address, 30080))


def test_a_node_port_is_not_at_other_addresses(node: Packet, cgroup: Path, wires: Namespace) -> None:
    node.service("", 30080, [(BACKEND, 8080, c.NODE)])
    with pytest.raises(ConnectionRefusedError):
        inside(cgroup, wires, ask_tcp((HERE, 30080)))


def test_a_node_port_is_not_at_no_address(node: Packet, cgroup: Path, wires: Namespace) -> None:
    """connect(2) to :: reaches the namespace itself. Node ports stand under that key."""
    node.service("", 30080, [(BACKEND, 8080, c.NODE)])
    work = ask_tcp(("::", 30080), ("::1", 30080), socket.AF_INET6)
    assert inside(cgroup, wires, work) == ("::1:30080", ("::1", 30080))


def test_datagrams_without_connect(node: Packet, cgroup: Path, wires: Namespace) -> None:
    """Every datagram of a socket goes to the same backend, and answers come from the service."""
    backends = [f"127.0.0.{i}" for i in range(2, 8)]
    node.service(SERVICE, 53, [(backend, 5353, c.NODE) for backend in backends], protocol=17)

    def work() -> list[tuple[str, tuple[str, int]]]:
        servers = [serve(socket.AF_INET, socket.SOCK_DGRAM, backend, 5353) for backend in backends]
        answers = []
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(5)
            for _ in range(10):
                client.sendto(b"?", (SERVICE, 53))
                data, source = client.recvfrom(100)
                answers.append((data.decode(), source))
        for server in servers:
            server.close()
        return answers

    answers = inside(cgroup, wires, work)
    assert len(set(answers)) == 1
    assert answers[0][1] == (SERVICE, 53)


def test_with_affinity_all_sockets_of_a_pod_take_one_backend(node: Packet, cgroup: Path, wires: Namespace) -> None:
    backends = [(f"127.0.0.{i}", 8080, c.NODE) for i in range(2, 10)]

    def work() -> None:
        servers = [serve(socket.AF_INET, socket.SOCK_STREAM, backend, port) for backend, port, _ in backends]
        for _ in range(8):
            with socket.socket() as client:
                client.connect((SERVICE, 80))
        for server in servers:
            server.close()

    node.service(SERVICE, 80, backends, affinity_s=10800)
    inside(cgroup, wires, work)
    chosen = [key.address for key in node.entries("socket_revnat")]
    assert len(chosen) == 8 and len(set(chosen)) == 1


def test_connected_datagrams(node: Packet, cgroup: Path, wires: Namespace) -> None:
    node.service(SERVICE, 53, [(BACKEND, 5353, c.NODE)], protocol=17)

    def work() -> tuple[str, tuple[str, int], tuple[str, int]]:
        with (
            serve(socket.AF_INET, socket.SOCK_DGRAM, BACKEND, 5353),
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        ):
            client.settimeout(5)
            client.connect((SERVICE, 53))
            client.send(b"?")
            data, source = client.recvfrom(100)
            return data.decode(), source, client.getpeername()

    assert inside(cgroup, wires, work) == (f"{BACKEND}:5353", (SERVICE, 53), (SERVICE, 53))


def test_an_answer_from_elsewhere_keeps_its_source(node: Packet, cgroup: Path, wires: Namespace) -> None:
    node.service(SERVICE, 53, [(BACKEND, 5353, c.NODE)], protocol=17)

    def work() -> tuple[str, int]:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
        ):
            client.bind((HERE, 0))
            client.settimeout(5)
            client.sendto(b"?", (SERVICE, 53))
            other.bind(("127.0.0.9", 5353))
            other.sendto(b"!", client.getsockname())
            source: tuple[str, int] = client.recvfrom(100)[1]
            return source

    assert inside(cgroup, wires, work) == ("127.0.0.9", 5353)


def test_what_a_socket_believes_is_kept_by_its_cookie(node: Packet, cgroup: Path, wires: Namespace) -> None:
    tcp_service(node)
    inside(cgroup, wires, ask_tcp((SERVICE, 80)))
    ((key, value),) = node.entries("socket_revnat").items()
    assert (key.address, key.port) == (pack(BACKEND), 8080)
    assert (value.address, value.port) == (pack(SERVICE), 80)
