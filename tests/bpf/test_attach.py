"""Filters on devices, one by one. Replacing under load and pods are in test_loader.py and test_wire.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from bpf.namespaces import Namespace
from netstack.kernel.attach import EGRESS, HANDLE, INGRESS, PREFERENCE, Filter, TrafficControl
from netstack.kernel.bpf import SCHED_CLS, Program

pytestmark = pytest.mark.root


@dataclass
class Device:
    namespace: Namespace
    traffic: TrafficControl
    index: int


@pytest.fixture
def device() -> Iterator[Device]:
    namespace = Namespace()
    try:
        namespace.link("eth0", "peer")
        with namespace.entered(), TrafficControl() as traffic:
            link = traffic.link("eth0")
            assert link is not None
            yield Device(namespace, traffic, link.index)
    finally:
        namespace.close()


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


def test_detach_takes_ours_and_leaves_others(device: Device) -> None:
    with program("pod_ingress") as ours:
        device.traffic.attach(device.index, ours)
        words = ["tc", "filter", "add", "dev", "eth0", "egress", "pref", "9", "bpf", "bytecode"]
        device.namespace.run(*words, "1,6 0 0 0")
        assert device.traffic.detach(device.index) is True
        assert device.traffic.filters(device.index, INGRESS) == []
        assert "pref 9 bpf" in device.namespace.run("tc", "filter", "show", "dev", "eth0", "egress").stdout
