"""HAProxy's namespace made by a CNI plugin: a real namespace and interface, a plugin of a few lines of shell."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.shell import run
from netstack.ingress import endpoint
from netstack.ingress.settings import IngressSettings

pytestmark = pytest.mark.root

PLUGIN = """#!/bin/bash
# Notes what it is asked, fails while the file `down` exists, and wires one end of a veth as the agent does.
folder=$(dirname "$0")
cat > "$folder/stdin"
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $CNI_ARGS" >> "$folder/calls"
netns=${CNI_NETNS##*/}
[ -e "$folder/down" ] && { echo '{"code": 11, "msg": "try again", "details": "no agent"}'; exit 1; }
[ $CNI_COMMAND = DEL ] && { ip -n $netns link del $CNI_IFNAME 2>/dev/null; exit 0; }
ip -n $netns link add $CNI_IFNAME type veth peer name host0 && ip -n $netns addr add 10.244.1.2/32 dev $CNI_IFNAME
echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.244.1.2/32"}]}'
"""


class Node:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        plugins = folder / "bin"
        plugins.mkdir()
        (plugins / "netstack").write_text(PLUGIN)
        (plugins / "netstack").chmod(0o755)
        conflist = folder / "05-netstack.conflist"
        conflist.write_text(json.dumps({"cniVersion": "1.0.0", "name": "netstack", "plugins": [{"type": "netstack"}]}))
        self.wiring = endpoint.Wiring(Path(f"/run/netns/ingend{os.getpid()}"), conflist, plugins)
        self.settings = IngressSettings(node="n1", endpoint=folder / "endpoint.json")
        self.slept: list[float] = []

    def add(self) -> str:
        return endpoint.add(self.settings, self.wiring, sleep=self.sleep)

    def delete(self) -> None:
        endpoint.delete(self.settings, self.wiring)

    def sleep(self, seconds: float) -> None:
        """The agent comes up while the third try waits."""
        self.slept.append(seconds)
        if len(self.slept) == 3:
            self.down(False)

    def down(self, is_down: bool) -> None:
        flag = self.folder / "bin/down"
        flag.touch() if is_down else flag.unlink()

    def calls(self) -> list[str]:
        return [line.split()[0] for line in (self.folder / "bin/calls").read_text().splitlines()]

    def interfaces(self) -> list[str]:
        shown = run(["ip", "-n", self.wiring.namespace.name, "-json", "link"]).stdout
        return [link["ifname"] for link in json.loads(shown)]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    run(["ip", "netns", "del", node.wiring.namespace.name], check=False)


def test_a_pod_of_the_services_namespace_is_wired_once(node: Node) -> None:
    assert node.add() == "10.244.1.2"
    assert node.interfaces() == ["lo", "host0", "eth0"]
    assert endpoint.address_of(node.settings) == "10.244.1.2"
    arguments = "IgnoreUnknown=1;K8S_POD_NAMESPACE=ingress-nginx;K8S_POD_NAME=netstack-ingress"
    assert (node.folder / "bin/calls").read_text() == (
        f"DEL netstack-ingress eth0 {arguments}\nADD netstack-ingress eth0 {arguments}\n"
    )
    assert json.loads((node.folder / "bin/stdin").read_text())["name"] == "netstack"
    assert node.add() == "10.244.1.2"
    assert node.calls() == ["DEL", "ADD"]


def test_an_agent_that_is_late_is_waited_for(node: Node) -> None:
    node.down(True)
    assert node.add() == "10.244.1.2"
    assert node.slept == [1.0, 1.0, 1.0]
    assert node.calls() == ["DEL", "DEL", "DEL", "DEL", "ADD"]


def test_an_agent_that_never_comes_is_named_in_its_own_words(node: Node) -> None:
    node.down(True)
    node.slept = [0.0] * 100
    with pytest.raises(endpoint.EndpointError, match="DEL: try again no agent"):
        node.add()
    assert len(node.slept) == 100 + endpoint.TRIES - 1
    assert endpoint.address_of(node.settings) == ""


def test_a_namespace_without_its_interface_is_wired_again(node: Node) -> None:
    node.add()
    run(["ip", "-n", node.wiring.namespace.name, "link", "del", "eth0"])
    assert node.add() == "10.244.1.2"
    assert node.interfaces() == ["lo", "host0", "eth0"]


def test_delete_leaves_nothing_and_may_be_repeated(node: Node) -> None:
    node.add()
    node.delete()
    assert not node.wiring.namespace.exists()
    assert endpoint.address_of(node.settings) == ""
    node.delete()
    assert node.calls() == ["DEL", "ADD", "DEL"]


def test_a_missing_or_foreign_conflist_is_named(node: Node) -> None:
    node.slept = [0.0] * 100
    node.wiring.conflist.write_text("{}")
    with pytest.raises(endpoint.EndpointError, match="conflist is no CNI network configuration list"):
        node.add()
    node.wiring.conflist.unlink()
    with pytest.raises(endpoint.EndpointError, match="No such file or directory"):
        node.add()
