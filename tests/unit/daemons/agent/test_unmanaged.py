"""Which pods of a node netstack did not connect, and which of them policies select."""

from __future__ import annotations

from typing import Any

from instruments.cluster import Cluster
from netstack.agent.policy.accept import TRIAL
from netstack.agent.register import Register
from netstack.agent.unmanaged import Unmanaged, restricting, selections, suspects
from netstack.core.address import Prefix, pack, unpack
from netstack.core.ref import Ref
from netstack.source.models import Namespace, Pod
from netstack.source.snapshot import Snapshot

CIDR = Prefix.parse("10.244.1.0/24")
POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: %s, namespace: one}
spec: {%s, egress: [{toEntities: [world]}]}
"""


def pod(name: str, *addresses: str, node: str = "n1", phase: str = "Running", host: bool = False) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "one", "labels": {"app": name}},
        "spec": {"nodeName": node, "hostNetwork": host, "containers": []},
        "status": {"phase": phase, "podIPs": [{"ip": address} for address in addresses]},
    }


def pods(*documents: dict[str, Any]) -> tuple[Pod, ...]:
    cluster = Cluster()
    cluster.put(*documents)
    return Snapshot(cluster.objects).all(Pod)


def found(register: Register, *documents: dict[str, Any]) -> dict[str, str]:
    return {unpack(address): item.meta.name for address, item in suspects(pods(*documents), "n1", register).items()}


def test_who_runs_here_with_an_address_that_we_did_not_give() -> None:
    documents = [
        pod("old", "10.244.1.9", "fd00::9"),
        pod("starting", "10.244.1.8", phase="Pending"),
        pod("waiting", phase="Pending"),
        pod("there", "10.244.2.9", node="n2"),
        pod("ended", "10.244.1.7", phase="Succeeded"),
        pod("host", "192.168.86.21", host=True),
    ]
    assert found(Register("boot"), *documents) == {"10.244.1.9": "old", "fd00::9": "old", "10.244.1.8": "starting"}


def test_an_endpoint_of_ours_is_none_by_any_of_its_addresses_and_only_under_its_own_name() -> None:
    register = Register("boot").reserve(CIDR, "c", "eth0", "nst1", "one", "new")
    (record,) = register.records
    assert found(register, pod("new", record.address, "fd00::3")) == {}
    assert found(register, pod("old", record.address)) == {record.address: "old"}
    assert found(register, pod("new", "10.244.1.99")) == {"10.244.1.99": "new"}, "as its object still says, or of old"


def test_which_pods_a_policy_selects() -> None:
    cluster = Cluster()
    cluster.put(
        pod("a", "10.244.1.9"),
        pod("b", "10.244.1.8"),
        POLICY % ("all", "endpointSelector: {}"),
        POLICY % ("one", "endpointSelector: {matchLabels: {app: a}}"),
        POLICY % ("none", "endpointSelector: {matchLabels: {app: c}}"),
    )
    snapshot = Snapshot(cluster.objects)
    specs = cluster.compile().accepted.specs
    selected = selections(specs, snapshot.all(Pod), snapshot.all(Namespace))
    assert {policy.name: [ref.name for ref in refs] for policy, refs in selected.items()} == {
        "all": ["a", "b"],
        "one": ["a"],
    }
    assert selections(specs, (), ()) == {}


def test_what_is_said() -> None:
    ref, deny = Ref("Pod", "one", "old"), Ref("NetworkPolicy", "one", "deny")
    free = Unmanaged(ref, pack("10.244.1.9"), ("lxc1",))
    shut = Unmanaged(ref, pack("10.244.1.9"), ("lxc1",), (deny,))
    lost = Unmanaged(ref, pack("10.244.1.9"), (), (deny, Ref("NetworkPolicy", "one", "more")))
    assert [(item.isolated, item.open) for item in (free, shut, lost)] == [(False, False), (True, False), (False, True)]
    begin = "netstack did not connect it (it is older, or another CNI plugin made it)"
    end = "; delete it, so that it is made anew"
    assert str(free) == f"{begin}{end}"
    assert str(shut) == f"{begin}, and NetworkPolicy one/deny selects it, so it is isolated{end}"
    names = "NetworkPolicy one/deny, NetworkPolicy one/more"
    assert str(lost) == f"{begin}, and {names} select it, in vain: no device of it was found on the host{end}"


def test_who_is_isolated_is_selected_by_a_policy_that_denies_something() -> None:
    """`netstack explain` writes policies that only allow, to be applied as they are."""
    open_ = "endpointSelector: {}, enableDefaultDeny: {egress: false}"
    denies = f"{open_}, egressDeny: [{{toCIDR: [192.0.2.1/32]}}]"
    asks = "endpointSelector: {}, enableDefaultDeny: {egress: false, ingress: false}, ingress: [{}]"
    dns = "[{ports: [{port: '53'}], rules: {dns: [{matchName: x.io}]}}]"
    cluster = Cluster()
    for name, spec in (("open", open_), ("denies", denies), ("asks", asks), ("shut", "endpointSelector: {}")):
        cluster.put(POLICY % (name, spec))
    cluster.put((POLICY % ("asks", asks)).replace("[{toEntities: [world]}]", f"[{{toPorts: {dns}}}]"))
    cluster.put(
        (POLICY % ("tried", "endpointSelector: {}")).replace(
            "namespace: one", f"namespace: one, annotations: {{{TRIAL}: 'true'}}"
        )
    )
    specs = restricting(cluster.compile().accepted.specs)
    assert [spec.ref.name for spec in specs] == ["asks", "denies", "shut"]
