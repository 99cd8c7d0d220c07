"""Which version of each policy is in force (law 4: a policy that cannot be used denies, it never opens).

A policy that reads well is in force and is remembered. One that does not is refused as a whole, and then
1. its last good version stays in force; if there is none,
2. the pods that its selector selects deny everything in the directions that it has rules for; where the directions
   cannot be told, in both; where the selector cannot be read, every pod of its namespace (of a cluster-wide policy:
   every pod). One that selects nodes denies nothing: a mistake must not lock its author out.

A policy on trial (annotation, of itself or of its namespace) is read in the same way, and only says what it would deny.
Names open addresses of private networks only in a policy that says so, by annotation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from netstack.agent.identities import NAMESPACE
from netstack.agent.policy import cilium, kubernetes
from netstack.agent.policy.rules import Direction, Rule, Spec
from netstack.core.documents import same_text
from netstack.core.errors import BadObject, refused
from netstack.core.ref import Ref
from netstack.source.fields import Fields
from netstack.source.models import Meta, Policy
from netstack.source.selectors import LabelSelector, Requirement

RawSpecs = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Reader:
    """How one kind's spec is read: whole, its subject alone, its directions alone."""

    read: Callable[[Ref, Mapping[str, Any], str], Spec]
    subject: Callable[[Fields], LabelSelector]
    directions: Callable[[Mapping[str, Any]], frozenset[Direction]]


