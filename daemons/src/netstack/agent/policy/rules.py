"""What a policy says, whichever kind of object said it.

A Spec selects pods (its subject), names the directions in which they deny what nothing allows, and has rules. A rule
matches a packet if the peer is one of its peers AND the port is one of its ports. Rules are a union: any deny wins,
then any redirect, then any allow (cilium pkg/policy: no order, no priorities).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from netstack.core.address import Prefix
from netstack.core.protocol import SCTP, TCP, UDP
from netstack.core.ref import Ref, RuleRef
from netstack.kernel import layout
from netstack.source.models import Meta
from netstack.source.selectors import LabelSelector


class Direction(IntEnum):
    """Seen from the pod that a policy selects."""

    INGRESS = layout.DIRECTION_INGRESS
    EGRESS = layout.DIRECTION_EGRESS

    @property
    def enforce(self) -> int:
        """The bit of `endpoint.enforce`."""
        return layout.ENFORCE_INGRESS if self is Direction.INGRESS else layout.ENFORCE_EGRESS


class Action(IntEnum):
    ALLOW = layout.ACTION_ALLOW
    DENY = layout.ACTION_DENY
    REDIRECT_DNS = layout.ACTION_REDIRECT_DNS


ANY_PROTOCOL = 0
PROTOCOLS = {"TCP": TCP, "UDP": UDP, "SCTP": SCTP, "ANY": ANY_PROTOCOL}


@dataclass(frozen=True, slots=True, order=True)
class Port:
    """Ports first..last of a protocol (0 = each that has ports); 0..0 = every port. With a `name`, what pods call that
    port. ICMP's port is the type of the message that starts a flow."""

    protocol: int
    first: int = 0
    last: int = 0
    name: str = ""


@dataclass(frozen=True, slots=True, order=True)
class Block:
    """An address range without some ranges inside it."""

    prefix: Prefix
    excluded: tuple[Prefix, ...] = ()


@dataclass(frozen=True, slots=True, order=True)
class Name:
    """A name-selector: an exact name, or a pattern in which `*` stands for characters of one label.

    Lower case, without the last dot.
    """

    text: str
    pattern: bool
    lan: bool = False
    """Whether it opens addresses of private networks too."""

    @property
    def field(self) -> str:
        return "matchPattern" if self.pattern else "matchName"


@dataclass(frozen=True, slots=True)
class Services:
    """The backends of Services of a namespace ("" = any): of the one with this `name`, or of those with `labels`."""

    namespace: str
    name: str = ""
    labels: LabelSelector = field(default_factory=LabelSelector)

    def matches(self, meta: Meta) -> bool:
        if self.namespace not in ("", meta.namespace):
            return False
        return meta.name == self.name if self.name else self.labels.matches(meta.labels)


@dataclass(frozen=True, slots=True)
class Groups:
    """The ranges of the CiliumCIDRGroup of this `name`, or of those that `labels` select, without those `excluded`."""

    name: str = ""
    labels: LabelSelector = field(default_factory=LabelSelector)
    excluded: tuple[Prefix, ...] = ()

    def matches(self, meta: Meta) -> bool:
        return meta.name == self.name if self.name else self.labels.matches(meta.labels)


@dataclass(frozen=True, slots=True)
class Peers:
    """A union; one without members is nobody."""

    entities: frozenset[str] = frozenset()
    selectors: tuple[LabelSelector, ...] = ()
    lacking: tuple[LabelSelector, ...] = ()
    """Every pod that one of these does not select."""
    blocks: tuple[Block, ...] = ()
    names: tuple[Name, ...] = ()
    services: tuple[Services, ...] = ()
    groups: tuple[Groups, ...] = ()
    """These two until references.py has put selectors and blocks in their place."""


@dataclass(frozen=True, slots=True)
class Rule:
    """`peers` None = anyone; `ports` empty = every packet. `queries`: what a rule with REDIRECT_DNS lets be asked."""

    ref: RuleRef
    direction: Direction
    action: Action
    peers: Peers | None
    ports: tuple[Port, ...] = ()
    queries: tuple[Name, ...] = ()


@dataclass(frozen=True, slots=True)
class Spec:
    """`subject` None selects no pod."""

    ref: Ref
    subject: LabelSelector | None
    default_deny: frozenset[Direction]
    rules: tuple[Rule, ...] = ()
    nodes: bool = False
    """The subject selects nodes, by their labels, and no pods."""
    on_trial: bool = False
    """What it would deny is said, not done; and it allows nothing."""
