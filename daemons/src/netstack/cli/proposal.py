"""What this node's agent would make of a policy that is not there yet, or of its absence: objects, settings, and flows.

The objects are those that the agent has: its folder of manifests, or its copy of what the API server said last. Nothing
is written, and the agent need not run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from netstack.agent.desired import Memory, Place
from netstack.agent.effect import State, of_change, parties
from netstack.agent.good import GoodPolicies
from netstack.agent.policy import accept
from netstack.agent.policy.accept import READERS
from netstack.agent.policy.digest import digest
from netstack.agent.settings import AgentSettings
from netstack.cli.effect import Flow, Pairs, Told, flows, grouped
from netstack.core.errors import BadObject
from netstack.core.ref import Ref
from netstack.core.unit import RUN, ask, listen
from netstack.source.directory import DirectorySource
from netstack.source.lastgood import COMPLETE
from netstack.source.models import Policy
from netstack.source.parse import KINDS, parse, reference
from netstack.source.snapshot import Snapshot
from netstack.source.status import file_name

LAST = 5000
"""Events of the observer that are looked at, the newest."""
SILENCE_S = 10.0
LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
NAME = re.compile(rf"{LABEL}(\.{LABEL})*")
"""RFC 1123 subdomain, as Kubernetes wants names; they become names of files here."""


class Unanswerable(Exception):
    """Nothing is known of this node's objects; the text says why."""


@dataclass(frozen=True, slots=True)
class Known:
    """What the agent has."""

    source: DirectorySource
    chosen: AgentSettings

    @classmethod
    def of(cls, chosen: AgentSettings, run: Path) -> Known:
        """Unanswerable if it has nothing."""
        kept = chosen.state / "good"
        if chosen.source == "directory":
            if not chosen.manifests.is_dir():
                raise Unanswerable(f"{chosen.manifests}: is not a folder")
            return cls(DirectorySource(chosen.manifests, chosen.status, kept, onlooker=True), chosen)
        with suppress(OSError, RuntimeError):  # else its copy is that of some seconds ago, or of its last moment
            ask("agent", {"command": "save"}, run=run)
        if not (kept / "kubernetes").is_dir():
            raise Unanswerable("the agent has heard nothing from the API server yet")
        lacking = [kind.name for kind in sorted((kept / "kubernetes").iterdir()) if not (kind / COMPLETE).exists()]
        if lacking:
            raise Unanswerable(f"the agent's copy of what the API server said lacks {', '.join(lacking)}")
        return cls(DirectorySource(kept / "kubernetes"), chosen)

    def place(self, ref: Ref, document: Mapping[str, Any] | None) -> dict[str, Any]:
        """Where the object is kept and what would change there. `document` None: it is taken away."""
        if self.chosen.source != "directory":
            return {"source": self.chosen.source}
        file, written = file_name(ref), self.source.written(ref)
        now = written.get(file)
        return {
            "source": self.chosen.source,
            "file": str(self.chosen.manifests / file),
            "elsewhere": [str(self.chosen.manifests / name) for name in written if name != file],
            "beside": list(map(str, self.source.beside(ref))) if now is not None else [],
            "changed": now != document,
            "before": _text(now),
            "after": _text(document),
        }


def _text(document: Mapping[str, Any] | None) -> str:
    return "" if document is None else yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True)


def read(document: Any, *, absent: bool) -> tuple[Ref, Policy | None]:
    """The policy that is meant; None if it is to be absent. BadObject."""
    ref = reference(document)
    if ref.kind not in READERS:
        raise BadObject(ref, "kind", f"must be one of {', '.join(READERS)}")
    for field, text in (("metadata.name", ref.name), ("metadata.namespace", ref.namespace)):
        if text and (len(text) > 253 or not NAME.fullmatch(text)):
            raise BadObject(ref, field, f"{text!r} is no name that Kubernetes takes")
    if absent:
        return ref, None
    policy = parse(document)
    if not isinstance(policy, Policy):
        raise BadObject(ref, "apiVersion", f"must be {KINDS[ref.kind].versions[0]}, not {document.get('apiVersion')!r}")
    accept.read(policy)
    return ref, policy


def propose(document: Any, chosen: AgentSettings, *, absent: bool = False, run: Path = RUN) -> Told:
    """`document`: the policy as a mapping. Unanswerable."""
    try:
        ref, policy = read(document, absent=absent)
    except BadObject as error:
        return Told(error.ref, problems=(error,))
    known = Known.of(chosen, run)
    now = known.source.snapshot()
    others = {name: item for name, item in now.objects.items() if name != ref}
    broken = tuple(item for item in now.broken if item.error.ref != ref)
    then = Snapshot(others | ({ref: policy} if policy else {}), broken)
    alike = Place(
        "",
        (),
        (),
        ingress_services=chosen.services("ingress_services"),
        dns_services=chosen.services("dns_services"),
        dns_caches=chosen.caches,
        ranges_match=frozenset(chosen.policy_cidr_match_mode),
        kept=chosen.kept,
    )
    everyone, good = parties(then, alike.ingress_services), GoodPolicies(chosen.state / "policies").read()
    memory = Memory()
    after = State(then, everyone, alike, good, memory=memory)
    same = now.objects.get(ref) == policy and broken == now.broken
    before = after if same else State(now, everyone, alike, good, memory=memory)
    seen, notes = _seen(run)

    def between(was: State, will: State) -> tuple[tuple[Pairs, ...], tuple[Flow, ...]]:
        return grouped(of_change(was, will, everyone, ref)), flows(seen, was, will, everyone, ref)

    specs = [spec for spec in after.accepted.specs if spec.ref == ref]
    on_trial = any(spec.on_trial for spec in specs)
    pairs, changed = between(before, after)
    enforced = State(then, everyone, alike, good, enforced=(ref,), memory=memory) if on_trial else after
    trial_pairs, trial_flows = between(after, enforced) if on_trial else ((), ())
    selected = (after if policy else before).selected(ref)
    return Told(
        ref,
        notes=(*notes, *map(str, broken), *(text for text in after.lacking if text.startswith(f"{ref}: "))),
        digest=digest(specs) if specs else "",
        on_trial=on_trial,
        selects=tuple(sorted({party.name for party in everyone if party.place in selected})),
        pairs=pairs,
        flows=changed,
        trial_pairs=trial_pairs,
        trial_flows=trial_flows,
        place=known.place(ref, None if absent else document),
    )


def _seen(run: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The flows that this node's observer has seen last, and why there are none."""
    try:
        return list(listen("observer", {"command": "flows", "last": LAST}, run=run, timeout_s=SILENCE_S)), []
    except (OSError, RuntimeError) as error:
        return [], [f"flows seen lately are not known: netstack-observer does not answer ({error})"]
