"""netstack-cni: results, what they stand for, and every error of the specification."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from instruments.board import Board, CniFailure, ip

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    with Board(tmp_path_factory.mktemp("board")) as board:
        board.load()
        board.start()
        yield board


def test_the_result_of_add_and_what_it_made(board: Board) -> None:
    pod = board.add("default/one")
    assert pod.result["cniVersion"] == "1.0.0"
    assert pod.result["interfaces"][1] == {
        "name": "eth0",
        "mac": json.loads(ip("-n", pod.netns, "-j", "link", "show", "eth0"))[0]["address"],
        "sandbox": f"/run/netns/{pod.netns}",
    }
    assert pod.result["ips"] == [{"address": "10.244.1.3/32", "gateway": "169.254.1.1", "interface": 1}]
    routes = {route["dst"]: route.get("gateway") for route in json.loads(ip("-n", pod.netns, "-j", "route"))}
    assert routes == {"default": "169.254.1.1", "169.254.1.1": None}
    (neighbour,) = json.loads(ip("-n", pod.netns, "-j", "neigh"))
    assert neighbour["state"] == ["PERMANENT"]
    assert ip("-n", pod.netns, "-6", "address", "show", "dev", "eth0") == ""  # so it looks for no router either
    assert "10.244.1.3" in ip("-n", board.node, "route", "show", "proto", "78", "dev", pod.device)
    assert "PERMANENT" in ip("-n", board.node, "neigh", "show", "dev", pod.device)
    for switch, value in (("ipv4/conf/{}/rp_filter", "0"), ("ipv6/conf/{}/disable_ipv6", "1")):
        read = board.run("cat", f"/proc/sys/net/{switch.format(pod.device)}", check=True)
        assert read.stdout.strip() == value
    rules = board.run("ip", "rule", check=True).stdout
    assert "fwmark 0x53000000/0xff000000 lookup 1053 proto 78" in rules


@pytest.mark.parametrize(
    ("command", "config", "environment", "code", "words"),
    [
        ("ADD", "{", {}, 6, "is not JSON"),
        ("ADD", "[]", {}, 6, "is not a JSON object"),
        ("ADD", '{"cniVersion": "9.0"}', {}, 1, "cniVersion '9.0' is not supported"),
        ("ADD", '{"cniVersion": "1.0.0"}', {}, 7, "has no name"),
        ("ADD", None, {"CNI_ARGS": ""}, 4, "CNI_ARGS has no K8S_POD_NAMESPACE"),
        ("ADD", None, {"CNI_CONTAINERID": ""}, 4, "CNI_CONTAINERID is not set"),
        ("ADD", None, {"CNI_NETNS": "/run/netns/none"}, 4, "cannot be opened"),
        ("FROB", None, {}, 4, "CNI_COMMAND is 'FROB'"),
    ],
)
def test_bad_calls_of_the_plugin(
    board: Board, command: str, config: str | None, environment: dict[str, str], code: int, words: str
) -> None:
    board.pod_object("default/bad", {})
    with pytest.raises(CniFailure, match=words) as failure:
        board.cni(command, board.sandbox("default/bad"), config, **environment)
    assert failure.value.code == code


def test_add_twice_is_one_pod_and_del_leaves_nothing(board: Board) -> None:
    pod = board.add("default/one")
    assert board.cni("ADD", pod) == pod.result
    assert board.cni("CHECK", pod) == {}
    assert board.cni("DEL", pod) == {}
    assert board.cni("DEL", pod) == {}
    assert pod.device not in ip("-n", board.node, "link")
    assert pod.address not in ip("-n", board.node, "route", "show", "table", "all")
    assert pod.address not in [endpoint["address"] for endpoint in board.ask("status")["endpoints"]]
    with pytest.raises(CniFailure, match="no endpoint"):
        board.cni("CHECK", pod)
    freed = pod.address
    assert board.add("default/one").address != freed, "a freed address rests"
