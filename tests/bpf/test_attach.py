"""Filters on devices, one by one. Replacing under load and pods are in test_loader.py and test_wire.py."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from bpf.namespaces import Namespace
from netstack.kernel.attach import EGRESS, HANDLE, INGRESS, PREFERENCE, Filter, Occupied, TrafficControl
from netstack.kernel.bpf import SCHED_CLS, Program

pytestmark = pytest.mark.root


@dataclass
class Device:
    namespace: Namespace
    traffic: TrafficControl
    index: int

    def tc(self, *words: str) -> str:
        return self.namespace.run("tc", *words).stdout


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    made = Namespace()
    try:
        made.link("eth0", "peer")
        yield made
    finally:
        made.close()


@pytest.fixture
def device(namespace: Namespace) -> Iterator[Device]:
    """Without a qdisc, at first."""
    with namespace.entered(), TrafficControl() as traffic:
        link = traffic.link("eth0")
        assert link is not None
        yield Device(namespace, traffic, link.index)
    namespace.run("tc", "qdisc", "del", "dev", "eth0", "clsact", check=False)


def program(name: str, result: int = 0) -> Program:
    return Program.load(name, SCHED_CLS, bytes([0xB7, 0, 0, 0, result, 0, 0, 0]) + bytes.fromhex("9500000000000000"))


def test_a_device_without_clsact_has_no_filters(device: Device) -> None:
    assert device.traffic.filters(device.index, INGRESS) == []
    assert device.traffic.detach(device.index) is False


def test_a_device_that_is_gone(device: Device) -> None:
    assert device.traffic.filters(9999, INGRESS) == []
    with program("pod_ingress") as ours, pytest.raises(OSError, match="No such device"):
        device.traffic.attach(9999, ours)


def test_attach_twice_is_once_and_another_program_takes_its_place(device: Device) -> None:
    with program("pod_ingress") as first, program("pod_ingress", 2) as second, program("pod_egress") as other:
        assert device.traffic.attach(device.index, first) is True
        assert device.traffic.attach(device.index, first) is False
        assert device.traffic.attach(device.index, second) is True
        assert device.traffic.filters(device.index, INGRESS) == [
            Filter(PREFERENCE, HANDLE, "netstack/pod_ingress", second.id)
        ]
        assert device.traffic.filters(device.index, EGRESS) == []
        assert device.traffic.attach(device.index, other) is True
        assert [f.id for f in device.traffic.filters(device.index, EGRESS)] == [other.id]


CLASSIC = ("bpf", "bytecode", "1,6 0 0 0")


@pytest.mark.parametrize(
    ("somebodys", "name"),
    [
        (("handle", "1", *CLASSIC), "bpf"),
        (("protocol", "ip", "handle", "2", *CLASSIC), "bpf"),
        (("u32", "match", "u32", "0", "0", "classid", "1:1"), "u32"),
    ],
)
def test_a_filter_of_any_kind_in_our_place_is_named_and_left(
    device: Device, somebodys: tuple[str, ...], name: str
) -> None:
    device.tc("qdisc", "add", "dev", "eth0", "clsact")
    device.tc("filter", "add", "dev", "eth0", "ingress", "pref", "1", *somebodys)
    before = device.tc("filter", "show", "dev", "eth0", "ingress")
    with program("pod_ingress") as ours, pytest.raises(Occupied, match=rf"ingress carries the filter '{name}'"):
        device.traffic.attach(device.index, ours)
    assert device.traffic.detach(device.index) is False
    assert device.tc("filter", "show", "dev", "eth0", "ingress") == before != ""


@pytest.mark.parametrize("place", [("pref", "2"), ("pref", "1", "handle", "2"), ("chain", "1", "pref", "1")])
def test_a_filter_beside_ours_is_none_of_our_business(device: Device, place: tuple[str, ...]) -> None:
    device.tc("qdisc", "add", "dev", "eth0", "clsact")
    device.tc("filter", "add", "dev", "eth0", "ingress", *place, *CLASSIC)
    before = device.tc("filter", "show", "dev", "eth0", "ingress")
    with program("pod_ingress") as ours:
        assert device.traffic.attach(device.index, ours) is True
        assert device.traffic.attach(device.index, ours) is False
    assert device.traffic.detach(device.index) is True
    assert device.tc("filter", "show", "dev", "eth0", "ingress") == before


class Killed(Exception):
    """A process ends here."""


@pytest.mark.parametrize("ending", ["attach", "detach"])
def test_who_is_killed_between_two_requests_leaves_no_empty_qdisc(
    device: Device, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = TrafficControl._ask
    with program("pod_ingress") as first, program("pod_egress") as second:

        def attach() -> None:
            for ours in (first, second):
                device.traffic.attach(device.index, ours)

        def act() -> None:
            attach() if ending == "attach" else device.traffic.detach(device.index)

        for number in itertools.count():
            if ending == "detach":
                attach()
            left = itertools.count(number, -1)

            def counted(*words: Any, left: Iterator[int] = left, **more: Any) -> Any:
                if not next(left):
                    raise Killed
                return ask(*words, **more)

            with monkeypatch.context() as patched:
                patched.setattr(TrafficControl, "_ask", counted)
                try:
                    act()
                    killed = False
                except Killed:
                    killed = True
            device.traffic.detach(device.index)
            assert "clsact" not in device.tc("qdisc", "show", "dev", "eth0"), number
            if not killed:
                break
    assert number > 2


def test_detach_takes_ours_and_leaves_others(device: Device) -> None:
    with program("pod_ingress") as ours:
        device.traffic.attach(device.index, ours)
        device.tc("filter", "add", "dev", "eth0", "egress", "pref", "9", *CLASSIC)
        assert device.traffic.detach(device.index) is True
        assert device.traffic.filters(device.index, INGRESS) == []
        assert "pref 9 bpf" in device.tc("filter", "show", "dev", "eth0", "egress")
