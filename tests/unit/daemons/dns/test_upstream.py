"""On loopback and without privilege: a server that hears from which port each question comes."""

from __future__ import annotations

import itertools
import select
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from netstack.core.address import pack
from netstack.dns.upstream import IDLE, LIFE_S, SPARE, USES, Place, Upstream, Upstreams, unpredictable

HERE = pack("127.0.0.10")


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.10", 0))
        sock.settimeout(5)
        yield sock


class Asker:
    """Asks the server, as the shim does; `now` stands still unless it is set."""

    def __init__(self, server: socket.socket) -> None:
        self.server = server
        self.port: int = server.getsockname()[1]
        self.ready = select.epoll()
        self.upstreams = Upstreams(self.ready, unpredictable().__next__)
        self.keys = itertools.count(1)
        self.now = 100.0

    def ask(self) -> Upstream:
        return self.upstreams.ask(next(self.keys), Place(HERE, self.port), b"question", self.now)

    def heard(self) -> Any:
        return self.server.recvfrom(100)[1]

    def warm(self, count: int = SPARE) -> list[Upstream]:
        """So many sockets, idle."""
        made = []
        for _ in range(count):
            made.append(self.ask())
            self.heard()
        for upstream in made:
            self.upstreams.release(upstream, self.now)
        return made


@pytest.fixture
def asker(server: socket.socket) -> Iterator[Asker]:
    made = Asker(server)
    yield made
    for upstream in list(made.upstreams._by_descriptor.values()):
        made.upstreams.close(upstream)
    made.ready.close()


def test_random_numbers_go_on_beyond_a_block_and_cover_their_range() -> None:
    drawn = list(itertools.islice(unpredictable(), 20_000))
    assert all(0 <= number < 65536 for number in drawn)
    assert len(set(drawn)) > 15_000
    assert drawn[:2048] != drawn[2048:4096]


def test_each_question_that_waits_has_a_port_of_its_own(asker: Asker) -> None:
    asker.warm()
    asked = [asker.ask() for _ in range(3 * SPARE)]
    assert len({asker.heard() for _ in asked}) == len(asked)
    assert len({upstream.key for upstream in asked}) == len(asked)


def test_a_socket_that_serves_again_is_drawn_from_several(asker: Asker) -> None:
    """Any of them, by chance: each turns up among 500 questions (all but once in 10^27)."""
    ports, made = set(), asker.warm()
    for _ in range(500):
        for upstream in made:
            upstream.uses = 0
        asked = asker.ask()
        ports.add(asker.heard())
        asker.upstreams.release(asked, asker.now)
    assert ports == {upstream.sock.getsockname() for upstream in made}


def test_with_fewer_to_draw_from_a_new_one_is_made(asker: Asker) -> None:
    made = asker.warm(SPARE - 1)
    assert asker.ask() not in made
    assert len(asker.upstreams) == SPARE


def test_none_serves_more_often_than_it_may(asker: Asker) -> None:
    used: dict[Any, int] = {}
    for _ in range(SPARE * USES * 2):
        asked = asker.ask()
        port = asker.heard()
        used[port] = used.get(port, 0) + 1
        asker.upstreams.release(asked, asker.now)
    assert max(used.values()) == USES
    assert len(used) > SPARE


def test_none_serves_longer_than_it_may(asker: Asker) -> None:
    made = asker.warm()
    asker.now += LIFE_S + 0.001
    assert asker.ask() not in made
    assert len(asker.upstreams) == SPARE  # those drawn were too old, until too few were left
    late = asker.ask()
    asker.upstreams.release(late, asker.now + LIFE_S + 0.001)
    assert late.sock.fileno() == -1
    asker.upstreams.expire(asker.now)
    assert len(asker.upstreams) == 1
    assert asker.upstreams._idle == {}


def test_a_socket_of_one_server_does_not_serve_for_another(asker: Asker) -> None:
    made = asker.warm()
    other = asker.upstreams.ask(99, Place(pack("127.0.0.11"), asker.port), b"question", asker.now)
    assert other not in made
    assert other.sock.getpeername() == ("127.0.0.11", asker.port)


def test_a_socket_of_one_sender_does_not_serve_for_another(asker: Asker) -> None:
    made = asker.warm()
    other = asker.upstreams.ask(99, Place(HERE, asker.port, pack("127.0.0.12")), b"question", asker.now)
    assert other not in made
    assert other.sock.getsockname()[0] == "127.0.0.12"


def test_so_many_stay_open_unused_and_no_more(asker: Asker) -> None:
    asker.warm(IDLE + 3)
    assert len(asker.upstreams) == IDLE


def test_a_closed_one_serves_no_more(asker: Asker) -> None:
    made = asker.warm(SPARE + 1)
    for upstream in made[:2]:
        asker.upstreams.close(upstream)
    assert asker.ask() not in made
    assert asker.upstreams.at(made[-1].sock.fileno()) is made[-1]


def test_what_came_of_an_earlier_question_does_not_fail_the_next(asker: Asker) -> None:
    """The server was away for a moment: an ICMP error waits at each idle socket, and the next send would report it."""
    made = asker.warm()
    asker.server.close()
    for upstream in made:
        upstream.sock.send(b"question")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as back:
        back.bind(("127.0.0.10", asker.port))
        back.settimeout(5)
        assert asker.ask() not in made
        assert back.recv(100) == b"question"


def test_without_a_way_it_is_an_error_and_nothing_stays(asker: Asker) -> None:
    with pytest.raises(OSError):
        asker.upstreams.ask(1, Place(pack("255.255.255.255"), 53), b"question", asker.now)
    assert len(asker.upstreams) == 0


def test_a_message_on_any_of_them_is_told(asker: Asker) -> None:
    (idle, *_), waiting = asker.warm(), asker.ask()
    port = asker.heard()
    for sock, address in ((idle, idle.sock.getsockname()), (waiting, port)):
        asker.server.sendto(b"answer", address)
        ((descriptor, _),) = asker.ready.poll(1)
        assert asker.upstreams.at(descriptor) is sock
        assert sock.sock.recv(100) == b"answer"
