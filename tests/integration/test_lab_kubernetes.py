"""A lab with a control plane: nodes live and die in the cluster's eyes, and all of it goes when the lab goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lab import Lab, cgroups
from lab.controlplane import ApiError, skip_reason
from lab.lab import node_user
from lab.shell import alive, run, wait_until

pytestmark = [pytest.mark.root, pytest.mark.lab]

TESTS = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(TESTS)}
PROGRAMS = 4
# Of the cluster's view of a node. The lease is renewed every 2 s, and looked at every second.
GRACE_S, PATIENCE_S = 8, 60.0


@pytest.fixture(scope="module", autouse=True)
def possible() -> None:
    why_not = skip_reason()
    if why_not is not None:
        pytest.skip(why_not)


@pytest.fixture(scope="module")
def lab(possible: None) -> Iterator[Lab]:
    with Lab("tlabq", nodes=2, source="kubernetes", node_grace_s=GRACE_S) as lab:
        yield lab


def readiness(lab: Lab, name: str) -> str:
    node = lab.api.get("Node", "", name) or {"status": {}}
    return next((one["status"] for one in node["status"].get("conditions", []) if one["type"] == "Ready"), "")


def wait_readiness(lab: Lab, name: str, wanted: str) -> None:
    wait_until(lambda: readiness(lab, name) == wanted, f"{name} to be {wanted or 'gone'}", PATIENCE_S)


def test_nodes_reach_the_api_server_as_themselves(lab: Lab) -> None:
    for node in lab.nodes:
        client = lab.controlplane.client(node_user(node.name), netns=lab.names.netns_path(node.name))
        with pytest.raises(ApiError, match=f'User "netstack:node:{node.name}" cannot get resource "secrets"'):
            client.get("Secret", "kube-system", "anything")
        client.close()


def test_the_inventory_says_where_objects_come_from(lab: Lab, tmp_path: Path) -> None:
    lab.write_inventory(tmp_path / "hosts.yml")
    group = yaml.safe_load((tmp_path / "hosts.yml").read_text())["netstack_nodes"]
    assert group["vars"]["netstack_source"] == "kubernetes"
    kubeconfig = yaml.safe_load(Path(group["hosts"]["n1"]["netstack_kubeconfig_source"]).read_text())
    assert kubeconfig["clusters"][0]["cluster"]["server"] == f"https://{lab.controller.address}:6443"
    assert kubeconfig["users"][0]["name"] == "netstack:node:n1"


def test_a_node_without_power_is_lost_and_comes_back(lab: Lab) -> None:
    wait_readiness(lab, "n2", "True")
    lab.powercut("n2")
    wait_readiness(lab, "n2", "Unknown")
    lab.boot("n2")
    wait_readiness(lab, "n2", "True")
    assert readiness(lab, "n1") == "True"


def test_a_node_without_cable_is_lost_and_comes_back(lab: Lab) -> None:
    lab.unplug("n2")
    wait_readiness(lab, "n2", "Unknown")
    lab.plug("n2")
    wait_readiness(lab, "n2", "True")


def test_a_node_that_is_said_not_to_be_ready_stays_so(lab: Lab) -> None:
    def renewed() -> str:
        return str((lab.api.get("Lease", "kube-node-lease", "n1") or {"spec": {}})["spec"].get("renewTime"))

    lab.set_node_ready("n1", False)
    before = renewed()
    wait_until(lambda: renewed() != before, "n1 to renew its lease")
    assert readiness(lab, "n1") == "False"
    lab.set_node_ready("n1", True)


def test_after_a_wipe_nodes_register_again(lab: Lab) -> None:
    lab.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: forgotten}}")
    lab.controlplane.wipe()
    assert lab.api.get("ConfigMap", "default", "forgotten") is None
    for node in lab.nodes:
        wait_readiness(lab, node.name, "True")


def test_a_kept_lab_remembers_its_source_and_takes_its_control_plane_down(tmp_path: Path) -> None:
    def command(*words: str) -> str:
        inventory = str(tmp_path / "hosts.yml")
        argv = [sys.executable, "-m", "lab", "--prefix", "tlabr", "--inventory", inventory, *words]
        return run(argv, env=ENVIRONMENT, timeout_s=PATIENCE_S).stdout

    try:
        command("up", "--nodes", "1", "--source", "kubernetes")
        opened = Lab.open("tlabr")
        assert opened.source == "kubernetes"
        pids = opened.controlplane.running().values()
        assert len(pids) == PROGRAMS
        (stored,) = opened.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: here}}")
        assert stored["metadata"]["uid"]
    finally:
        command("down")
    assert not any(alive(pid) for pid in pids)


def test_a_killed_owners_control_plane_is_swept() -> None:
    program = (
        "import signal; from lab import Lab; lab = Lab('tlabs', 1, source='kubernetes'); lab.up();"
        "import json; print(json.dumps(lab.controlplane.running()), flush=True); signal.pause()"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], env=ENVIRONMENT, stdout=subprocess.PIPE)
    try:
        assert owner.stdout is not None
        pids = json.loads(owner.stdout.readline()).values()
        assert len(pids) == PROGRAMS
    finally:
        owner.kill()
        owner.communicate()
    Lab("tlabs").down()
    assert not any(alive(pid) for pid in pids)
    assert not (cgroups.unified() / "netstack-lab-tlabs").exists()
