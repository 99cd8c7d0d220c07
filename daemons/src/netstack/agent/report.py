"""What the agent says of itself over its control socket and in the status of policies. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from netstack.agent.desired import Desired
from netstack.agent.policy.digest import digest
from netstack.agent.policy.rules import Direction, Spec
from netstack.agent.register import Register
from netstack.agent.unmanaged import Unmanaged, selections
from netstack.core.address import unpack
from netstack.core.ref import Ref
from netstack.kernel import layout
from netstack.source.events import NOT_ENFORCED
from netstack.source.models import Namespace, Node, Pod, Policy, Service
from netstack.source.snapshot import Snapshot

NO_RULES = "a spec without rules restricts nobody, and an empty list holds none; [{}] holds one that allows nothing"


def status(
    node: str,
    release: str,
    desired: Desired,
    snapshot: Snapshot,
    register: Register,
    writes: dict[str, int],
    unmanaged: Collection[Unmanaged] = (),
) -> dict[str, Any]:
    """`netstack status` (netstack.cli.status) and node_info read this."""
    endpoints = [endpoint_view(desired, register, record.id) for record in register.records if record.attached]
    return {
        "node": node,
        "release": release,
        "summary": f"{len(endpoints)} endpoints, {len(desired.owners)} service ports, generation {desired.generation}",
        "generation": desired.generation,
        "endpoints": endpoints,
        "host": host_view(desired),
        "policies": list(policies(desired, snapshot, unmanaged)),
        "unmanaged": [unmanaged_view(item) for item in unmanaged],
        "broken": [*map(str, snapshot.broken), *desired.problems, *map(str, desired.accepted.refused.values())],
        "unready": list(desired.contradictions),
        "map_writes": writes,
    }


def waiting(node: str, release: str, unready: list[str]) -> dict[str, Any]:
    """The same while nothing has been put in force by this process."""
    return {
        "node": node,
        "release": release,
        "summary": "waiting for the first objects",
        "generation": 0,
        "endpoints": [],
        "host": {},
        "policies": [],
        "unmanaged": [],
        "broken": [],
        "unready": unready or ["the agent is still starting"],
        "map_writes": {},
    }


def endpoint_view(desired: Desired, register: Register, number: int) -> dict[str, Any]:
    record = next(record for record in register.records if record.id == number)
    peer = desired.identities.of_endpoint.get(number)
    return {
        "id": number,
        "pod": f"{record.namespace}/{record.pod}",
        "address": record.address,
        "device": record.device,
        "identity": peer.number if peer else 0,
        **_enforced(desired, number),
    }


def host_view(desired: Desired) -> dict[str, Any]:
    """What policies for nodes do to this one; empty if none selects it."""
    if layout.HOST_ENDPOINT not in desired.policy.enforce:
        return {}
    own = _enforced(desired, layout.HOST_ENDPOINT)
    return {"id": layout.HOST_ENDPOINT, **own, "kept": str(desired.kept)}


def _enforced(desired: Desired, number: int) -> dict[str, Any]:
    """Of one endpoint: the directions, the policies that select it, and which of them deny what no rule allows."""
    enforce, tried = desired.policy.enforce.get(number, 0), desired.policy.on_trial.get(number, ())
    selects, denies = desired.policy.selects.get(number, ()), desired.policy.denies.get(number, {})
    return {
        "enforces": [
            name
            for name, bit in (("ingress", layout.ENFORCE_INGRESS), ("egress", layout.ENFORCE_EGRESS))
            if enforce & bit
        ],
        "policies": [str(ref) for ref in selects if ref not in tried],
        "on_trial": [str(ref) for ref in tried],
        "denies": {way.name.lower(): list(map(str, denies.get(way, ()))) for way in Direction},
    }


def unmanaged_view(item: Unmanaged) -> dict[str, Any]:
    return {
        "pod": item.pod.key,
        "address": unpack(item.address),
        "devices": list(item.devices),
        "policies": [str(ref) for ref in item.policies],
        "isolated": item.isolated,
        "reason": str(item),
    }


def policies(
    desired: Desired, snapshot: Snapshot, unmanaged: Collection[Unmanaged] = (), only: str = ""
) -> Iterator[dict[str, Any]]:
    """Every policy (or the one of this name), whether it is in force as written, and how many of this node's endpoints
    it selects. `digest`: of the version in force; "" while there is none, and where what it selects denies instead.
    `isolated`, `not_enforced`: pods that it selects and that netstack did not connect, so that they have no network at
    all, or one without policy."""
    refused, beyond = desired.accepted.refused, out_of_reach(desired, snapshot)
    tried, empty, specs = on_trial(desired), without_rules(desired), _specs(desired)
    known = {policy.meta.ref for policy in snapshot.all(Policy)} | refused.keys() | specs.keys()
    for ref in sorted(ref for ref in known if only in ("", str(ref))):
        selected = sum(ref in refs for refs in desired.policy.selects.values())
        state = "on trial" if ref in tried else "enforced" if ref in specs else "not in force yet"
        if ref in empty:
            state += f", but {NO_RULES}"
        outside = [item for item in unmanaged if ref in item.policies]
        view = {
            "policy": str(ref),
            "state": state,
            "selects": selected,
            "not_enforced": sorted([*beyond.get(ref, []), *(item.pod.key for item in outside if item.open)]),
            "isolated": [item.pod.key for item in outside if item.isolated],
        }
        view["digest"] = digest(specs.get(ref, ())) if ref in specs and ref in desired.accepted.good else ""
        if desired.overflows and state == "not in force yet":
            view["reason"] = "; ".join(desired.overflows.values())
        if ref in refused:
            instead = f"last good version {state}" if refused[ref].kept else "denying" if state == "enforced" else state
            view |= {"state": f"refused, {instead}", "reason": str(refused[ref].error)}
        yield view


def _specs(desired: Desired) -> dict[Ref, list[Spec]]:
    """What is in force, by policy; nothing while it does not fit into the kernel's tables."""
    found: dict[Ref, list[Spec]] = {}
    for spec in desired.accepted.specs if desired.tables["policy"] == desired.policy.policy else ():
        found.setdefault(spec.ref, []).append(spec)
    return found


