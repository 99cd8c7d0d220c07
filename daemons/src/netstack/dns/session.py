"""A DNS proxy as data: messages in, commands out; no socket, no clock, no randomness of its own.

    pod ── query ──▶ [ Forward | Reply | Drop ]        ... the server answers ...        answer ──▶ [ Close, Reply ]

What has to hold, and where:

* A name that the pod's rules do not allow never reaches a server: `query` is the only source of Forward, and forwards
  nothing that `read_query` has not taken apart to the last byte (else refused names travel as payload of allowed ones).
* An answer counts if it comes from the server asked, to the port from which it was asked, with the id and the question
  asked. Every Forward is sent from a socket of its own, connected to the server, on a port that the kernel picks at
  random: the shim's `key` stands for that socket, so source and port are settled before `answer`; id and question are
  checked there. Others are dropped and the wait goes on: a forger does not end it.
* The pod is told an address only after the kernel knows it: Reply carries the credits that must be written *first*, and
  the message to send instead if that fails.
* Rules are looked up anew when the answer arrives. A policy that went, or a pod whose address was given to another one,
  earns no credit.
* Addresses are credited to the queried name alone, if each record's owner is that name or an alias that leads on from
  it, as Cilium does. An answer with records beside that chain is not passed on at all.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from itertools import takewhile

from netstack.core.address import Prefix
from netstack.dns.message import (
    Answer,
    Explained,
    Malformed,
    Query,
    Rcode,
    answers,
    read_answer,
    read_query,
    renamed,
    reply,
)
from netstack.dns.names import Name
from netstack.dns.rules import Rules
from netstack.dns.settings import DnsSettings

REMEMBERED_REFUSALS = 32
"""The last refused questions, kept for whoever asks why something does not work."""


class Reason(StrEnum):
    """Why a message went where it went; also the names of the counters."""

    FORWARDED = "forwarded"
    ANSWERED = "answered"
    NAME_NOT_ALLOWED = "name not allowed"
    POD_UNKNOWN = "pod unknown"
    KIND_NOT_ALLOWED = "kind of query not allowed"
    QUERY_MALFORMED = "query malformed"
    POD_BUSY = "too many questions of one pod"
    PROXY_BUSY = "too many questions of all pods"
    ANSWER_FOREIGN = "answer to another question"
    ANSWER_MALFORMED = "answer malformed"
    ANSWER_TOO_LARGE = "answer with too many addresses"
    ANSWER_STALE = "rules changed before the answer"
    ADDRESS_GUARDED = "address that no name opens"
    SERVER_SILENT = "server silent"
    SERVER_UNREACHABLE = "server unreachable"
    TABLE_REFUSED = "address not writable"


class Transport(StrEnum):
    UDP = "udp"
    TCP = "tcp"


@dataclass(frozen=True, slots=True)
class Client:
    """Who asked, and whom: addresses of 16 bytes. The reply leaves from the server's address and port, as if it had
    answered itself. (Its port is 53 but for a cluster DNS whose Service translates to another one.)"""

    address: bytes
    port: int
    server: bytes
    server_port: int
    transport: Transport
    connection: int = 0
    """The shim's number of the TCP connection."""


@dataclass(frozen=True, slots=True)
class Credit:
    """One learned address: `endpoint` may reach it as far as rules of `selectors` allow, until `until_s`."""

    endpoint: int
    address: bytes
    selectors: tuple[int, ...]
    until_s: float
    name: Name
    server: bytes
    """Who said so."""


@dataclass(frozen=True, slots=True)
class Forward:
    """Send `payload` from a new socket to the server that `client` asked; its answers come back under `key`."""

    key: int
    client: Client
    payload: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """Write `credits`, then send `payload`. If they cannot all be written, send `otherwise`."""

    client: Client
    payload: bytes
    reason: Reason
    credits: tuple[Credit, ...] = ()
    otherwise: bytes = b""


@dataclass(frozen=True, slots=True)
class Drop:
    """Send nothing."""

    reason: Reason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Close:
    """The socket of `key` has served."""

    key: int


Command = Forward | Reply | Drop | Close


