"""What the agent says of itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from instruments.cluster import Cluster
from netstack.agent import report
from netstack.agent.policy.digest import digest
from netstack.agent.register import Register
from netstack.agent.unmanaged import Unmanaged
from netstack.core.address import Prefix, pack
from netstack.core.ref import Ref
from netstack.source.snapshot import Snapshot

POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: one}
spec: {endpointSelector: {matchLabels: {app: a}}, egress: [{toEntities: [world]}]}
"""
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: dns, namespace: kube-system}
spec: {clusterIP: 10.96.0.10, ports: [{port: 53, protocol: UDP}]}
"""
BROKEN = POLICY.replace("toEntities: [world]", "toGroups: []").replace("name: p", "name: q")


def register() -> Register:
    made = Register("boot").reserve(Prefix.parse("10.244.1.0/24"), "c", "eth0", "nst1", "one", "a")
    record = replace(made.records[0], ifindex=101, mac="020000000001", host_mac="020000000001")
    return made.put(record)


def cluster() -> Cluster:
    made = Cluster()
    made.pod("one/a", {"app": "a"})
    made.put(POLICY, BROKEN)
    made.compile()
    return made


def test_status() -> None:
    made = cluster()
    assert made.desired is not None
    view = report.status("n1", "r1", made.desired, Snapshot(made.objects), register(), {})
    assert view["unready"] == []
    assert view["summary"] == "1 endpoints, 0 service ports, generation 1"
    (endpoint,) = view["endpoints"]
    assert endpoint["pod"] == "one/a"
    assert endpoint["enforces"] == ["egress"]
    assert endpoint["policies"] == ["CiliumNetworkPolicy one/p", "CiliumNetworkPolicy one/q"]
    assert endpoint["denies"] == {"ingress": [], "egress": endpoint["policies"]}
    reason = "CiliumNetworkPolicy one/q: spec.egress[0].toGroups: is not supported, so the whole policy is refused"
    in_force = digest(spec for spec in made.desired.accepted.specs if spec.ref.name == "p")
    assert view["policies"] == [
        {
            "policy": "CiliumNetworkPolicy one/p",
            "state": "enforced",
            "selects": 1,
            "not_enforced": [],
            "isolated": [],
            "digest": in_force,
        },
        {
            "policy": "CiliumNetworkPolicy one/q",
            "state": "refused, denying",
            "selects": 1,
            "not_enforced": [],
            "isolated": [],
            "digest": "",
            "reason": reason,
        },
    ]
    assert view["broken"] == [f"{reason}; the pods that it selects deny instead"]


def test_a_node_of_which_the_objects_say_otherwise_is_not_ready() -> None:
    """Two hosts of an inventory with the same pod range, or with that of another node's object."""
    made = cluster()
    made.place = replace(made.place, pod_cidrs=(Prefix.parse("10.244.2.0/24"),))
    view = report.status("n1", "r1", made.compile(), Snapshot(made.objects), register(), {})
    assert view["unready"] == [
        "Node n1 has the pod range 10.244.1.0/24, but this node gives addresses of 10.244.2.0/24 to its pods",
        "Node n2 has the pod range 10.244.2.0/24, but this node gives addresses of 10.244.2.0/24 to its pods",
    ]


def test_each_spec_of_a_policy_denies_in_its_own_directions_whom_it_selects() -> None:
    made = Cluster()
    made.pod("one/a", {"app": "a"})
    one = {"endpointSelector": {"matchLabels": {"app": "a"}}, "egress": [{"toEntities": ["world"]}]}
    other = {"endpointSelector": {"matchLabels": {"app": "b"}}, "ingress": [{"fromEntities": ["world"]}]}
    policy = {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "specs": [one, other]}
    made.put(policy | {"metadata": {"name": "p", "namespace": "one"}})
    made.compile()
    assert made.desired is not None
    (endpoint,) = report.status("n1", "r1", made.desired, Snapshot(made.objects), register(), {})["endpoints"]
    assert endpoint["denies"] == {"ingress": [], "egress": ["CiliumNetworkPolicy one/p"]}


