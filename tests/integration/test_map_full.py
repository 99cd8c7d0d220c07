"""Maps that are too small for what is written about: the agent says which object, map and setting, what was in force
stays, nothing opens, and it goes on by itself when there is room."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from instruments.board import Board, CniFailure, Pod, wait_for

pytestmark = pytest.mark.root
OPEN, SHUT = 8080, 8081
SIZES = {"policy": 200, "identities": 60, "services": 30, "conntrack": 4}
GOOD = """
endpointSelector: {matchLabels: {app: server}}
ingress: [{fromEndpoints: [{matchLabels: {app: client}}], toPorts: [{ports: [{port: "8080"}]}]}]
"""
WEB = "10.96.0.1"


def policy(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": metadata, "spec": spec}


def service(name: str, address: str, count: int, target: str) -> list[dict[str, Any]]:
    metadata = {"name": name, "namespace": "default"}
    ports = [{"name": f"p{port}", "port": port, "targetPort": OPEN} for port in range(80, 80 + count)]
    piece = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {**metadata, "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "ports": [{"name": f"p{port}", "port": OPEN, "protocol": "TCP"} for port in range(80, 80 + count)],
        "endpoints": [{"addresses": [target], "nodeName": "n1"}],
    }
    spec = {"clusterIP": address, "ports": ports}
    return [{"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}, piece]


def everything() -> dict[str, Any]:
    """More rules than there is room for. If a part of them came into force, it would open what is shut."""
    ports = [{"port": str(port)} for port in range(SHUT, SHUT + 80)]
    return {"endpointSelector": {}, "ingress": [{"toPorts": [{"ports": ports[:40]}, {"ports": ports[40:]}]}]}


class Small:
    """A board with small maps, a client, and a server that lets it in at one of two ports."""

    def __init__(self, board: Board) -> None:
        self.board = board
        board.put("good", policy("good", yaml.safe_load(GOOD)))
        self.client = board.add("default/client", {"app": "client"})
        self.server = board.add("default/server", {"app": "server"})
        for port in (OPEN, SHUT):
            board.serve(self.server, port)
        board.put("web", *service("web", WEB, 1, self.server.address))
        wait_for("the service", lambda: self.reaches(WEB, 80))
        self.holds()

    def reaches(self, address: str, port: int, patience_s: float = 2) -> bool:
        return self.board.connect(self.client, address, port, patience_s) != ""

    def holds(self) -> None:
        """What was in force is, and no more."""
        assert self.reaches(self.server.address, OPEN) and self.reaches(WEB, 80)
        assert not self.reaches(self.server.address, SHUT, 0.3)

    def unready(self) -> str:
        return "; ".join(self.board.ask("status")["unready"])

    def generation(self) -> int:
        return int(self.board.ask("status")["generation"])

    def well(self) -> None:
        wait_for("all to be well again", lambda: not self.unready())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    with Board(tmp_path_factory.mktemp("board"), 9, sizes=SIZES) as board:
        board.load()
        board.start()
        yield Small(board)


def too_large(small: Small, name: str) -> tuple[list[dict[str, Any]], str]:
    """Objects that do not fit, and what the one is called that needs the most."""
    if name == "policy":
        return [policy("large", everything())], "CiliumNetworkPolicy default/large"
    if name == "identities":
        spec = {"endpointSelector": {}, "ingress": [{"fromCIDR": [f"10.99.0.{n}/32" for n in range(80)]}]}
        return [policy("wide", spec)], "CiliumNetworkPolicy default/wide"
    return service("big", "10.96.0.2", 60, small.server.address), "Service default/big"


@pytest.mark.parametrize("name", ["policy", "identities", "services"])
def test_what_does_not_fit_opens_nothing_is_said_and_comes_in_when_there_is_room(small: Small, name: str) -> None:
    objects, holder = too_large(small, name)
    generation = small.generation()
    small.board.put("large", *objects)
    said = wait_for("the complaint", small.unready)
    assert said.startswith(f"map {name} is too small: ") and f" of them for {holder}; nothing of it was changed" in said
    assert f"datapath.sizes.{name} in agent.yaml" in said
    status = small.board.ask("status")
    assert said in status["broken"] and said in small.board.log()
    assert status["generation"] == generation
    small.holds()
    small.board.stop()
    small.board.start()
    assert small.unready() == said, "a restart keeps what was in force, and says so"
    small.holds()
    (small.board.folder / "manifests/large.yaml").unlink()
    small.well()
    small.holds()


def test_a_pod_that_becomes_another_while_there_is_no_room_has_nothing_of_what_the_rules_gave_it(small: Small) -> None:
    small.board.put("large", *too_large(small, "policy")[0])
    wait_for("the complaint", small.unready)
    small.holds()
    try:
        small.board.pod_object("default/client", {"app": "stranger"})
        wait_for("the door to shut", lambda: not small.reaches(small.server.address, OPEN, 0.3))
        small.board.stop()
        small.board.start()
        assert not small.reaches(small.server.address, OPEN, 0.3)
    finally:
        small.board.pod_object("default/client", {"app": "client"})
    (small.board.folder / "manifests/large.yaml").unlink()
    small.well()
    small.holds()


def letting(port: int) -> dict[str, Any]:
    """The good policy with one port of the two, and many others that only this version has: more than half of what
    there is room for."""
    spec = yaml.safe_load(GOOD)
    more = range(20_000 + 100 * (port - OPEN), 20_035 + 100 * (port - OPEN))
    spec["ingress"][0]["toPorts"] = [{"ports": [{"port": str(number)} for number in (port, *more)]}]
    return policy("good", spec)


def test_rules_that_fit_but_not_beside_those_that_they_replace_come_into_force(small: Small) -> None:
    for port, shut in ((OPEN, SHUT), (SHUT, OPEN), (OPEN, SHUT)):
        small.board.put("good", letting(port))
        wait_for("the port", lambda port=port: small.reaches(small.server.address, port, 0.3))
        assert not small.reaches(small.server.address, shut, 0.3)
        assert small.unready() == ""
    assert small.board.log().count("the old ones went first") == 2
    generation = small.generation()
    small.board.put("good", policy("good", yaml.safe_load(GOOD)))
    wait_for("the change", lambda: small.generation() > generation)


def test_a_change_that_the_kernel_refuses_half_way_opens_nothing_and_is_repaired(small: Small) -> None:
    """Another hand fills the map, so that the agent cannot know beforehand."""
    board, generation = small.board, small.generation()
    table = board.folder / "bpf/netstack/maps/policy"
    fill = f"""
