"""Segments on a fake wire and fake maps; the engine with real pipes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest

from netstack.announcer.apply import Engine, Event, Gateway, Segment
from netstack.announcer.beat import Ack, Beat, Claim, Flag, Stage, decode, encode
from netstack.announcer.conflict import Conflict
from netstack.announcer.elect import Election
from netstack.announcer.events import Lost, Owned
from netstack.announcer.frames import BROADCAST, ETH_ARP, REPLY, REQUEST, Arp, decode_arp, encode_arp
from netstack.announcer.gratuitous import Gratuitous
from netstack.announcer.settings import Timing
from netstack.core.address import pack

KEY = b"the key of these tests"
VIP, SIX = pack("192.168.86.18"), pack("fd00::18")
OWN, ROUTER = pack("192.168.86.21"), pack("192.168.86.1")
MAC, PEER_MAC, ROUTER_MAC, STRANGER = (bytes([2, 0, 0, 0, 0, number]) for number in range(1, 5))


class FakeWire:
    interface, index, mac = "eth0", 7, MAC

    def __init__(self) -> None:
        self.link = True
        self.out: list[bytes] = []
        self.beats: list[tuple[bytes, bytes]] = []
        self.frames: list[bytes] = []
        self.groups: set[bytes] = set()

    def send_beat(self, destination: bytes, payload: bytes) -> None:
        self.out.append(b"beat" + payload)

    def send(self, frame: bytes) -> None:
        self.out.append(frame)

    def received_beats(self) -> Iterator[tuple[bytes, bytes]]:
        while self.beats:
            yield self.beats.pop(0)

    def received_arp(self) -> Iterator[bytes]:
        while self.frames:
            yield self.frames.pop(0)

    def carrier(self) -> bool:
        return self.link

    def join_solicited_node(self, address: bytes) -> None:
        self.groups.add(address)

    def leave_solicited_node(self, address: bytes) -> None:
        self.groups.discard(address)

    def arp(self) -> list[Arp]:
        """ARP sent since last asked."""
        sent, self.out = self.out, []
        return [decode_arp(frame) for frame in sent if frame[12:14] == ETH_ARP.to_bytes(2)]


class FakeTables:
    def __init__(self) -> None:
        self.deadlines: dict[bytes, float] = {}
        self.terms: dict[bytes, int] = {}
        self.alive: dict[str, float] = {}

    def set_deadline(self, address: bytes, index: int, mac: bytes, deadline_s: float, term: int) -> None:
        assert (index, mac) == (7, MAC)
        self.deadlines[address], self.terms[address] = deadline_s, term

    def set_alive(self, node: str, until_s: float) -> None:
        self.alive[node] = until_s


class Bench:
    """One segment, its fakes and a clock."""

    def __init__(self, *peers: str, witness: bool = True) -> None:
        self.now = 100.0
        self.wire, self.tables = FakeWire(), FakeTables()
        self.events: list[Event] = []
        election = Election("n1", peers, KEY, 5, Timing(), witness=witness, now=self.now)
        gateway = Gateway(ROUTER, OWN) if witness else None
        self.segment = Segment(
            self.wire, self.tables, election, Gratuitous(60.0), gateway, lambda _, event: self.events.append(event),
            clock=lambda: self.now,
        )  # fmt: skip
        self.segment.want({VIP: frozenset(["n1", *peers])}, self.now)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while (at := max(self.now, self.segment.wakeup)) <= end:
            self.now = at
            self.segment.tick(at)
        self.now = end

    def hear(self, arp: Arp) -> None:
        self.wire.frames.append(encode_arp(arp, arp.sender_mac, MAC))
        self.segment.read_arp()


def test_an_owner_of_one_node_answers_by_deadline_and_announces_itself() -> None:
    bench = Bench()
    bench.run(1.19)
    assert bench.tables.deadlines == {}
    bench.wire.out.clear()
    bench.run(0.02)
    assert bench.now < bench.tables.deadlines[VIP] <= bench.now + 0.35
    assert [type(event) for event in bench.events] == [Owned]
    sent = bench.wire.arp()
    assert [(arp.operation, arp.gratuitous) for arp in sent if arp.sender == VIP] == [
        (REQUEST, True), (REPLY, True), (REQUEST, False)
    ]  # fmt: skip
    assert bench.tables.terms[VIP] == 1
    assert bench.tables.alive["n1"] > bench.now
    bench.run(10)
    assert bench.now < bench.tables.deadlines[VIP]


def test_a_lost_carrier_silences_and_its_return_announces_again() -> None:
    bench = Bench()
    bench.run(10)
    bench.wire.link = False
    bench.segment.check_link()
    assert bench.tables.deadlines[VIP] == 0
    assert isinstance(bench.events[-1], Lost)
    bench.wire.arp()
    bench.run(3)
    assert not [arp for arp in bench.wire.arp() if arp.sender == VIP]
    bench.wire.link = True
    bench.segment.check_link()
    bench.run(0.2)
    assert [arp for arp in bench.wire.arp() if arp.sender == VIP]


def test_the_gateway_is_asked_by_broadcast_until_it_answers_and_then_directly() -> None:
    bench = Bench("n2")
    bench.run(0.0)
    questions = [frame for frame in bench.wire.out if frame[12:14] == ETH_ARP.to_bytes(2)]
    assert questions[0][:6] == BROADCAST
    assert decode_arp(questions[0]) == Arp(REQUEST, MAC, OWN, bytes(6), ROUTER)
    bench.hear(Arp(REPLY, ROUTER_MAC, ROUTER, STRANGER, OWN))  # an answer to somebody else proves nothing
    assert not bench.segment.election.gateway_seen
    bench.hear(Arp(REPLY, ROUTER_MAC, ROUTER, MAC, OWN))
    assert bench.segment.election.gateway_seen
    bench.wire.out.clear()
    bench.run(0.11)
    questions = [frame for frame in bench.wire.out if frame[12:14] == ETH_ARP.to_bytes(2)]
    assert questions[0][:6] == ROUTER_MAC


def test_beats_of_peers_are_acknowledged_and_keep_their_node_alive() -> None:
    bench = Bench("n2")
    bench.run(1.0)
    bench.wire.out.clear()
    claim = Claim(VIP, 4, Stage.OWNER)
    bench.wire.beats.append((PEER_MAC, encode(Beat("n2", 9, 1, Flag(0), ("n1",), (claim,)), KEY)))
    bench.segment.read_beats()
    answers = [decode(frame[4:], KEY) for frame in bench.wire.out if frame.startswith(b"beat")]
    assert Ack("n1", 9, 1, 5, ()) in answers
    assert bench.tables.alive["n2"] == pytest.approx(bench.now + 0.5)
    assert bench.segment.election.holder(VIP, bench.now) == "n2"


def test_a_stranger_with_our_address_is_reported_and_met_with_one_announcement() -> None:
    bench = Bench()
    bench.run(10)
    bench.wire.arp()
    for _ in range(3):
        bench.hear(Arp(REPLY, STRANGER, VIP, PEER_MAC, pack("192.168.86.50")))
    assert bench.events[-1] == Conflict(VIP, STRANGER, defend=True)
    assert [arp.operation for arp in bench.wire.arp() if arp.gratuitous] == [REQUEST, REPLY]
    assert bench.segment.conflicts.counts == {VIP: 3}


def test_what_is_no_arp_is_passed_over() -> None:
    bench = Bench()
    bench.wire.frames.append(b"noise")
    bench.segment.read_arp()
    assert bench.events == []


def test_an_ipv6_address_has_its_group_joined_and_is_announced_by_ndp() -> None:
    bench = Bench()
    bench.segment.want({SIX: frozenset(["n1"])}, bench.now)
    assert bench.wire.groups == {SIX}
    bench.run(1.3)
    assert any(frame[:2] == b"\x33\x33" for frame in bench.wire.out)
    bench.segment.want({}, bench.now)
    assert bench.wire.groups == set()
    assert bench.tables.deadlines[SIX] == 0


# ---- the engine ----


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine([])
    yield engine
    engine.stop()


def started(engine: Engine, sockets: dict[int, object] | None = None) -> threading.Thread:
    thread = threading.Thread(target=engine.run, args=(sockets or {},))
    thread.start()
    return thread


def test_calls_run_in_the_engines_thread_with_the_time(engine: Engine) -> None:
    thread = started(engine)
    before = time.monotonic()
    name, now = engine.call(lambda now: (threading.current_thread(), now)).result(5)
    assert name is thread and before <= now <= time.monotonic()
    engine.stop()
    thread.join(5)


def test_an_error_of_a_call_goes_to_its_caller_and_the_engine_runs_on(engine: Engine) -> None:
    thread = started(engine)
    with pytest.raises(ZeroDivisionError):
        engine.call(lambda now: 1 / 0).result(5)
    assert engine.call(lambda now: 1).result(5) == 1
    engine.stop()
    thread.join(5)


def test_a_call_after_the_end_is_cancelled_and_never_waits(engine: Engine) -> None:
    thread = started(engine)
    engine.stop()
    thread.join(5)
    with pytest.raises(CancelledError):
        engine.call(lambda now: 1).result(5)


def test_what_can_be_read_is_read(engine: Engine) -> None:
    reader, writer = os.pipe()
    got = threading.Event()

    def read() -> None:
        os.read(reader, 10)
        got.set()

    thread = started(engine, {reader: read})
    os.write(writer, b"x")
    assert got.wait(5)
    engine.stop()
    thread.join(5)
    os.close(reader)
    os.close(writer)


def test_a_failing_segment_ends_the_engine_with_its_error(engine: Engine) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"x")

    def fail() -> None:
        raise OSError("the map is gone")

    with pytest.raises(OSError, match="the map is gone"):
        engine.run({reader: fail})
    os.close(reader)
    os.close(writer)
