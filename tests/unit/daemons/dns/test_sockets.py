"""What needs no privilege; the sockets themselves are tested in tests/integration/test_dns_proxy.py."""

from __future__ import annotations

import errno
import os
import re
import socket
from pathlib import Path

import pytest

from netstack.core.address import pack
from netstack.dns import sockets
from netstack.dns.session import Client, Transport
from netstack.kernel.layout import PROXY_OWN_MARK


def test_the_original_destination_is_read_from_either_family() -> None:
    v4 = (socket.AF_INET).to_bytes(2, "little") + b"\0\x35" + bytes([10, 96, 0, 10]) + bytes(8)
    v6 = (socket.AF_INET6).to_bytes(2, "little") + b"\0\x35" + bytes(4) + pack("fd00::a") + bytes(4)
    assert sockets.original_destination([(socket.IPPROTO_IP, 20, v4)]) == (pack("10.96.0.10"), 53)
    assert sockets.original_destination([(1, 29, b""), (socket.IPPROTO_IPV6, 74, v6)]) == (pack("fd00::a"), 53)
    assert sockets.original_destination([]) is None


def test_descriptors_meant_for_another_process_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDS", "2")
    monkeypatch.delenv("LISTEN_PID", raising=False)
    assert sockets.inherited() == []
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))
    assert sockets.inherited() == []


def test_the_service_manager_marks_the_sockets_for_the_programs() -> None:
    unit = Path(__file__).parents[4] / "roles/dns/templates/netstack-dns.socket.j2"
    (mark,) = re.findall("^Mark=(.*)$", unit.read_text(), re.MULTILINE)
    assert int(mark, 0) == PROXY_OWN_MARK


def test_a_server_without_a_route_is_an_error_at_once() -> None:
    with pytest.raises(OSError):
        sockets.towards(pack("255.255.255.255"), 53)


def test_each_question_has_a_port_of_its_own() -> None:
    opened = [sockets.towards(pack("127.0.0.1"), 53) for _ in range(8)]
    try:
        assert len({sock.getsockname()[1] for sock in opened}) == 8
    finally:
        for sock in opened:
            sock.close()


@pytest.mark.parametrize(
    ("family", "anywhere", "asked", "recvorigdstaddr"),
    [
        (socket.AF_INET, "0.0.0.0", "127.0.0.10", (socket.IPPROTO_IP, 20)),
        (socket.AF_INET6, "::", "::1", (socket.IPPROTO_IPV6, 74)),
    ],
)
def test_an_answer_leaves_from_the_address_that_was_asked(
    family: socket.AddressFamily, anywhere: str, asked: str, recvorigdstaddr: tuple[int, int]
) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as sock, socket.socket(family, socket.SOCK_DGRAM) as pod:
        sock.bind((anywhere, 0))
        sock.setsockopt(*recvorigdstaddr, 1)
        sock.setblocking(False)
        listener = sockets.Listener(sock)
        assert listener.receive() is None
        pod.settimeout(5)
        pod.connect((asked, sock.getsockname()[1]))
        pod.send(b"question" + bytes(2000))
        received = listener.receive()
        assert received is not None
        client, payload = received
        assert (client.server, client.server_port) == (pack(asked), sock.getsockname()[1])
        assert len(payload) == 1233
        listener.send(client, b"answer")
        assert pod.recv(100) == b"answer"
        for answer in (b"a longer answer", b"short", bytes(4000), b""):
            listener.send(client, answer)
            assert pod.recv(5000) == answer


def test_an_answer_that_the_kernel_does_not_take_is_an_error_and_the_next_one_leaves() -> None:
    with bound() as sock, bound() as pod:
        listener = sockets.Listener(sock)
        pod.settimeout(5)
        client = Client(
            pack("127.0.0.1"), pod.getsockname()[1], pack("127.0.0.1"), sock.getsockname()[1], Transport.UDP
        )
        with pytest.raises(OSError) as refusal:
            listener.send(client, bytes(65535))
        assert refusal.value.errno == errno.EMSGSIZE
        with pytest.raises(ValueError):
            listener.send(client, bytes(65536))
        with pytest.raises(OSError) as refusal:
            listener.send(client._replace(address=pack("255.255.255.255")), b"answer")
        assert refusal.value.errno == errno.EACCES
        listener.send(client, b"answer")
        assert pod.recv(100) == b"answer"


def bound() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock
