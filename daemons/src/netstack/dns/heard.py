"""What DNS told pods that no rule opens: names for flows, and what rules that come open for connections that exist.

While no policy restricts a pod by name, its questions go to the server themselves. The program at its device tells of
the answers (files/bpf/lib/heard.h). Where policies let it ask for more names than they open, by rules.dns say, the
proxy does. Both are remembered here. When rules with such a name come into force for the pod, what it was told is
credited as if they had been there:

* The rules must let the pod ask that server for that name, and the same networks stay closed.
* What went past the proxy must come from a server of the cluster: a packet that bears such an address is believed by
  its MAC alone, so no answer of it can be forged from the LAN. Of other servers anybody there could say anything, if
  the pod tells its port.
* For as long as the proxy would have kept it open, then by use. What is older, up to a day, opens for a minute: if a
  connection exists, its next packet keeps it.
* Once. What was credited is forgotten; the kernel's table is the truth from then on.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from netstack.dns.message import Malformed, Rcode, read_heard
from netstack.dns.names import KEPT_LABELS, Name
from netstack.dns.session import Unopened, followed
from netstack.kernel.layout import Heard

KEPT_S = 86400.0
"""What was heard longer ago is forgotten: a connection may be older, its name hardly."""

MOST_PER_POD, MOST = 256, 8192
"""Addresses that are remembered: the newest, and none of names of more than KEPT_LABELS labels. 8 MB."""


@dataclass(frozen=True, slots=True)
class Fact:
    """`name` led to `address`, `server` said so at `heard_s`: to be believed until `until_s`."""

    endpoint: int
    name: Name
    address: bytes
    server: bytes
    heard_s: float
    until_s: float
    proxied: bool = False
    """The proxy has asked, so it is the server that has said so, wherever that is."""


class Memory:
    """`lifetime`: seconds that an address with this TTL stays open."""

    def __init__(self, lifetime: Callable[[int], int], most_per_answer: int) -> None:
        self.changed = False
        """Since the last `dump`."""
        self.unreadable = 0
        self._lifetime = lifetime
        self._most_per_answer = most_per_answer
        self._facts: dict[int, OrderedDict[tuple[Name, bytes], Fact]] = {}  # by endpoint, oldest first
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def hear(self, record: bytes, now: float) -> None:
        """A record of the ring: whatever it holds, it was sent by who is not trusted."""
        head = Heard.unpack(record[: Heard.size()])
        try:
            answer = read_heard(record[Heard.size() :][: head.length])
            addresses, ttl_s = followed(answer)
        except Malformed:
            self.unreadable += 1
            return
        if answer.rcode == Rcode.NOERROR and len(addresses) <= self._most_per_answer:
            for address in addresses:
                self._add(Fact(head.endpoint, answer.name, address, head.server, now, now + self._lifetime(ttl_s)))

    def note(self, told: Unopened, now: float) -> None:
        """What the proxy passes on."""
        until_s = now + self._lifetime(told.ttl_s)
        for address in told.addresses:
            self._add(Fact(told.endpoint, told.name, address, told.server, now, until_s, proxied=True))

    def _add(self, fact: Fact) -> None:
        if len(fact.name) > KEPT_LABELS:
            return
        of_pod = self._facts.setdefault(fact.endpoint, OrderedDict())
        if of_pod.pop((fact.name, fact.address), None) is None:
            self._count += 1
        of_pod[fact.name, fact.address] = fact
        self.changed = True
        if len(of_pod) > MOST_PER_POD:
            self._forget(fact.endpoint)
        elif self._count > MOST:
            self._forget(max(self._facts, key=lambda endpoint: len(self._facts[endpoint])))

    def _forget(self, endpoint: int) -> None:
        self.take(next(iter(self._facts[endpoint].values())))

    def of(self, endpoint: int) -> list[Fact]:
        """What this pod was told, oldest first."""
        return list(self._facts.get(endpoint, {}).values())

    def take(self, fact: Fact) -> None:
        """It has been credited."""
        del self._facts[fact.endpoint][fact.name, fact.address]
        self._count -= 1
        self.changed = True
        if not self._facts[fact.endpoint]:
            del self._facts[fact.endpoint]

    def __iter__(self) -> Iterator[Fact]:
        return (fact for of_pod in list(self._facts.values()) for fact in list(of_pod.values()))

    def expire(self, now: float) -> None:
        for fact in self:
            if now - fact.heard_s > KEPT_S:
                self.take(fact)

    def dump(self) -> str:
        """For the next daemon of this boot: instants are by its clock."""
        self.changed = False
        rows = [
            [
                fact.endpoint,
                [label.hex() for label in fact.name],
                fact.address.hex(),
                fact.server.hex(),
                fact.heard_s,
                fact.until_s,
                fact.proxied,
            ]
            for fact in self
        ]
        return json.dumps(rows)

    def load(self, text: str) -> None:
        """What `dump` gave. ValueError, and nothing is taken, if it is anything else."""
        try:
            facts = [
                Fact(
                    int(endpoint),
                    tuple(map(bytes.fromhex, labels)),
                    bytes.fromhex(address),
                    bytes.fromhex(server),
                    float(heard_s),
                    float(until_s),
                    proxied == [True],
                )
                for endpoint, labels, address, server, heard_s, until_s, *proxied in json.loads(text)
            ]
        except TypeError as error:
            raise ValueError(f"not what was written: {error!r}") from error
        for fact in facts:
            self._add(fact)
