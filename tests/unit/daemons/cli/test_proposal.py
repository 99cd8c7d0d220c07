"""A node without its daemons: settings, objects and an observer's socket in a folder."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from instruments import clusters
from netstack.agent.settings import AgentSettings
from netstack.cli.effect import Told
from netstack.cli.proposal import Unanswerable, propose
from netstack.core import settings
from netstack.source.status import file_name

POLICY: dict[str, Any] = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "p", "namespace": "one"},
    "spec": {"podSelector": {}, "policyTypes": ["Egress"]},
}
FILE = "networkpolicy.one.p.yaml"
EVENT = {
    "verdict": "FORWARDED",
    "direction": "egress",
    "source": {"address": clusters.ADDRESSES["one/a"], "port": 4000, "names": []},
    "destination": {"address": "8.8.8.8", "port": 443, "names": []},
    "learned": [],
    "entity": "world",
    "protocol": "TCP",
    "repeats": 0,
}


@pytest.fixture
def chosen(tmp_path: Path) -> AgentSettings:
    pods = [clusters.pod(name, {}, [], "default") for name in clusters.PODS]
    folder = tmp_path / "manifests"
    folder.mkdir()
    (folder / "cluster.yaml").write_text(yaml.safe_dump_all([*map(clusters.node, (1, 2, 3)), *pods]))
    return settings.parse(
        AgentSettings,
        {
            "node": "n1",
            "node_address": "192.168.86.21",
            "pod_cidr": "10.244.1.0/24",
            "manifests": str(folder),
            "state": str(tmp_path / "state"),
            "status": str(tmp_path / "status"),
        },
    )


@pytest.fixture
def observer(tmp_path: Path) -> Iterator[Path]:
    """Answers one request with one event."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "observer.sock"))
        server.listen()

        def answer() -> None:
            connection, _ = server.accept()
            with connection, connection.makefile("rb") as asked:
                assert json.loads(asked.readline())["command"] == "flows"
                connection.sendall(json.dumps({"ok": EVENT}).encode() + b"\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield tmp_path
        thread.join(5)


def ask(document: Any, chosen: AgentSettings, **options: Any) -> Told:
    return propose(document, chosen, run=Path("/nonexistent"), **options)


def ends(told: Told) -> list[tuple[bool, tuple[str, ...]]]:
    return [(pairs.opens, pairs.sources) for pairs in told.pairs]


def test_flows_and_pairs_with_the_nodes_own_observer(chosen: AgentSettings, observer: Path) -> None:
    told = propose(POLICY, chosen, run=observer)
    assert [str(flow) for flow in told.flows] == ["denies one/a -> 8.8.8.8 TCP 443 (seen 1x), by NetworkPolicy one/p"]
    assert told.selects == ("one/a", "one/c")
    assert ends(told) == [(False, ("one/a", "one/c"))]
    assert told.notes == ()


def test_a_silent_observer_is_noted(chosen: AgentSettings) -> None:
    (note,) = ask(POLICY, chosen).notes
    assert note.startswith("flows seen lately are not known: netstack-observer does not answer")


def test_where_the_object_is_kept(chosen: AgentSettings) -> None:
    place = ask(POLICY, chosen).place
    path = chosen.manifests / FILE
    assert (place["source"], place["file"], place["elsewhere"], place["beside"]) == ("directory", str(path), [], [])
    assert (place["changed"], place["before"]) == (True, "")
    path.write_text(place["after"])
    told = ask(dict(reversed(POLICY.items())), chosen)
    assert (told.place["changed"], told.pairs, told.place["after"] != "") == (False, (), True)
    gone = ask({name: POLICY[name] for name in ("kind", "metadata")}, chosen, absent=True)
    assert (gone.place["changed"], gone.place["after"], ends(gone)) == (True, "", [(True, ("one/a", "one/c"))])
    assert gone.digest == "" and told.digest == ask(POLICY, chosen).digest != ""


def test_other_files_and_other_objects_are_named(chosen: AgentSettings) -> None:
    other = {**POLICY, "metadata": {"name": "q", "namespace": "one"}}
    (chosen.manifests / "mine.yaml").write_text(yaml.safe_dump(POLICY))
    assert ask(POLICY, chosen).place["elsewhere"] == [str(chosen.manifests / "mine.yaml")]
    (chosen.manifests / "mine.yaml").rename(chosen.manifests / FILE)
    (chosen.manifests / FILE).write_text(yaml.safe_dump_all([POLICY, other]))
    assert ask(POLICY, chosen).place["beside"] == ["NetworkPolicy one/q"]


def test_the_agents_settings_and_last_good_versions_count(chosen: AgentSettings) -> None:
    ranges = {**POLICY, "spec": POLICY["spec"] | {"egress": [{"to": [{"ipBlock": {"cidr": "10.244.0.0/16"}}]}]}}
    assert any("one/c" in pairs.destinations for pairs in ask(ranges, chosen).pairs)
    object.__setattr__(chosen, "policy_cidr_match_mode", ("pods",))
    assert not any("one/c" in pairs.destinations for pairs in ask(ranges, chosen).pairs)


def test_the_last_good_version_of_a_broken_policy_counts(chosen: AgentSettings) -> None:
    broken = {
        **POLICY,
        "metadata": {"name": "b", "namespace": "one"},
        "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egres": []},
    }
    (chosen.manifests / "broken.yaml").write_text(yaml.safe_dump(broken))
    spec = {"endpointSelector": {}, "egressDeny": [{"toEntities": ["world"]}], "enableDefaultDeny": {"egress": False}}
    deny = {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": POLICY["metadata"], "spec": spec}
    assert ask(deny, chosen).pairs == (), "there is none, so its pods deny already"
    (chosen.state / "policies").mkdir(parents=True)
    kept = {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"ports": [{"protocol": "TCP"}]}]}
    item = {"ref": ["NetworkPolicy", "one", "b"], "specs": [kept]}
    (chosen.state / "policies/b.json").write_text(json.dumps(item))
    assert [(pairs.destinations, pairs.what) for pairs in ask(deny, chosen).pairs] == [(("world",), "TCP")]


