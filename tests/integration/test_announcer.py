"""The announcer on real packets: three nodes, a client, and everything that may happen to an owner.

Gaps are measured by a client that asks every 2 ms, and printed (pytest -s).
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from instruments.boards import Asker, Board, BoardLan, run, until
from instruments.netns import inside
from netstack.announcer.frames import REQUEST, Arp, announcements, decode_arp
from netstack.core.address import pack

pytestmark = pytest.mark.root

FENCE_S = 0.35
VIP = "192.168.86.18"
AUTO = "192.168.86.5"
POOL = """
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: first-pool, namespace: metallb-system}
spec: {addresses: [192.168.86.5-192.168.86.19]}
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: {name: kubelab, namespace: metallb-system}
spec: {ipAddressPools: [first-pool]}
"""
SERVICES = """
apiVersion: v1
kind: Service
metadata: {name: ingress, namespace: web, annotations: {metallb.universe.tf/loadBalancerIPs: 192.168.86.18}}
spec: {type: LoadBalancer, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: web}
spec: {type: LoadBalancer, ports: [{port: 80}]}
"""


def cgroup_v2() -> Path:
    unified = Path("/sys/fs/cgroup/unified")
    return unified if unified.is_dir() else Path("/sys/fs/cgroup")


@pytest.fixture(scope="module")
def lan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BoardLan]:
    if os.geteuid():
        pytest.skip("needs root for namespaces, raw sockets and bpf(2)")
    folder = tmp_path_factory.mktemp("announcer")
    cgroup = cgroup_v2() / f"nstann{os.getpid()}"
    lan = BoardLan(folder)
    try:
        cgroup.mkdir()
        (lan.manifests / "metallb.yaml").write_text(POOL)
        (lan.manifests / "services.yaml").write_text(SERVICES)
        for board in lan.boards.values():
            board.load_programs(cgroup)
        yield lan
    finally:
        lan.close()
        if cgroup.is_dir():
            cgroup.rmdir()


@pytest.fixture
def owner(lan: BoardLan) -> Iterator[Board]:
    """Every announcer runs, links are up, and one node answers for VIP: that one."""
    for name, board in lan.boards.items():
        lan.cable(name, True)
        if board.process is None or board.process.poll() is not None:
            board.start()
    with Asker(lan, VIP) as asker:
        until(lambda: all(board.hears_all() for board in lan.boards.values()), 15, "all nodes hear one another")
        until(asker.last, 10, f"somebody answers for {VIP}")
        mac = asker.last()
    yield next(board for board in lan.boards.values() if board.mac == mac)


def say(text: str) -> None:
    print(f"\n  {text}", flush=True)


def test_exactly_one_node_answers_and_says_why(lan: BoardLan, owner: Board) -> None:
    with Asker(lan, VIP) as asker:
        until(lambda: len(asker.answers) > 100)
    assert {mac for _, mac in asker.answers} == {owner.mac}
    assert len(asker.answers) <= len(asker.asked)
    for board in lan.boards.values():
        (view,) = board.status()["interfaces"]
        assert view["addresses"][VIP]["owner"] == owner.name
        assert view["gateway_seen"] is True and view["carrier"] is True
    assert "why" in owner.status()["interfaces"][0]["addresses"][VIP]


def test_what_was_allocated_is_in_the_status_folder(lan: BoardLan, owner: Board) -> None:
    for board in lan.boards.values():
        service = yaml.safe_load((board.folder / "status/service.web.ingress.yaml").read_text())
        assert service["status"]["loadBalancer"]["ingress"] == [{"ip": VIP, "ipMode": "VIP"}]
        other = yaml.safe_load((board.folder / "status/service.web.other.yaml").read_text())
        assert other["status"]["loadBalancer"]["ingress"] == [{"ip": AUTO, "ipMode": "VIP"}]
        pool = yaml.safe_load((board.folder / "status/ipaddresspool.metallb-system.first-pool.yaml").read_text())
        assert pool["status"] == {"assignedIPv4": 2, "availableIPv4": 13, "assignedIPv6": 0, "availableIPv6": 0}
        announces = board.folder / f"status/servicel2status.web.l2-{board.name}-ingress.yaml"
        assert until(lambda a=announces, b=board: a.exists() == (b is owner))  # type: ignore[misc]


@pytest.mark.parametrize("fault", ["kill -9", "freeze", "cable", "power cut"])
def test_another_node_answers_when_the_owner_fails(lan: BoardLan, owner: Board, fault: str) -> None:
    until(lambda: lan_resolved(lan), what="the client has resolved the address")
    with Asker(lan, VIP) as asker:
        until(lambda: len(asker.answers) > 20)
        if fault in ("cable", "power cut"):
            lan.cable(owner.name, False)
        if fault in ("kill -9", "power cut"):
            owner.kill()
        if fault == "freeze":
            owner.signal(signal.SIGSTOP)
        heir = asker.wait_for_other(owner.mac)
        time.sleep(0.5)
        if fault == "freeze":
            owner.signal(signal.SIGCONT)
            time.sleep(0.5)
        if fault == "cable":
            lan.cable(owner.name, True)
            time.sleep(1.5)
    assert asker.changes() == [owner.mac, heir]  # nobody else, and never back
    until(lambda: lan.client_neighbour(VIP) == heir, 2, "gratuitous ARP has moved the client's entry")
    say(f"{fault}: silent for {asker.gap() * 1000:.0f} ms")


def lan_resolved(lan: BoardLan) -> bytes:
    run("ip", "netns", "exec", lan.client, "sh", "-c", f"ping -c 1 -W 1 {VIP} || true")
    return lan.client_neighbour(VIP)


def test_a_stop_hands_over(lan: BoardLan, owner: Board) -> None:
    with Asker(lan, VIP) as asker:
        until(lambda: len(asker.answers) > 20)
        owner.signal(signal.SIGTERM)
        heir = asker.wait_for_other(owner.mac)
        assert owner.running.wait(timeout=5) == 0
        time.sleep(0.3)
    assert asker.changes() == [owner.mac, heir]
    say(f"stop: silent for {asker.gap() * 1000:.0f} ms")
    assert "handed over to" in owner.log()


def test_a_restart_moves_nothing_and_changes_no_address(lan: BoardLan, owner: Board) -> None:
    with Asker(lan, VIP) as asker:
        for board in [board for board in lan.boards.values() if board is not owner]:
            board.signal(signal.SIGTERM)
            assert board.running.wait(timeout=5) == 0
            board.start()
            until(lambda b=board: b.hears_all(), 10)  # type: ignore[misc]
    assert asker.changes() == [owner.mac]


def test_with_all_announcers_killed_the_address_falls_silent_at_the_fence(lan: BoardLan, owner: Board) -> None:
    with Asker(lan, VIP) as asker:
        until(lambda: len(asker.answers) > 20)
        for board in lan.boards.values():
            board.kill()
        killed, fence = time.monotonic(), owner.deadline(VIP)
        assert owner.deadline(VIP) <= killed + FENCE_S
        until(lambda: asker.asked[-1] > fence + 0.5, what="questions after the fence")
    say(f"all killed: last answer after {(asker.answers[-1][0] - killed) * 1000:.0f} ms")
    with Asker(lan, VIP) as asker:
        until(lambda: len(asker.asked) > 100)
    assert asker.answers == []


def test_a_stranger_that_announces_the_address_is_reported_and_answered(lan: BoardLan, owner: Board) -> None:
    stranger = bytes.fromhex("020000000099")
    with inside(lan.client), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind(("eth0", 0x0806))
        sock.settimeout(5)
        for frame in announcements(pack(VIP), stranger):
            sock.send(frame)
        defence = Arp(REQUEST, owner.mac, pack(VIP), bytes(6), pack(VIP))
        while decode_arp(sock.recv(2048)) != defence:
            pass
    assert f"{stranger.hex(':')}" in owner.log()
    (view,) = owner.status()["interfaces"]
    assert view["conflicts"] == {VIP: 2}


def test_a_broken_manifest_leaves_everything_in_force(lan: BoardLan, owner: Board) -> None:
    (lan.manifests / "metallb.yaml").write_text(
        POOL.replace("192.168.86.5-192.168.86.19", "192.168.86.19-192.168.86.5")
    )
    try:
        until(lambda: "upside down" in owner.log(), what="the refusal is in the log")
        with Asker(lan, VIP) as asker:
            until(lambda: len(asker.answers) > 100)
        assert asker.changes() == [owner.mac]
        assert "IPAddressPool metallb-system/first-pool: spec.addresses[0]" in owner.log()
        (broken,) = owner.status()["broken"]
        assert "IPAddressPool metallb-system/first-pool: spec.addresses[0]" in broken
    finally:
        (lan.manifests / "metallb.yaml").write_text(POOL)


def test_a_pool_that_overlaps_is_refused_with_its_name_and_the_first_stays(lan: BoardLan, owner: Board) -> None:
    second = lan.manifests / "second.yaml"
    second.write_text(POOL.split("---")[0].replace("first-pool", "a-pool").replace("86.5-", "86.15-"))
    try:
        until(lambda: owner.status()["pools"])
        assert (
            "overlaps 192.168.86.5-192.168.86.19 of IPAddressPool metallb-system/first-pool"
            in owner.status()["pools"][0]
        )
        assert owner.status()["broken"] == owner.status()["pools"]
        assert VIP in owner.status()["interfaces"][0]["addresses"]
    finally:
        second.unlink()


def test_a_service_that_goes_is_silent_on_every_node_and_its_status_is_gone(lan: BoardLan, owner: Board) -> None:
    services = lan.manifests / "services.yaml"
    with Asker(lan, VIP) as asker:
        until(lambda: len(asker.answers) > 20)
        services.write_text(SERVICES.split("---")[1])
        until(lambda: time.monotonic() - asker.answers[-1][0] > 0.3, what="silence")
        said = [board.folder / "status/service.web.ingress.yaml" for board in lan.boards.values()]
        until(lambda: not any(path.exists() for path in said), what="the status to be gone on every node")
        services.write_text(SERVICES)
        until(lambda: time.monotonic() - asker.answers[-1][0] < 0.1, what="an answer again")