def test_the_digest_is_of_what_is_in_force() -> None:
    made = cluster()

    def digests() -> dict[str, str]:
        assert made.desired is not None
        return {view["policy"][-1]: view["digest"] for view in report.policies(made.desired, Snapshot(made.objects))}

    good = digests()["p"]
    made.put(POLICY.replace("[world]", "[wrold]"))
    made.compile()
    assert digests() == {"p": good, "q": ""}, "the last good version"
    made.put(POLICY.replace("[world]", "[cluster]"))
    assert digests()["p"] == good, "the new one has only been seen"
    made.put(POLICY.replace("name: p", "name: r"))
    made.compile()
    assert len({good, *digests().values()}) == 4
    made.put(POLICY.replace("name: p", "name: s"))
    assert made.desired is not None
    views = {view["policy"][-1]: view for view in report.policies(made.desired, Snapshot(made.objects))}
    assert (views["s"]["digest"], views["s"]["state"]) == ("", "not in force yet")


def test_what_does_not_fit_into_the_tables_is_not_in_force() -> None:
    made = Cluster(sizes={"policy": 1})
    made.pod("one/a", {"app": "a"})
    made.put(POLICY.replace("egress:", "ingress: [{fromEntities: [world]}], egress:"))
    (view,) = report.policies(made.compile(), Snapshot(made.objects))
    assert (view["state"], view["digest"]) == ("not in force yet", "")


def test_statuses_of_policies() -> None:
    made = cluster()
    assert made.desired is not None
    statuses = {
        ref.name: status for ref, status in report.policy_statuses(made.desired, Snapshot(made.objects)).items()
    }
    assert statuses["p"]["conditions"][0] == {"type": "Valid", "status": "True", "reason": "Enforced", "message": ""}
    assert statuses["q"]["conditions"][0]["reason"] == "Refused"


def test_rules_and_identities_have_names() -> None:
    made = cluster()
    assert made.desired is not None
    assert list(report.rules(made.desired).values()) == ["CiliumNetworkPolicy one/p: spec.egress[0]"]
    (pod,) = [peer for peer in report.identities(made.desired) if "10.244.1.3" in peer["addresses"]]
    assert pod["labels"]["app"] == "a"


def test_an_agent_that_waits_says_for_what() -> None:
    view = report.waiting("n1", "r", ["nothing is known"])
    assert (view["unready"], view["endpoints"]) == (["nothing is known"], [])
    assert report.waiting("n1", "r", [])["unready"] == ["the agent is still starting"]


def test_the_status_of_a_refused_policy_is_the_same_on_every_node() -> None:
    made = cluster()
    assert made.desired is not None
    (said,) = [
        status["conditions"][0]["message"]
        for ref, status in report.policy_statuses(made.desired, Snapshot(made.objects)).items()
        if ref.name == "q"
    ]
    assert said.endswith("so the whole policy is refused"), "what a node enforces instead is not in it"


def test_pods_of_the_nodes_network_are_named_where_a_policy_selects_them() -> None:
    made = cluster()
    made.put(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "host", "namespace": "one", "labels": {"app": "a"}},
            "spec": {"nodeName": "n2", "hostNetwork": True, "containers": []},
            "status": {"phase": "Running", "podIPs": [{"ip": "192.168.86.22"}]},
        }
    )
    desired = made.compile()
    snapshot = Snapshot(made.objects)
    (view, _) = report.policies(desired, snapshot)
    assert view["not_enforced"] == ["one/host"]
    (condition,) = next(
        status["conditions"] for ref, status in report.policy_statuses(desired, snapshot).items() if ref.name == "p"
    )
    assert (condition["status"], condition["reason"]) == ("True", "NotEnforced")
    assert condition["message"] == "not on pods that use the node's network: one/host"


def test_a_pod_that_has_ended_has_no_address_and_nothing_to_enforce() -> None:
    """A finished Job's object stays, with an address that may be an older pod's by now (a restarted StatefulSet's)."""
    made = cluster()
    for name, address, host in (("job", "10.244.1.3", False), ("task", "192.168.86.22", True)):
        made.put(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": name,
                    "namespace": "one",
                    "labels": {"app": "a"},
                    "creationTimestamp": "2026-11-30T00:00:00Z",
                },
                "spec": {"nodeName": "n2", "hostNetwork": host, "containers": []},
                "status": {"phase": "Succeeded", "podIPs": [{"ip": address}]},
            }
        )
    desired, snapshot = made.compile(), Snapshot(made.objects)
    assert report.names(desired, snapshot, register(), "1.2")["pods"] == {"10.244.1.3": "one/a"}
    assert report.out_of_reach(desired, snapshot).get(Ref("CiliumNetworkPolicy", "one", "p"), []) == []


