"""The order of things, on loopback and without privilege. Transparent sockets: tests/integration/test_dns_proxy.py."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from instruments.dns_talk import answer_to, endpoint, question, rules_text
from netstack.core.files import write_atomic
from netstack.dns import sockets
from netstack.dns.apply import Identities, Learned
from netstack.dns.heard import Memory
from netstack.dns.message import Rcode
from netstack.dns.proxy import Proxy
from netstack.dns.recall import Recall
from netstack.dns.rulesfile import RulesFile
from netstack.dns.session import Reason, Session
from netstack.dns.settings import DnsSettings
from netstack.dns.upstream import SPARE, unpredictable
from netstack.kernel.layout import FqdnKey

POD, ASKED = "127.0.0.5", "127.0.0.10"


class Table(dict[bytes, bytes]):
    """Calls `on_put` before it takes an entry."""

    on_put: Callable[[], None] = staticmethod(lambda: None)

    def put(self, key: bytes, value: bytes) -> None:
        self.on_put()
        self[key] = value

    def delete(self, key: bytes) -> bool:
        return self.pop(key, None) is not None


def bound(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, 0))
    sock.settimeout(5)
    return sock


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Table, socket.socket, socket.socket]]:
    """The table, the pod's socket and the server's."""
    with contextlib.ExitStack() as stack:
        pod, server = (stack.enter_context(bound(address)) for address in (POD, ASKED))
        # the pod asks the proxy's port of the server's address; the server itself has another one
        port, towards = server.getsockname()[1], sockets.towards
        monkeypatch.setattr(sockets, "towards", lambda address, *_: towards(address, port))
        yield Table(), pod, server


async def served(
    folder: Path,
    table: Table,
    talk: Callable[[int], None],
    early: Callable[[int], None] = lambda port: None,
    tried: tuple[int, ...] = (),
) -> Session:
    """Run `early(port of the proxy)`, and in a thread `talk(port)` while a proxy serves; its session afterwards."""
    proxy, session = made(folder, table, tried)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("0.0.0.0", 0))
        listener.setsockopt(socket.IPPROTO_IP, 20, 1)  # IP_RECVORIGDSTADDR
        listener.setblocking(False)
        early(listener.getsockname()[1])
        await proxy.serve([listener])
        await asyncio.to_thread(talk, listener.getsockname()[1])
        await proxy.finish(1)
    return session


def made(folder: Path, table: Table, tried: tuple[int, ...] = ()) -> tuple[Proxy, Session]:
    write_atomic(folder / "rules.json", rules_text(endpoint(12, POD, {3: "x.io", 4: "y.io"}) | {"tried": list(tried)}))
    rules = RulesFile(folder / "rules.json", folder / "copy.json")
    session = Session(DnsSettings(), rules.rules, lambda: 0xABCD, Identities(Table()))
    tasks = []
    learned = Learned(table, Table(), 9, 9)
    recall = Recall(Memory(session.lifetime, 9), session, learned, lambda address: False, folder / "heard.json")
    proxy = Proxy(
        DnsSettings(),
        session,
        learned,
        rules,
        recall,
        unpredictable().__next__,
        lambda work, _: tasks.append(asyncio.Task(work)),
    )
    return proxy, session


def test_a_connection_accepted_in_the_turn_in_which_it_takes_no_more_is_answered(tmp_path: Path) -> None:
    """It was reset: asyncio drops what is accepted and has no transport yet when its server is closed."""

    async def scene() -> bytes:
        proxy, _ = made(tmp_path, Table())
        with socket.create_server((POD, 0)) as listener, socket.socket() as pod:
            listener.setblocking(False)
            await proxy.serve([listener])
            pod.settimeout(5)
            pod.connect(listener.getsockname())
            asked = question("evil.example")
            pod.sendall(len(asked).to_bytes(2) + asked)
            for _ in range(2):  # it is seen, and accepted
                await asyncio.sleep(0)
            await proxy.finish(1)
            return pod.recv(512)

    assert asyncio.run(scene())[5] & 15 == Rcode.REFUSED


def test_nothing_reaches_the_pod_before_its_address_is_in_the_table(
    tmp_path: Path, parts: tuple[Table, socket.socket, socket.socket]
) -> None:
    table, pod, server = parts
    seen_early = []
    table.on_put = lambda: seen_early.append(bool(select.select([pod], [], [], 0.1)[0]))

    def talk(port: int) -> None:
        pod.sendto(question("x.io"), (ASKED, port))
        payload, proxy = server.recvfrom(512)
        assert payload[:2] == b"\xab\xcd"
        server.sendto(answer_to(payload, "x.io. 5 A 192.0.2.1"), proxy)
        answer, sender = pod.recvfrom(512)
        assert sender == (ASKED, port)
        assert answer[:2] == b"\x12\x34"
        assert [FqdnKey.unpack(key).endpoint for key in table] == [12]

    asyncio.run(served(tmp_path, table, talk))
    assert seen_early == [False]


def full() -> None:
    raise OSError(errno.E2BIG, "the table is full")


def test_an_answer_whose_address_is_not_taken_is_replaced(
    tmp_path: Path, parts: tuple[Table, socket.socket, socket.socket]
) -> None:
    table, pod, server = parts

    table.on_put = full

    def talk(port: int) -> None:
        pod.sendto(question("x.io"), (ASKED, port))
        payload, proxy = server.recvfrom(512)
        server.sendto(answer_to(payload, "x.io. 5 A 192.0.2.1"), proxy)
        answer = pod.recv(512)
        assert answer[3] & 15 == Rcode.SERVFAIL
        assert b"\xc0\x00\x02\x01" not in answer

    session = asyncio.run(served(tmp_path, table, talk))
    assert session.counters[Reason.TABLE_REFUSED] == 1


def test_an_answer_does_not_wait_for_what_only_policies_on_trial_want(
    tmp_path: Path, parts: tuple[Table, socket.socket, socket.socket]
) -> None:
    """They deny nothing: the pod may reach the address whether it is learned or not."""
    table, pod, server = parts

    table.on_put = full

    def talk(port: int) -> None:
        pod.sendto(question("x.io"), (ASKED, port))
        payload, proxy = server.recvfrom(512)
        server.sendto(answer_to(payload, "x.io. 5 A 192.0.2.1"), proxy)
        assert pod.recv(512).endswith(b"\xc0\x00\x02\x01")

    session = asyncio.run(served(tmp_path, table, talk, tried=(3,)))
    assert session.counters[Reason.TABLE_REFUSED] == 0


def test_a_pod_that_has_learned_the_most_by_names_on_trial_learns_others(
    tmp_path: Path, parts: tuple[Table, socket.socket, socket.socket]
) -> None:
    table, pod, server = parts

    def talk(port: int) -> None:
        for name, count in (("x.io", 9), ("y.io", 2)):
            pod.sendto(question(name), (ASKED, port))
            payload, proxy = server.recvfrom(512)
            server.sendto(answer_to(payload, *(f"{name}. 5 A 192.0.{count}.{n}" for n in range(count))), proxy)
            assert pod.recv(512)[3] & 15 == Rcode.NOERROR
        assert len(table) == 9

    asyncio.run(served(tmp_path, table, talk, tried=(3,)))


def test_only_the_server_that_was_asked_is_heard(
    tmp_path: Path, parts: tuple[Table, socket.socket, socket.socket]
) -> None:
    """A forger who knows id, question and port, but sends from elsewhere: the kernel does not let it in."""
    table, pod, server = parts

    def talk(port: int) -> None:
        pod.sendto(question("x.io"), (ASKED, port))
        payload, proxy = server.recvfrom(512)
        with bound("127.0.0.66") as forger:
            forger.sendto(answer_to(payload, "x.io. 5 A 203.0.113.66"), proxy)
        server.sendto(answer_to(payload, "x.io. 5 A 192.0.2.1"), proxy)
        assert pod.recv(512).endswith(b"\xc0\x00\x02\x01")

    session = asyncio.run(served(tmp_path, table, talk))
    assert session.counters == {Reason.FORWARDED: 1, Reason.ANSWERED: 1}


def exchange(pod: socket.socket, server: socket.socket, port: int, count: int = SPARE) -> list[tuple[str, int]]:
    """So many questions at once, all answered; from where the server was asked."""
    for _ in range(count):
        pod.sendto(question("x.io"), (ASKED, port))
    heard = [server.recvfrom(512) for _ in range(count)]
    for payload, proxy in heard:
        server.sendto(answer_to(payload, "x.io. 5 A 192.0.2.1"), proxy)
    for _ in heard:
        assert pod.recv(512).endswith(b"\xc0\x00\x02\x01")
    return [proxy for _, proxy in heard]


def test_a_socket_that_has_served_well_serves_again(
    tmp_path: Path, parts: tuple[Table, socket.socket, socket.socket]
) -> None:
    table, pod, server = parts

    def talk(port: int) -> None:
        ports = exchange(pod, server, port)
        assert len(set(ports)) == SPARE
        assert exchange(pod, server, port, 1)[0] in ports

    asyncio.run(served(tmp_path, table, talk))


def test_a_socket_at_which_something_unasked_arrived_serves_no_more(
    tmp_path: Path, parts: tuple[Table, socket.socket, socket.socket]
) -> None:
    table, pod, server = parts

    def talk(port: int) -> None:
        ports = exchange(pod, server, port)
        for proxy in ports:
            server.sendto(b"unasked", proxy)
        assert exchange(pod, server, port, 1)[0] not in ports

    session = asyncio.run(served(tmp_path, table, talk))
    assert session.counters == {Reason.FORWARDED: SPARE + 1, Reason.ANSWERED: SPARE + 1}


def test_a_server_that_went_and_came_back_is_asked_anew(
    tmp_path: Path, parts: tuple[Table, socket.socket, socket.socket]
) -> None:
    """With the server away, an error waits at each socket that was used; the next question does not meet it."""
    table, pod, server = parts
    place = server.getsockname()

    def talk(port: int) -> None:
        ports = exchange(pod, server, port)
        server.close()
        pod.sendto(question("x.io"), (ASKED, port))
        assert pod.recv(512)[3] & 15 == Rcode.SERVFAIL
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as back:
            back.bind(place)
            back.settimeout(5)
            assert len(exchange(pod, back, port)) == len(ports)

    session = asyncio.run(served(tmp_path, table, talk))
    assert session.counters[Reason.SERVER_UNREACHABLE] == 1


def test_told_to_stop_it_answers_every_question_that_it_has_read(
    tmp_path: Path, parts: tuple[Table, socket.socket, socket.socket]
) -> None:
    table, pod, _ = parts

    def ask(port: int) -> None:
        for number in range(200):
            pod.sendto(question("evil.example", ident=number), (ASKED, port))

    session = asyncio.run(served(tmp_path, table, lambda port: None, ask))
    assert [int.from_bytes(pod.recv(512)[:2]) for _ in range(200)] == list(range(200))
    assert session.counters == {Reason.NAME_NOT_ALLOWED: 200}


def test_more_questions_of_one_pod_than_may_wait_are_dropped_and_counted(
    tmp_path: Path, parts: tuple[Table, socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netstack.dns.proxy._WAITING", 20)
    table, pod, _ = parts

    def ask(port: int) -> None:
        for number in range(100):
            pod.sendto(question("evil.example", ident=number), (ASKED, port))

    session = asyncio.run(served(tmp_path, table, lambda port: None, ask))
    assert session.counters == {Reason.NAME_NOT_ALLOWED: 20, Reason.POD_BUSY: 80}
