"""Pods of this node that netstack did not connect (Cilium's word: unmanaged). Pure; isolate.py acts.

They are older than netstack, or another CNI plugin made them while its configuration was in force. None of our programs
sees their packets, so no policy can be enforced on them: one that a policy selects is isolated, the others go on as
they are. What mends both is to delete the pod, so that it is made anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from netstack.agent.identities import full_labels
from netstack.agent.policy.rules import Action, Spec
from netstack.agent.register import Register
from netstack.core.address import pack
from netstack.core.ref import Ref
from netstack.source.models import Namespace, Pod


@dataclass(frozen=True, slots=True)
class Unmanaged:
    """One such pod. `devices`: the host's side of its network; if none was found it cannot be isolated."""

    pod: Ref
    address: bytes
    devices: tuple[str, ...]
    policies: tuple[Ref, ...] = ()
    """Those that select it."""

    @property
    def isolated(self) -> bool:
        return bool(self.devices and self.policies)

    @property
    def open(self) -> bool:
        """Policies select it, in vain."""
        return bool(self.policies and not self.devices)

    def __str__(self) -> str:
        what = "netstack did not connect it (it is older, or another CNI plugin made it)"
        if self.policies:
            names = f"{', '.join(map(str, self.policies))} {'select' if len(self.policies) > 1 else 'selects'} it"
            what += f", and {names}"
            what += ", so it is isolated" if self.devices else ", in vain: no device of it was found on the host"
        return f"{what}; delete it, so that it is made anew"


def suspects(pods: Iterable[Pod], node: str, register: Register) -> dict[bytes, Pod]:
    """Addresses that pods of this node say they have, and that we did not give them. Not all of these are in use: an
    object lags behind its pod, most of all while it ends."""
    given = {(pack(record.address), record.namespace, record.pod) for record in register.records}
    return {
        address: pod
        for pod in pods
        if pod.node == node and not pod.host_network and not pod.ended
        for address in pod.addresses
        if not any((own, pod.meta.namespace, pod.meta.name) in given for own in pod.addresses)
    }


def restricting(specs: Iterable[Spec]) -> tuple[Spec, ...]:
    """Those that deny anything. The others only allow (enableDefaultDeny: false): they leave nothing open where they
    are not enforced, so nobody is isolated for them."""
    return tuple(
        spec
        for spec in specs
        if not spec.on_trial and (spec.default_deny or any(rule.action is not Action.ALLOW for rule in spec.rules))
    )


def selections(
    specs: Iterable[Spec], pods: Iterable[Pod], namespaces: Iterable[Namespace]
) -> Mapping[Ref, tuple[Ref, ...]]:
    """Policy -> the pods among these that it selects; none that selects nobody."""
    labels_of = {item.meta.name: item.meta.labels for item in namespaces}
    labels = {
        pod.meta.ref: full_labels(pod.meta.labels, pod.meta.namespace, pod.service_account, labels_of) for pod in pods
    }
    found: dict[Ref, set[Ref]] = {}
    for spec in specs if labels else ():
        if spec.nodes or spec.subject is None:
            continue
        found.setdefault(spec.ref, set()).update(ref for ref, own in labels.items() if spec.subject.matches(own))
    return {policy: tuple(sorted(refs)) for policy, refs in found.items() if refs}