@dataclass(frozen=True, slots=True)
class _Pending:
    """A question on its way; `ident` is the id that the server sees."""

    client: Client
    query: Query
    ident: int
    server: int
    """Identity of the server that was asked."""
    endpoint: int
    deadline_s: float


class Session:
    """All questions under way. `random_id` yields unpredictable numbers below 65536; `identify` the identity that the
    programs see in an address; `now` is seconds, monotonic."""

    def __init__(
        self, settings: DnsSettings, rules: Rules, random_id: Callable[[], int], identify: Callable[[bytes], int]
    ) -> None:
        self.rules = rules
        self.counters: Counter[Reason] = Counter()
        self.refused: deque[tuple[bytes, Name, Reason]] = deque(maxlen=REMEMBERED_REFUSALS)
        self._settings = settings
        self._random_id = random_id
        self._identify = identify
        guarded = [Prefix.parse(network) for network in settings.never_open]
        self._guarded = [(128 - net.bits, int.from_bytes(net.address) >> 128 - net.bits) for net in guarded]
        self._pending: dict[int, _Pending] = {}  # in order of their deadlines: all wait equally long
        self._of_endpoint: Counter[int] = Counter()
        self._next_key = 0

    @property
    def in_flight(self) -> int:
        return len(self._pending)

    def deadline(self) -> float | None:
        """When `tick` has something to do next."""
        return next((pending.deadline_s for pending in self._pending.values()), None)

    def query(self, client: Client, payload: bytes, now: float) -> list[Command]:
        """A message from a pod."""
        try:
            query = read_query(payload)
        except Malformed as error:
            return [self._drop(Reason.QUERY_MALFORMED, str(error))]
        endpoint = self.rules.endpoints.get(client.address)
        if endpoint is None:
            return [self._refuse(client, query, Reason.POD_UNKNOWN, Explained.PROHIBITED)]
        if not query.is_lookup:
            return [self._refuse(client, query, Reason.KIND_NOT_ALLOWED, Explained.PROHIBITED)]
        server = self._identify(client.server)
        if not endpoint.may_ask(query.name, server, client.server_port):
            return [self._refuse(client, query, Reason.NAME_NOT_ALLOWED, Explained.BLOCKED)]
        if self._of_endpoint[endpoint.id] >= self._settings.max_in_flight_per_pod:
            return [self._fail(client, query, Reason.POD_BUSY, Explained.OTHER)]
        if len(self._pending) >= self._settings.max_in_flight:
            return [self._fail(client, query, Reason.PROXY_BUSY, Explained.OTHER)]
        deadline_s = now + self._settings.upstream_timeout_s
        pending = _Pending(client, query, self._random_id(), server, endpoint.id, deadline_s)
        return [self._forward(pending, payload)]

    def _forward(self, pending: _Pending, payload: bytes) -> Forward:
        self._next_key += 1
        self._pending[self._next_key] = pending
        self._of_endpoint[pending.endpoint] += 1
        self.counters[Reason.FORWARDED] += 1
        return Forward(self._next_key, pending.client, renamed(payload, pending.ident, pending.query.question))

    def answer(self, key: int, payload: bytes, now: float) -> list[Command]:
        """A message that arrived at the socket of `key`."""
        pending = self._pending.get(key)
        if pending is None:
            return []
        client, query = pending.client, pending.query
        if not answers(payload, pending.ident, query):
            return [self._drop(Reason.ANSWER_FOREIGN)]
        self._forget(key)
        endpoint = self.rules.endpoints.get(client.address)
        allowed = (
            endpoint is not None
            and endpoint.id == pending.endpoint
            and endpoint.may_ask(query.name, pending.server, client.server_port)
        )
        if endpoint is None or not allowed:
            return [Close(key), self._fail(client, query, Reason.ANSWER_STALE, Explained.PROHIBITED)]
        try:
            answer = read_answer(payload)
            addresses, ttl_s = followed(query.name, answer)
        except Malformed:
            return [Close(key), self._fail(client, query, Reason.ANSWER_MALFORMED, Explained.OTHER)]
        if len(addresses) > self._settings.max_addresses_per_answer:
            return [Close(key), self._fail(client, query, Reason.ANSWER_TOO_LARGE, Explained.OTHER)]
        opens = endpoint.selectors(query.name) if answer.rcode == Rcode.NOERROR else frozenset()
        credits_ = self._credits(pending, opens, addresses, now + self._lifetime(ttl_s))
        self.counters[Reason.ANSWERED] += 1
        otherwise = reply(query, Rcode.SERVFAIL, Explained.OTHER, Reason.TABLE_REFUSED)
        restored = renamed(payload, query.id, query.question)
        return [Close(key), Reply(client, restored, Reason.ANSWERED, credits_, otherwise)]

    def _lifetime(self, ttl_s: int) -> int:
        return min(max(ttl_s, self._settings.min_ttl_s), self._settings.max_ttl_s)

    def _credits(
        self, pending: _Pending, selectors: frozenset[int], addresses: list[bytes], until_s: float
    ) -> tuple[Credit, ...]:
        if not selectors:
            return ()
        opened = [address for address in addresses if not self._is_guarded(int.from_bytes(address))]
        if guarded := len(addresses) - len(opened):
            self.counters[Reason.ADDRESS_GUARDED] += guarded
        chosen = tuple(sorted(selectors))
        name, server = pending.query.name, pending.client.server
        return tuple(Credit(pending.endpoint, address, chosen, until_s, name, server) for address in opened)

    def _is_guarded(self, address: int) -> bool:
        return any(address >> shift == network for shift, network in self._guarded)

    def unreachable(self, key: int) -> list[Command]:
        """The socket of `key` could not be made or used: the server is not there (a port closed, no route, reset)."""
        pending = self._forget(key)
        if pending is None:
            return []
        return [
            Close(key),
            self._fail(pending.client, pending.query, Reason.SERVER_UNREACHABLE, Explained.NETWORK_ERROR),
        ]

    def tick(self, now: float) -> list[Command]:
        """Give up on what has waited too long. Nothing is sent: by now the pod has asked again, or given up."""
        commands: list[Command] = []
        for key in [key for key, _ in takewhile(lambda item: item[1].deadline_s <= now, self._pending.items())]:
            self._forget(key)
            commands += [Close(key), self._drop(Reason.SERVER_SILENT)]
        return commands

    def _forget(self, key: int) -> _Pending | None:
        pending = self._pending.pop(key, None)
        if pending is not None:
            self._of_endpoint[pending.endpoint] -= 1
            if not self._of_endpoint[pending.endpoint]:
                del self._of_endpoint[pending.endpoint]
        return pending

    def _refuse(self, client: Client, query: Query, reason: Reason, why: Explained) -> Reply:
        self.counters[reason] += 1
        self.refused.append((client.address, query.name, reason))
        return Reply(client, reply(query, self._settings.refusal, why, reason), reason)

    def _fail(self, client: Client, query: Query, reason: Reason, why: Explained) -> Reply:
        self.counters[reason] += 1
        return Reply(client, reply(query, Rcode.SERVFAIL, why, reason), reason)

    def _drop(self, reason: Reason, detail: str = "") -> Drop:
        self.counters[reason] += 1
        return Drop(reason, detail)


def followed(name: Name, answer: Answer) -> tuple[list[bytes], int]:
    """The addresses to which `name` leads through its aliases, in order, and the lowest TTL on the way.

    Malformed if a record belongs to a name that the chain does not reach. Aliases may come in any order.
    """
    aliases: dict[Name, list[Name]] = {}
    for record in answer.records:
        if record.target is not None:
            aliases.setdefault(record.owner, []).append(record.target)
    reached, ahead = {name}, [name]
    while ahead:
        for target in aliases.get(ahead.pop(), ()):
            if target not in reached:
                reached.add(target)
                ahead.append(target)
    if any(record.owner not in reached for record in answer.records):
        raise Malformed("a record of a name to which the question does not lead")
    addresses = dict.fromkeys(address for record in answer.records for address in record.addresses)
    return list(addresses), min((record.ttl_s for record in answer.records), default=0)