from netstack.kernel.bpf import Map
from netstack.kernel.layout import PolicyKey, PolicyRule
with Map.open({str(table)!r}) as table:
    for number in range({SIZES["policy"]} - 20 - len(list(table.items()))):
        table.put(PolicyKey(96, 1 << 31, number, 0, 6, 1).pack(), PolicyRule(1, 2).pack())
"""
    assert board.run(*board.python("-c", fill)).returncode == 0
    board.put("beside", policy("beside", letting(OPEN)["spec"]))
    while small.generation() == generation or small.unready():
        assert not small.reaches(small.server.address, SHUT, 0.1)
    assert "the kernel refused a change: write to policy: No space left on device" in board.log()
    small.holds()
    (board.folder / "manifests/beside.yaml").unlink()
    wait_for("the end", lambda: small.generation() > generation + 1)
    small.holds()


def test_a_services_map_that_is_full_keeps_no_pod_out(small: Small) -> None:
    small.board.put("large", *too_large(small, "services")[0])
    wait_for("the complaint", small.unready)
    late = small.board.add("default/late")
    assert small.board.connect(late, small.server.address, OPEN, 0.3) == "", "it is no client"
    small.board.cni("DEL", late)
    (small.board.folder / "manifests/large.yaml").unlink()
    small.well()


def test_pods_beyond_the_table_of_flows_are_refused_until_one_goes(small: Small) -> None:
    board = small.board
    board.pod_object("default/over", {"app": "client"})
    more = [board.add(f"default/more{number}") for number in range(SIZES["conntrack"] - 2)]
    with pytest.raises(CniFailure, match="could not be put in force see netstack status"):
        board.add("default/over", {"app": "client"})
    said = "map conntrack is too small: 5 entries of 4, 5 of them for the pods of this node"
    assert said in board.log()
    over: Pod = board.sandbox("default/over")
    assert board.connect(over, small.server.address, OPEN, 0.3) == ""
    small.holds()
    small.well()
    board.cni("DEL", more[0])
    over.result = board.cni("ADD", over)
    assert board.connect(over, small.server.address, OPEN) != ""
    small.holds()
