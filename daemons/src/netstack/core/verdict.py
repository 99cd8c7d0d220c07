"""The one list of verdicts: programs count them, flows carry them, `netstack status` prints them.

Numbers are shared with files/bpf/lib/verdict.h (a test compares the two). From 128 up a packet was dropped. Counts and
events outlive the release whose programs made them: an earlier one, to which a node was switched back, meets numbers
that have no name there.
"""

from __future__ import annotations

from enum import IntEnum


class Verdict(IntEnum):
    FORWARDED = 1
    REPLY = 2
    REDIRECTED_DNS = 3
    TRANSLATED = 4
    MASQUERADED = 5
    ARP_ANSWERED = 6
    AUDITED = 7

    POLICY_DENIED = 128
    DEFAULT_DENY = 129
    SPOOFED = 130
    MALFORMED = 131
    UNSUPPORTED = 132
    NO_BACKEND = 133
    NO_PROXY = 134
    MAP_FULL = 135
    NO_PORT = 136
    VIP_NOT_OWNED = 137
    TTL_EXCEEDED = 138
    FRAGMENT = 139
    NO_ENDPOINT = 140
    NO_SERVICE = 141
    NO_NEIGHBOUR = 142
    DNS_FLOOD = 143

    @classmethod
    def _missing_(cls, value: object) -> Verdict | None:
        if not isinstance(value, int) or not 0 <= value <= 255:
            return None
        unknown = int.__new__(cls, value)
        unknown._name_, unknown._value_ = f"{UNKNOWN}{value}", value
        return unknown

    @classmethod
    def of(cls, name: str) -> Verdict:
        """The one whose `name` this is."""
        return cls(int(name.removeprefix(UNKNOWN))) if name.startswith(UNKNOWN) else cls[name]

    @property
    def dropped(self) -> bool:
        return self >= 128

    @property
    def reason(self) -> str:
        return REASONS.get(self, "of another release's programs")


UNKNOWN = "VERDICT_"
"""How the name begins of a verdict that has none."""


REASONS: dict[Verdict, str] = {
    Verdict.FORWARDED: "forwarded",
    Verdict.REPLY: "reply of an allowed flow",
    Verdict.REDIRECTED_DNS: "given to the DNS proxy",
    Verdict.TRANSLATED: "service address translated",
    Verdict.MASQUERADED: "source translated to the node's address",
    Verdict.ARP_ANSWERED: "ARP request for an owned address answered",
    Verdict.AUDITED: "allowed, but a policy on trial would deny it",
    Verdict.POLICY_DENIED: "denied by a policy rule",
    Verdict.DEFAULT_DENY: "no policy that selects the pod allows it",
    Verdict.SPOOFED: "source address does not belong to where the packet came from",
    Verdict.MALFORMED: "headers are cut short or contradict each other",
    Verdict.UNSUPPORTED: "protocol is not carried for pods",
    Verdict.NO_BACKEND: "service has no ready backend",
    Verdict.NO_PROXY: "DNS proxy is not listening",
    Verdict.MAP_FULL: "a table is full",
    Verdict.NO_PORT: "no free port for its translation",
    Verdict.VIP_NOT_OWNED: "ARP request for an address that another node owns",
    Verdict.TTL_EXCEEDED: "hop limit reached",
    Verdict.FRAGMENT: "fragment without ports where ports decide",
    Verdict.NO_ENDPOINT: "no endpoint has this address",
    Verdict.NO_SERVICE: "service address, but not one of its ports",
    Verdict.NO_NEIGHBOUR: "the MAC of the node that owns the source address is not known yet",
    Verdict.DNS_FLOOD: "more DNS questions at once than one pod may ask",
}