def test_pods_that_netstack_did_not_connect_are_named_where_a_policy_selects_them() -> None:
    made, policy = cluster(), Ref("CiliumNetworkPolicy", "one", "p")
    assert made.desired is not None
    outside = (
        Unmanaged(Ref("Pod", "one", "closed"), pack("10.244.1.9"), ("lxc1",), (policy,)),
        Unmanaged(Ref("Pod", "one", "free"), pack("10.244.1.8"), ("lxc2",)),
        Unmanaged(Ref("Pod", "one", "open"), pack("192.168.86.9"), (), (policy,)),
    )
    view = report.status("n1", "r1", made.desired, Snapshot(made.objects), register(), {}, outside)
    assert [(item["pod"], item["isolated"]) for item in view["unmanaged"]] == [
        ("one/closed", True),
        ("one/free", False),
        ("one/open", False),
    ]
    told = report.policy(made.desired, Snapshot(made.objects), outside, str(policy))
    assert told is not None and (told["isolated"], told["not_enforced"]) == (["one/closed"], ["one/open"])
    said = {ref.name: status["conditions"][0] for ref, status in report.pod_statuses(outside).items()}
    assert {name: (one["status"], one["reason"]) for name, one in said.items()} == {
        "closed": ("False", "Isolated"),
        "open": ("False", "NotEnforced"),
    }


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("spec: {endpointSelector: {}, egress: []}", False),
        ("spec: {endpointSelector: {}}", False),
        ("specs: [{endpointSelector: {}, ingress: [{}]}, {endpointSelector: {}, egressDeny: []}]", False),
        ("spec: {endpointSelector: {}, egress: [{}]}", True),
        ("spec: {endpointSelector: {}, egress: [], enableDefaultDeny: {egress: true}}", True),
    ],
)
def test_a_policy_without_rules_does_not_pass_for_one_that_is_enforced(spec: str, says: bool) -> None:
    """Who writes `egress: []` means what it means to Kubernetes: nothing may leave."""
    made = cluster()
    made.put(f"{POLICY.partition('spec:')[0]}\n{spec}")
    desired, snapshot = made.compile(), Snapshot(made.objects)
    told = report.policy(desired, snapshot, (), "CiliumNetworkPolicy one/p")
    assert told is not None and (told["state"] == "enforced") == says
    (condition,) = report.policy_statuses(desired, snapshot)[Ref("CiliumNetworkPolicy", "one", "p")]["conditions"]
    assert (condition["status"], condition["reason"]) == (("True", "Enforced") if says else ("False", "NotEnforced"))
    assert says or ("restricts nobody" in condition["message"] and "restricts nobody" in told["state"])


def test_a_policy_on_trial_says_so() -> None:
    made = cluster()
    made.put(POLICY.replace("name: p,", "name: p, annotations: {netstack.kubelab.io/audit: 'true'},"))
    made.compile()
    assert made.desired is not None
    view = report.status("n1", "r1", made.desired, Snapshot(made.objects), register(), {})
    assert view["policies"][0]["state"] == "on trial"
    assert view["endpoints"][0]["policies"] == ["CiliumNetworkPolicy one/q"]
    assert view["endpoints"][0]["on_trial"] == ["CiliumNetworkPolicy one/p"]
    statuses = report.policy_statuses(made.desired, Snapshot(made.objects))
    (condition,) = next(status for ref, status in statuses.items() if ref.name == "p")["conditions"]
    assert (condition["reason"], condition["status"]) == ("OnTrial", "True")


def test_names_for_the_observer() -> None:
    made = cluster()
    assert made.desired is not None
    made.put(SERVICE)
    dns = [Ref("Service", "kube-system", name) for name in ("dns", "none")]
    told = report.names(made.desired, Snapshot(made.objects), register(), "1.2", dns)
    assert told["revision"] == "1.2"
    assert told["pods"] == {"10.244.1.3": "one/a"}
    assert told["nodes"] == {"192.168.86.21": "n1", "192.168.86.22": "n2"}
    assert told["dns"] == ["10.96.0.10"]
    (endpoint,) = told["endpoints"]
    assert (endpoint["id"], endpoint["ifindex"], endpoint["pod"]) == (1, 101, "one/a")
