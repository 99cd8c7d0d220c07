"""The agent's side of the CNI: waiting, refusing, the audit, the ingress endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from instruments.board import NODE, Board, CniFailure, ip, wait_for

pytestmark = pytest.mark.root


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    with Board(tmp_path) as board:
        board.load()
        board.start()
        yield board


def test_del_without_an_agent_succeeds_and_is_made_good_later(board: Board) -> None:
    pod = board.add("default/one")
    board.stop()
    assert board.cni("DEL", pod) == {}
    board.start()
    wait_for("the audit", lambda: board.ask("status")["endpoints"] == [])


def test_a_pod_whose_object_is_unknown_waits_and_is_told_so(board: Board) -> None:
    pod = board.sandbox("default/ghost")
    with pytest.raises(CniFailure, match=r"Pod default/ghost is not known on this node yet waited 0.5 s") as failure:
        board.cni("ADD", pod)
    assert failure.value.code == 11
    assert "eth0" not in ip("-n", pod.netns, "link")


def test_a_full_pod_cidr(tmp_path: Path) -> None:
    with Board(tmp_path, 1, pod_cidr="10.244.1.0/29") as board:
        board.load()
        board.start()
        for number in range(4):
            board.add(f"default/p{number}")
        with pytest.raises(CniFailure, match=r"no address is left for the pod 10.244.1.0/29 is full") as failure:
            board.add("default/one-too-many")
        assert failure.value.code == 100
        board.cni("DEL", board.pods["default/p2"])
        assert board.add("default/next").address == "10.244.1.5"


def test_the_audit_gives_a_device_its_programs_back_and_takes_strangers_down(board: Board) -> None:
    pod = board.add("default/one")
    board.run("tc", "qdisc", "del", "dev", pod.device, "clsact", check=True)
    wait_for("the audit", lambda: "netstack/" in board.run("tc", "filter", "show", "dev", pod.device, "ingress").stdout)
    ip("-n", board.node, "link", "add", "nst0123456789ab", "type", "veth", "peer", "name", "stranger")
    ip("-n", board.node, "link", "set", "nst0123456789ab", "up")
    wait_for("the audit", lambda: "state DOWN" in ip("-n", board.node, "link", "show", "nst0123456789ab"))


def test_a_device_that_was_taken_down_works_again_once_it_has_its_programs(board: Board) -> None:
    pod = board.add("default/one")
    board.serve(board.node, 8080)
    occupied = occupy(board, pod.device)
    wait_for("the closing", lambda: "state DOWN" in ip("-n", board.node, "link", "show", pod.device))
    board.run("tc", "filter", "del", "dev", pod.device, *occupied, check=True)
    wait_for("the audit", lambda: board.connect(pod, NODE, 8080, 0.3) != "")


def occupy(board: Board, device: str) -> list[str]:
    """Somebody else's filter where ours belongs; where that is."""
    place = ["ingress", "pref", "1", "handle", "1", "bpf"]
    pinned = f"{board.folder}/bpf/netstack/progs/pod_egress"
    words = ("filter", "replace", "dev", device, *place, "direct-action", "object-pinned", pinned)
    board.run("tc", *words, check=True)
    return place


def test_another_plugins_configuration_is_moved_aside(board: Board) -> None:
    folder = board.folder / "net.d"
    for name in ("00-other.conflist", "05-netstack.conflist", "99-loopback.conf", "README"):
        (folder / name).write_text("{}")
    aside = {"00-other.conflist.netstack-disabled", "99-loopback.conf.netstack-disabled"}
    wait_for(
        "the audit", lambda: {path.name for path in folder.iterdir()} == aside | {"05-netstack.conflist", "README"}
    )
    assert "00-other.conflist would have pods wired around every policy" in board.log()


def test_the_ingress_endpoint_has_its_own_address_and_its_services_labels(board: Board) -> None:
    metadata = {"name": "ingress-nginx-controller", "namespace": "ingress-nginx"}
    spec = {"selector": {"app": "ingress-nginx"}, "ports": [{"port": 80}]}
    board.put("ingress", {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
    sandbox = board.sandbox("ingress-nginx/netstack-ingress")
    result = board.cni("ADD", sandbox, CNI_CONTAINERID="netstack-ingress")
    assert result["ips"][0]["address"] == "10.244.1.2/32"
    (peer,) = [p for p in board.ask("identities") if "10.244.1.2" in p["addresses"]]
    assert peer["labels"]["app"] == "ingress-nginx"
    assert peer["labels"]["io.kubernetes.pod.namespace"] == "ingress-nginx"
    board.cni("DEL", sandbox, CNI_CONTAINERID="netstack-ingress")


def test_what_has_no_programs_is_closed_without_waiting_for_an_audit(tmp_path: Path) -> None:
    """Somebody's filter is where ours belongs: the device goes down, once. A stranger with a pod's name goes down."""
    with Board(tmp_path, audit_s=600) as board:
        board.load()
        board.start()
        pod = board.add("default/one")

        def down(device: str) -> bool:
            return "state DOWN" in ip("-n", board.node, "link", "show", device)

        ip("-n", board.node, "link", "add", "nst0123456789ab", "type", "veth", "peer", "name", "stranger")
        ip("-n", board.node, "link", "set", "nst0123456789ab", "up")
        wait_for("the stranger", lambda: down("nst0123456789ab"))
        occupy(board, pod.device)
        wait_for("the closing", lambda: down(pod.device))
        board.cni("DEL", pod)
        assert board.log().count("has no programs") == 1
        assert "Traceback" not in board.log()