TRIAL = "netstack.kubelab.io/audit"
"""Annotation "true" of a policy, or of a Namespace for all policies in it: not for cluster-wide ones, in which whoever
owns a namespace has no say."""
LAN_NAMES = "netstack.kubelab.io/lan-names"
"""Annotation "true" of a policy: its names may lead into private networks. Without, whoever owns an allowed name could
point it at the printer (DNS rebinding)."""
CILIUM = Reader(cilium.read_cilium, cilium.read_subject, cilium.read_directions)
READERS = {
    "NetworkPolicy": Reader(kubernetes.read_kubernetes, kubernetes.read_subject, kubernetes.read_directions),
    "CiliumNetworkPolicy": CILIUM,
    "CiliumClusterwideNetworkPolicy": CILIUM,
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a policy is not in force as written. `kept`: an earlier version is; otherwise its pods deny."""

    error: BadObject
    kept: bool
    denies: bool = True
    """False: it is for nodes, and a mistake must not lock anybody out of these."""

    def __str__(self) -> str:
        instead = "the pods that it selects deny instead" if self.denies else "nothing of it is in force"
        return f"{self.error}; {'its last good version stays in force' if self.kept else instead}"


@dataclass(frozen=True, slots=True)
class Accepted:
    """`specs` are in force; `good` is what to pass in next time."""

    specs: tuple[Spec, ...] = ()
    refused: Mapping[Ref, Refusal] = field(default_factory=dict)
    good: Mapping[Ref, RawSpecs] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Notes:
    """What annotations say of a policy."""

    on_trial: bool = False
    lan_names: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """A policy and what was read in it."""

    policy: Policy
    tried: bool
    """Whether its namespace is on trial."""
    notes: Notes
    found: tuple[Spec, ...] | BadObject


class Readings:
    """What was read of each policy last. An unchanged policy is not read again, and its specs stay the same objects."""

    def __init__(self) -> None:
        self._known: dict[Ref, Reading] = {}

    def update(self, policies: Iterable[Policy], trials: Collection[str]) -> Mapping[Ref, Reading]:
        """Of these policies and no others."""
        before, self._known = self._known, {}
        for policy in policies:
            ref = policy.meta.ref
            known, tried = before.get(ref), ref.namespace in trials
            if known is None or known.policy is not policy or known.tried != tried:
                known = _reading(policy, tried, known)
            self._known[ref] = known
        return self._known


def _reading(policy: Policy, tried: bool, before: Reading | None) -> Reading:
    notes = _notes(policy.meta, tried)
    if before is not None and before.notes == notes and _same(before.policy, policy):
        return Reading(policy, tried, notes, before.found)
    try:
        found: tuple[Spec, ...] | BadObject = tuple(_noted(read(policy), notes))
    except BadObject as error:
        found = error.with_traceback(None)  # it is kept, and its frames need not be
    return Reading(policy, tried, notes, found)


def _same(one: Policy, other: Policy) -> bool:
    return one.wrong == other.wrong and same_text(one.specs, other.specs)


def accept(
    policies: Iterable[Policy],
    good: Mapping[Ref, RawSpecs],
    unreadable: Mapping[Ref, BadObject] | None = None,
    readings: Readings | None = None,
    trials: Collection[str] = (),
) -> Accepted:
    """`policies` in the order of their names. `good`: the last good specs by policy. `unreadable`: policies of which
    the source could read only the name. `trials`: namespaces whose policies are all on trial."""
    read = (readings or Readings()).update(policies, trials)
    failed = unreadable or {}
    specs: list[Spec] = []
    refused: dict[Ref, Refusal] = {}
    kept: dict[Ref, RawSpecs] = {}
    for ref in sorted(read.keys() | failed.keys()) if failed else read:
        reading = read.get(ref)
        found = failed.get(ref) or (reading.found if reading else ())
        raw, notes = (reading.policy.specs, reading.notes) if reading else ((), Notes())
        if not isinstance(found, BadObject):
            specs.extend(found)
            kept[ref] = raw
        elif stand_in := _stand_in(ref, good):
            refused[ref] = Refusal(found, kept=True)
            specs.extend(_noted(stand_in, notes))
            kept[ref] = good[ref]
        else:
            instead = _deny(ref, raw)
            refused[ref] = Refusal(found, kept=False, denies=bool(instead))
            specs.extend(_noted(instead, notes))
    return Accepted(tuple(specs), refused, kept)


def _stand_in(ref: Ref, good: Mapping[Ref, RawSpecs]) -> list[Spec]:
    """The last good version; none if another release, for which it was good, left what this one refuses."""
    with suppress(BadObject):
        return read_policy(ref, good[ref]) if ref in good else []
    return []


def read(policy: Policy) -> list[Spec]:
    """As `read_policy`."""
    if policy.wrong is not None:
        raise policy.wrong
    return read_policy(policy.meta.ref, policy.specs)


def read_policy(ref: Ref, raw: RawSpecs) -> list[Spec]:
    """All specs of one policy; BadObject if any of them is not usable."""
    if not raw:
        raise BadObject(ref, "spec", "is required")
    paths = ["spec"] if len(raw) == 1 else [f"specs[{index}]" for index in range(len(raw))]
    with refused(ref):
        return [READERS[ref.kind].read(ref, data, path) for data, path in zip(raw, paths, strict=True)]


def on_trial(meta: Meta) -> bool:
    """Whether a policy, or a namespace, asks for it."""
    return meta.annotations.get(TRIAL) == "true"


def _notes(meta: Meta, tried: bool) -> Notes:
    return Notes(on_trial(meta) or tried, meta.annotations.get(LAN_NAMES) == "true")


def _noted(specs: list[Spec], notes: Notes) -> list[Spec]:
    if notes.on_trial:
        specs = [replace(spec, on_trial=True) for spec in specs]
    if notes.lan_names:
        specs = [replace(spec, rules=tuple(map(_into_the_lan, spec.rules))) for spec in specs]
    return specs


def _into_the_lan(rule: Rule) -> Rule:
    if rule.peers is None or not rule.peers.names:
        return rule
    return replace(rule, peers=replace(rule.peers, names=tuple(replace(name, lan=True) for name in rule.peers.names)))


def _deny(ref: Ref, raw: RawSpecs) -> list[Spec]:
    """Default deny for whatever of a broken policy can be read."""
    reader = READERS[ref.kind]
    everyone = Requirement(NAMESPACE, "In", (ref.namespace,)) if ref.namespace else Requirement(NAMESPACE, "Exists")
    specs = []
    for data in raw or ({},):
        if "nodeSelector" in data and "endpointSelector" not in data:  # it selects nodes, so no pod
            continue
        try:
            subject = reader.subject(Fields(ref, data, "spec"))
        except BadObject:
            subject = LabelSelector((everyone,))
        specs.append(Spec(ref, subject, reader.directions(data)))
    return specs