def policy(desired: Desired, snapshot: Snapshot, unmanaged: Collection[Unmanaged], name: str) -> dict[str, Any] | None:
    """One of `policies`; None if neither the objects nor the tables have it."""
    return next(policies(desired, snapshot, unmanaged, name), None)


def out_of_reach(desired: Desired, snapshot: Snapshot) -> dict[Ref, list[str]]:
    """Policy -> the pods that it selects and that have no network of their own, in which it could be enforced."""
    pods = [pod for pod in snapshot.all(Pod) if pod.host_network and not pod.ended]
    found = selections(desired.accepted.specs, pods, snapshot.all(Namespace))
    return {policy: [ref.key for ref in refs] for policy, refs in found.items()}


def policy_statuses(desired: Desired, snapshot: Snapshot) -> dict[Ref, dict[str, Any]]:
    """Policy -> its status: the condition `Valid` of cilium.io/v2, for all kinds alike.

    It says the same on every node, so that nodes do not contest it: which version a node enforces is in `policies`.
    """
    statuses, beyond, tried = {}, out_of_reach(desired, snapshot), on_trial(desired)
    empty = without_rules(desired)
    for_nodes = {spec.ref for spec in desired.accepted.specs if spec.nodes}
    for ref in {policy.meta.ref for policy in snapshot.all(Policy)} | desired.accepted.refused.keys():
        refusal = desired.accepted.refused.get(ref)
        condition = {
            "type": "Valid",
            "status": "False" if refusal or ref in empty else "True",
            "reason": "Refused" if refusal else NOT_ENFORCED if ref in beyond else "Enforced",
            "message": str(refusal.error) if refusal else "",
        }
        if ref in empty and not refusal:
            condition |= {"reason": NOT_ENFORCED, "message": NO_RULES}
        elif ref in tried and not refusal:
            condition |= {"reason": "OnTrial", "message": "what it would deny is reported, not denied"}
        elif ref in for_nodes and not refusal:
            condition["message"] = str(desired.kept)
        elif ref in beyond and not refusal:
            condition["message"] = f"not on pods that use the node's network: {', '.join(beyond[ref])}"
        statuses[ref] = {"conditions": [condition]}
    return statuses


def pod_statuses(unmanaged: Collection[Unmanaged]) -> dict[Ref, dict[str, Any]]:
    """Pod -> its status, of those that policies select and that netstack did not connect. Only the pod's
    node knows, so it is not said of the policy, of which all nodes say the same."""
    return {
        item.pod: {
            "conditions": [
                {
                    "type": "PolicyEnforced",
                    "status": "False",
                    "reason": "Isolated" if item.isolated else NOT_ENFORCED,
                    "message": str(item),
                }
            ]
        }
        for item in unmanaged
        if item.policies
    }


def on_trial(desired: Desired) -> set[Ref]:
    """The policies that only say what they would deny."""
    return {spec.ref for spec in desired.accepted.specs if spec.on_trial}


def without_rules(desired: Desired) -> set[Ref]:
    """The policies of which a spec says nothing: Cilium takes none of these for valid (pkg/policy/api, Sanitize)."""
    return {spec.ref for spec in desired.accepted.specs if not spec.rules and not spec.default_deny}


def names(
    desired: Desired, snapshot: Snapshot, register: Register, revision: str, dns: Iterable[Ref] = ()
) -> dict[str, Any]:
    """What netstack-observer needs to name an event, and `netstack explain` to put a question. `revision`: of this
    answer. `dns`: the Services that are the cluster's DNS."""
    servers = [service for ref in dns if (service := snapshot.get(Service, *ref)) is not None]
    by_age = sorted(snapshot.all(Pod), key=lambda pod: pod.meta.created)  # an address that two claim is the newer's
    pods = {address: pod for pod in by_age if not (pod.host_network or pod.ended) for address in pod.addresses}
    nodes = {address: node for node in snapshot.all(Node) for address in node.addresses}
    return {
        "revision": revision,
        "endpoints": [
            endpoint_view(desired, register, record.id) | {"ifindex": record.ifindex}
            for record in register.records
            if record.attached
        ],
        "host": host_view(desired),
        "rules": rules(desired),
        "pods": {unpack(address): pod.meta.ref.key for address, pod in pods.items()},
        "nodes": {unpack(address): node.meta.name for address, node in nodes.items()},
        "dns": [unpack(address) for service in servers for address in service.cluster_ips],
    }


def rules(desired: Desired) -> dict[str, str]:
    """Rule number, as flows and entries carry it -> the object and field that it stands for (law 6)."""
    return {str(number): str(ref) for number, ref in sorted(desired.policy.rules.items())}


def identities(desired: Desired) -> list[dict[str, Any]]:
    """Every peer that policies can tell apart, with its addresses."""
    addresses: dict[int, list[str]] = {}
    for address, number in sorted(desired.identities.of_address.items()):
        addresses.setdefault(number, []).append(unpack(address))
    return [
        {
            "identity": peer.number,
            "name": peer.name,
            "labels": dict(sorted(peer.labels.items())),
            "addresses": addresses.get(peer.number, []),
        }
        for peer in desired.identities.peers
    ]