def test_taking_an_unreadable_policy_away_opens_what_it_denied(chosen: AgentSettings) -> None:
    (chosen.manifests / FILE).write_text(yaml.safe_dump(POLICY | {"apiVersion": "networking.k8s.io/v9"}))
    told = ask(POLICY, chosen, absent=True)
    assert {pairs.opens for pairs in told.pairs} == {True}
    assert {"one/a", "two/b", "world"} <= {name for pairs in told.pairs for name in pairs.sources}


def test_nothing_of_the_agents_is_written(chosen: AgentSettings, tmp_path: Path) -> None:
    (chosen.manifests / FILE).write_text(yaml.safe_dump(POLICY))
    before = sorted(tmp_path.rglob("*"))
    ask(POLICY, chosen)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_agents_copy_of_what_the_api_server_said(chosen: AgentSettings) -> None:
    object.__setattr__(chosen, "source", "kubernetes")
    with pytest.raises(Unanswerable, match="has heard nothing from the API server yet"):
        ask(POLICY, chosen)
    copy = chosen.state / "good/kubernetes/pod"
    copy.mkdir(parents=True)
    (chosen.manifests / "cluster.yaml").rename(copy / "all.yaml")
    with pytest.raises(Unanswerable, match="copy of what the API server said lacks pod"):
        ask(POLICY, chosen)
    (copy / ".complete").touch()
    told = ask(POLICY, chosen)
    assert (told.place, told.selects) == ({"source": "kubernetes"}, ("one/a", "one/c"))


def test_on_trial(chosen: AgentSettings) -> None:
    tried = {**POLICY, "metadata": POLICY["metadata"] | {"annotations": {"netstack.kubelab.io/audit": "true"}}}
    told = ask(tried, chosen)
    assert (told.on_trial, told.pairs) == (True, ())
    assert told.trial_pairs == ask(POLICY, chosen).pairs


def test_what_is_named_and_not_there_is_noted(chosen: AgentSettings) -> None:
    spec = {"endpointSelector": {}, "egress": [{"toCIDRSet": [{"cidrGroupRef": "gone"}]}]}
    policy = {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": {"name": "p"}, "spec": spec}
    assert ask(policy, chosen).notes[1] == (
        "CiliumNetworkPolicy default/p: spec.egress[0]: there is no CiliumCIDRGroup gone"
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"kind": "Service"}, "Service one/p: kind: must be one of NetworkPolicy, CiliumNetworkPolicy, "),
        ({"metadata": {"name": "../p"}}, "NetworkPolicy default/../p: metadata.name: '../p' is no name that Kube"),
        ({"apiVersion": "a.example/v1"}, "NetworkPolicy one/p: apiVersion: must be networking.k8s.io/v1, not 'a.ex"),
        ({"apiVersion": "networking.k8s.io/v2"}, "NetworkPolicy one/p: apiVersion: networking.k8s.io/v2 is not ser"),
        ({"metadata": {"name": "p", "labels": "none"}}, "NetworkPolicy default/p: metadata.labels: must be a mapping"),
        ({"spec": {"podSelector": {}, "ingres": []}}, "NetworkPolicy one/p: spec.ingres: "),
        ({"spec": None}, "NetworkPolicy one/p: spec: is required"),
        ({"metadata": {}}, "NetworkPolicy (without a name): metadata.name: is required"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], problem: str, chosen: AgentSettings) -> None:
    told = ask(POLICY | change, chosen)
    assert str(told.problems[0]).startswith(problem)
    assert (told.pairs, told.place) == ((), {})


def test_the_file_is_named_as_daemons_name_theirs(chosen: AgentSettings) -> None:
    cluster_wide = {"apiVersion": "cilium.io/v2", "kind": "CiliumClusterwideNetworkPolicy", "metadata": {"name": "p"}}
    told = ask(cluster_wide, chosen, absent=True)
    assert told.place["file"].endswith("/ciliumclusterwidenetworkpolicy._.p.yaml")
    assert file_name(told.policy) in told.place["file"]
