"""The modules network_policy and identity_info, by ansible, on all nodes: what they tell, and what packets do then."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.demo import ROOT, Home, reaches, refused, wait_ready
from lab import Lab, network
from lab.pods import Pod
from lab.shell import run

pytestmark = [pytest.mark.root, pytest.mark.lab]

NAMESPACE, NAME = "modules", "cat"
POLICY: dict[str, Any] = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": NAME, "namespace": NAMESPACE},
    "spec": {"podSelector": {"matchLabels": {"app": NAME}}, "policyTypes": ["Egress"]},
}


def play(
    lab: Lab, tmp_path: Path, module: str, *options: str, warned: str = "", **arguments: Any
) -> dict[str, dict[str, Any]]:
    """What the module says, by node, and what ansible prints, in `output`. With an API server, ansible runs where that
    is reached. `warned`: it has to warn of this; else it must not warn."""
    keep = {"content": "{{ said | to_json }}", "dest": f"{tmp_path}/{{{{ inventory_hostname }}}}", "mode": "0600"}
    book = {
        "hosts": "netstack_nodes",
        "gather_facts": False,
        "tasks": [
            {f"kubelab.netstack.{module}": arguments, "register": "said", "ignore_errors": True},
            {"ansible.builtin.copy": keep, "delegate_to": "localhost", "check_mode": False, "diff": False},
        ],
    }
    (tmp_path / "book.yml").write_text(yaml.safe_dump([book]))
    lab.write_inventory(tmp_path / "hosts.yml")
    command = [str(ROOT / "tests/playbook.sh"), str(tmp_path / "book.yml"), "-i", str(tmp_path / "hosts.yml"), *options]
    if lab.source == "kubernetes":
        netns = lab.names.netns_path(lab.controller.name)
        command = network.in_netns(netns, ["env", "-C", str(ROOT), *command])
    played = run(command, check=not warned, timeout_s=300)
    assert warned in played.stderr and bool(warned) == bool(played.returncode), played.stderr
    (tmp_path / "output").write_text(played.stdout)
    return {node.name: json.loads((tmp_path / node.name).read_text()) for node in lab.nodes}


@pytest.fixture
def cat(home: Home) -> Iterator[tuple[Pod, Pod]]:
    """Who asks, and who is asked, on two nodes."""
    lab = home.lab
    pods = (
        lab.pod(lab.nodes[0].name, NAMESPACE, NAME, {"app": NAME}),
        lab.web_pod(lab.nodes[1].name, NAMESPACE, "web"),
    )
    yield pods
    for pod in pods:
        pod.delete()
    if lab.api.get("NetworkPolicy", NAMESPACE, NAME) is not None:
        lab.delete("NetworkPolicy", NAMESPACE, NAME)


@pytest.fixture
def policy(home: Home, tmp_path: Path) -> Callable[..., dict[str, dict[str, Any]]]:
    """The module network_policy on all nodes, as `play` has it."""
    lab = home.lab
    source = {} if lab.source == "directory" else {"kubeconfig": str(lab.controlplane.user("admin") / "kubeconfig")}
    return partial(play, lab, tmp_path, "network_policy", **source)


def test_a_policy_by_ansible(
    home: Home, cat: tuple[Pod, Pod], policy: Callable[..., dict[str, dict[str, Any]]], tmp_path: Path
) -> None:
    lab, (pod, web) = home.lab, cat
    peer = web.sandbox.address
    url = f"http://{peer}:8080/"

    reaches(pod, url)
    would = policy("--check", "--diff", definition=POLICY)
    assert all(said["changed"] for said in would.values()), would
    (flow,) = would[pod.node]["effect"]["flows"]
    assert (flow["opens"], flow["source"], flow["destination"], flow["port"]) == (
        *(False, f"{NAMESPACE}/{NAME}"),
        *(f"{NAMESPACE}/web", 8080),
    )
    assert f"+#   denies {NAMESPACE}/{NAME} -> {NAMESPACE}/web TCP 8080" in (tmp_path / "output").read_text()
    (pairs,) = would[web.node]["effect"]["pairs"]
    assert pairs["sources"] == [f"{NAMESPACE}/{NAME}"] and {"world", f"{NAMESPACE}/web"} <= set(pairs["destinations"])
    reaches(pod, url)

    done = policy(definition=POLICY)
    assert any(said["changed"] for said in done.values()), done
    assert {said["enforced"]["state"] for said in done.values()} == {"enforced"}
    assert len({said["enforced"]["digest"] for said in done.values()}) == 1
    refused(home, pod, url, peer)  # at once: the module has waited

    again = policy(definition=POLICY)
    assert not any(said["changed"] or said["effect"]["pairs"] for said in again.values()), again
    wrong = policy(definition={**POLICY, "spec": {"podSelector": {}, "egres": []}})
    assert {said["msg"] for said in wrong.values()} == {wrong[pod.node]["msg"]}
    assert wrong[pod.node]["msg"].startswith(f"NetworkPolicy {NAMESPACE}/{NAME}: spec.egres: ")
    refused(home, pod, url, peer)

    identities = play(lab, tmp_path, "identity_info", namespace=NAMESPACE, labels={"app": NAME})
    found = {name: said["identities"] for name, said in identities.items()}
    assert {(one["identity"], *one["addresses"]) for ones in found.values() for one in ones} == {
        (found[pod.node][0]["identity"], pod.sandbox.address)
    }
    assert [name for name, (one,) in found.items() if one["endpoints"] == [f"{NAMESPACE}/{NAME}"]] == [pod.node]

    gone = policy(definition=POLICY, state="absent")
    assert any(said["changed"] for said in gone.values()), gone
    reaches(pod, url)
    assert not any(said["changed"] for said in policy(definition=POLICY, state="absent").values())


@pytest.fixture
def kitten(home: Home) -> Iterator[Pod]:
    """Another whom the policy selects, on a third node, whose agent may be stopped."""
    pod = home.lab.pod(home.lab.nodes[2].name, NAMESPACE, "kitten", {"app": NAME})
    yield pod
    home.lab.node(pod.node).run("systemctl start netstack-agent")
    wait_ready(home.lab.node(pod.node))
    pod.delete()


@pytest.mark.parametrize("performance", ["kubernetes"], indirect=True)
def test_a_node_without_its_agent_is_named_and_enforces_once_it_is_back(
    home: Home,
    cat: tuple[Pod, Pod],
    kitten: Pod,
    policy: Callable[..., dict[str, dict[str, Any]]],
    tmp_path: Path,
) -> None:
    """Until then the pod there that the policy selects is denied nothing: the module says on which node that is."""
    lab, (pod, web) = home.lab, cat
    peer, mute = web.sandbox.address, kitten.node
    url = f"http://{peer}:8080/"
    reaches(kitten, url)
    lab.node(mute).run("systemctl stop netstack-agent")
    would = policy("--check", definition=POLICY, warned=f"{mute}: netstack-agent does not answer")
    assert [said["changed"] for said in would.values()] == [True] * len(lab.nodes), would
    assert lab.api.get("NetworkPolicy", NAMESPACE, NAME) is None
    reaches(pod, url)

    done = policy(definition=POLICY, wait_timeout=2)
    assert [name for name, said in done.items() if said.get("failed")] == [mute], done
    assert f"fatal: [{mute}]: FAILED!" in (tmp_path / "output").read_text()
    reason = f"not known that this node enforces NetworkPolicy {NAMESPACE}/{NAME}: netstack-agent does not answer"
    assert done[mute]["msg"].startswith(reason), done[mute]
    assert {said["enforced"]["state"] for name, said in done.items() if name != mute} == {"enforced"}, done
    refused(home, pod, url, peer)
    reaches(kitten, url)
    stored = lab.api.get("NetworkPolicy", NAMESPACE, NAME)

    lab.node(mute).run("systemctl start netstack-agent")
    again = policy(definition=POLICY)
    told = [(said["changed"], said["enforced"]["state"]) for said in again.values()]
    assert told == [(False, "enforced")] * len(lab.nodes), again
    assert lab.api.get("NetworkPolicy", NAMESPACE, NAME) == stored
    refused(home, kitten, url, peer)
