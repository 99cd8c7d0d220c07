"""A DNS proxy as data: messages in, commands out; no socket, no clock, no randomness of its own.

    pod ── query ──▶ [ Forward | Reply | Drop ]        ... the server answers ...        answer ──▶ [ Close, Reply ]

What has to hold, and where:

* A name that the pod's rules do not allow never reaches a server: `query` is the only source of Forward, and forwards
  nothing that `read_query` has not taken apart to the last byte (else refused names travel as payload of allowed ones).
* Where only policies on trial bring a pod's questions here (Endpoint.passes), whatever can be passed on is, there and
  back, unread if need be; what would have been refused is remembered as such. What is not understood opens nothing.
* An answer counts if it comes from the server asked, to the port from which it was asked, with the id and the question
  asked. While a Forward waits, no other question is on its socket, which is connected to the server, on a port that the
  kernel picked at random: the shim's `key` stands for that socket, so source and port are settled before `answer`; id
  and question are checked there. Others are dropped and the wait goes on, until there have been so many that somebody
  is guessing.
* The pod is told an address only after the kernel knows it: Reply carries the credits that must be written *first*, and
  the message to send instead if that fails.
* Rules are looked up anew when the answer arrives. A policy that went, or a pod whose address was given to another one,
  earns no credit.
* What is kept from message to message is what bytes mean, never what is allowed.
* Addresses are credited to the queried name alone, if each record's owner is that name or an alias that leads on from
  it, as Cilium does; and, where search domains are set, to the name that stands before one (Endpoint.meant). An answer
  with records beside that chain is not passed on at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache, partial
from itertools import takewhile
from typing import NamedTuple

from netstack.core.address import Prefix
from netstack.dns.message import (
    MAX_QUERY,
    Answer,
    Explained,
    Malformed,
    Query,
    Rcode,
    answers,
    identified,
    is_bare_error,
    read_answer,
    read_query,
    renamed,
    reply,
    unread,
)
from netstack.dns.names import Name
from netstack.dns.rules import Endpoint, Rules
from netstack.dns.settings import DnsSettings
from netstack.kernel.layout import IDENTITY_PODS, IDENTITY_PODS_END

REMEMBERED_REFUSALS = 64
"""The last refused questions and addresses, kept for whoever asks why something does not work. One that is asked again
and again is one: programs try each name four times, and with each search domain. The pod that has most forgets its
oldest."""

DNS_PORT = 53

MAX_FOREIGN = 16
"""Answers to another question that one question endures. A port that nobody guessed hears none, and a forger who knows
it is left with a chance of 1 in 4,000 to guess the id; unlimited, it tries all 65,536 in the time that a slow server
takes. (PowerDNS, spoof-nearmiss-max, gives up at the first.)"""

KEPT = 1024
"""Questions, and answers, whose meaning is kept: programs ask the same again and again, and reading both takes twice as
long as all else that is decided here. Who asks for ever new names gets no slower than without."""

KEPT_BYTES = 512
"""... of messages no longer than this, so that all of it stays below 10 MB, whatever pods and servers send."""


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
    ANSWER_GUESSED = "too many answers to other questions"
    ANSWER_MALFORMED = "answer malformed"
    ANSWER_TOO_LARGE = "answer with too many addresses"
    ANSWER_STALE = "rules changed before the answer"
    ADDRESS_GUARDED = "address that no name opens"
    ADDRESS_PRIVATE = "private address, and no policy with lan-names"
    SERVER_SILENT = "server silent"
    SERVER_UNREACHABLE = "server unreachable"
    TABLE_REFUSED = "address not writable"
    ON_TRIAL = "passed, for only a policy on trial would refuse it"


class Transport(StrEnum):
    UDP = "udp"
    TCP = "tcp"


# Those made for each question are named tuples: made three times as fast as frozen dataclasses.


class Client(NamedTuple):
    """Who asked, and whom: addresses of 16 bytes. The reply leaves from the server's address and port, as if it had
    answered itself. (Its port is 53 but for a cluster DNS whose Service translates to another one.)"""

    address: bytes
    port: int
    server: bytes
    server_port: int
    transport: Transport
    connection: int = 0
    """The shim's number of the TCP connection."""


class Credit(NamedTuple):
    """Learned addresses: `endpoint` may reach them as far as rules of `selectors` allow, until `until_s`."""

    endpoint: int
    addresses: tuple[bytes, ...]
    selectors: frozenset[int]
    name: Name
    server: bytes
    """Who said so."""
    until_s: float
    alike: frozenset[frozenset[int]] = frozenset()
    """Selectors of the endpoint of which one opens what the others open."""
    tried: frozenset[int] = frozenset()
    """Those that only policies on trial want."""

    @property
    def on_trial(self) -> bool:
        """Nothing depends on it but what policies on trial would say."""
        return self.selectors <= self.tried


class Unopened(NamedTuple):
    """What a pod is told and no rule opens: `name` leads to `addresses`, `server` said so."""

    endpoint: int
    name: Name
    addresses: tuple[bytes, ...]
    server: bytes
    ttl_s: int


class Forward(NamedTuple):
    """Send `payload` to the server that `client` asked, from a socket that nobody can guess and on which no other
    question waits; its answers come back under `key`."""

    key: int
    client: Client
    payload: bytes
    source: bytes | None = None
    """In whose name: the pod's address if the server is a pod of the cluster, whose policies then judge who asks; None:
    the node's own, for what is outside does not send answers to pods."""


class Reply(NamedTuple):
    """Write `credits`, then send `payload`; `otherwise()` if one cannot be written that is not on trial. `unopened` is
    to be remembered, for rules that come later."""

    client: Client
    payload: bytes
    reason: Reason
    credits: tuple[Credit, ...] = ()
    otherwise: Callable[[], bytes] = bytes
    unopened: Unopened | None = None


@dataclass(frozen=True, slots=True)
class Drop:
    """Send nothing."""

    reason: Reason
    detail: str = ""


class Close(NamedTuple):
    """The socket of `key` has served."""

    key: int
    clean: bool = False
    """It has brought the answer and nothing else: it may carry another question."""


Command = Forward | Reply | Drop | Close


class Refusal(NamedTuple):
    """A question that was refused, or an address of its answer that stays closed."""

    pod: bytes
    name: Name
    reason: Reason
    address: bytes = b""
    on_trial: bool = False
    """It would be, by policies on trial."""
    endpoint: int = 0
    """Whose address that was; 0 = unknown."""


class Repeats(NamedTuple):
    times: int
    last_s: float
    """Of the clock that `now` is."""


class _Pending(NamedTuple):
    """A question on its way; the server sees it under the id `sent`, the pod under `ident`."""

    client: Client
    query: Query
    ident: bytes
    sent: bytes
    server: int
    """Identity of the server that was asked."""
    endpoint: Endpoint
    deadline_s: float
    foreign: int = 0
    """How much else than the answer has come."""
    answered: bool = False
    """More may follow: a zone transfer takes several messages."""


@dataclass(frozen=True, slots=True)
class _Meaning:
    """What an answer says, whoever asked."""

    rcode: int
    count: int
    """Of its addresses."""
    public: tuple[bytes, ...]
    private: tuple[bytes, ...]
    """Those that a name opens if its policy says so."""
    guarded: tuple[bytes, ...]
    """Those that no name opens."""
    ttl_s: int


class Session:
    """All questions under way. `random_id` yields unpredictable numbers below 65536; `identify` the identity that the
    programs see in an address; `now` is seconds, monotonic."""

    def __init__(
        self, settings: DnsSettings, rules: Rules, random_id: Callable[[], int], identify: Callable[[bytes], int]
    ) -> None:
        self.rules = rules
        self.counters: Counter[Reason] = Counter()
        self.refused: dict[Refusal, Repeats] = {}
        """The longest ago first."""
        self._settings = settings
        self._random_id = random_id
        self._identify = identify
        self._identities: dict[bytes, int] = {}
        self._guarded = _networks(settings.never_open)
        self._lan = _networks(settings.lan)
        self._private = self._private_of(rules)
        self._query_kept = lru_cache(KEPT)(read_query)
        self._meaning_kept = lru_cache(KEPT)(self._meaning)
        self._pending: dict[int, _Pending] = {}  # in order of their deadlines: all wait equally long
        self._of_endpoint: dict[int, int] = {}  # questions under way
        self._next_key = 0

    @property
    def in_flight(self) -> int:
        return len(self._pending)

    def deadline(self) -> float | None:
        """When `tick` has something to do next."""
        return next((pending.deadline_s for pending in self._pending.values()), None)

    def refresh(self, rules: Rules) -> None:
        """What follows is judged by these rules, and identities are asked for anew."""
        self._identities.clear()
        if rules is self.rules:
            return
        self.rules = rules
        private = self._private_of(rules)
        if private != self._private:
            self._private = private
            self._meaning_kept.cache_clear()

    def _private_of(self, rules: Rules) -> list[tuple[int, int]]:
        return [*self._lan, *map(_network, rules.lan)]

    def query(self, client: Client, payload: bytes, now: float) -> list[Command]:
        """A message from a pod."""
        endpoint, server = self.rules.endpoints.get(client.address), self._identity(client.server)
        trial = endpoint.trial(server, client.server_port) if endpoint is not None else None
        try:
            query = self._read(payload, client.transport, passes=trial is not None)
        except Malformed as error:
            return [self._drop(Reason.QUERY_MALFORMED, str(error))]
        ident = payload[:2]
        if endpoint is None:
            return [self._refuse(client, query, ident, Reason.POD_UNKNOWN, Explained.PROHIBITED, now)]
        if trial is not None:
            if not query.is_lookup:
                self._note_trial(client, query, Reason.KIND_NOT_ALLOWED, now)
            elif not any(map(trial, endpoint.meant(query.name))):
                self._note_trial(client, query, Reason.NAME_NOT_ALLOWED, now)
        elif not query.is_lookup:
            return [self._refuse(client, query, ident, Reason.KIND_NOT_ALLOWED, Explained.PROHIBITED, now)]
        elif not endpoint.may_ask(query.name, server, client.server_port):
            return [self._refuse(client, query, ident, Reason.NAME_NOT_ALLOWED, Explained.BLOCKED, now)]
        waiting = self._of_endpoint.get(endpoint.id, 0)
        if waiting >= self._settings.max_in_flight_per_pod:
            return [self._fail(client, query, ident, Reason.POD_BUSY, Explained.OTHER)]
        if len(self._pending) >= self._settings.max_in_flight:
            return [self._fail(client, query, ident, Reason.PROXY_BUSY, Explained.OTHER)]
        sent = self._random_id().to_bytes(2)
        deadline_s = now + self._settings.upstream_timeout_s
        self._next_key += 1
        self._pending[self._next_key] = _Pending(client, query, ident, sent, server, endpoint, deadline_s)
        self._of_endpoint[endpoint.id] = waiting + 1
        self.counters[Reason.FORWARDED] += 1
        source = client.address if IDENTITY_PODS <= server < IDENTITY_PODS_END else None
        return [Forward(self._next_key, client, identified(payload, sent), source)]

    def _read(self, payload: bytes, transport: Transport, *, passes: bool) -> Query:
        """Malformed if it cannot be told what is asked, or, of what passes, not even whose the answer is."""
        try:
            return (self._query_kept if len(payload) <= KEPT_BYTES else read_query)(identified(payload))
        except Malformed:
            if not passes or (transport is Transport.UDP and len(payload) > MAX_QUERY):  # cut by who has received it
                raise
            return unread(payload)

    def judge(self, pod: bytes, name: Name, server: bytes, port: int) -> Reason:
        """What would become of a question for `name`, had we room for it; nothing is sent, counted or remembered."""
        endpoint = self.rules.endpoints.get(pod)
        if endpoint is None:
            return Reason.POD_UNKNOWN
        place = self._identity(server), port
        allowed = endpoint.trial(*place) is not None or endpoint.may_ask(name, *place)
        return Reason.FORWARDED if allowed else Reason.NAME_NOT_ALLOWED

    def _identity(self, server: bytes) -> int:
        found = self._identities.get(server)
        if found is None:
            found = self._identities[server] = self._identify(server)
        return found

    def answer(self, key: int, payload: bytes, now: float) -> list[Command]:
        """A message that arrived at the socket of `key`."""
        pending = self._pending.get(key)
        if pending is None:
            return []
        client, query, ident = pending.client, pending.query, pending.ident
        if not answers(payload, pending.sent, query):
            return self._not_its_answer(key, pending)
        endpoint = self._still_asking(pending)
        if endpoint is not None and not query.is_lookup and client.transport is Transport.TCP:
            self._pending[key] = pending._replace(answered=True)
            return [self._pass_on(pending, payload)]
        self._forget(key)
        if endpoint is None:
            return [Close(key), self._fail(client, query, ident, Reason.ANSWER_STALE, Explained.PROHIBITED)]
        close = Close(key, not pending.foreign)
        if not query.is_lookup or is_bare_error(payload):
            return [close, self._pass_on(pending, payload)]
        meaning = self._understood(payload)
        if isinstance(meaning, Reason):
            if endpoint.trial(pending.server, client.server_port) is not None:
                self._note_trial(client, query, meaning, now)
                return [close, self._pass_on(pending, payload)]
            return [Close(key), self._fail(client, query, ident, meaning, Explained.OTHER)]
        self.counters[Reason.ANSWERED] += 1
        credits_ = self._credits(client, query, endpoint, meaning, now)
        otherwise = partial(reply, query, ident, Rcode.SERVFAIL, Explained.OTHER, Reason.TABLE_REFUSED)
        restored = renamed(payload, ident, query.question)
        unopened = None if credits_ else _unopened(client, query, endpoint, meaning)
        return [close, Reply(client, restored, Reason.ANSWERED, credits_, otherwise, unopened)]

    def _understood(self, payload: bytes) -> _Meaning | Reason:
        """What an answer means, or why it means nothing."""
        try:
            meaning = (self._meaning_kept if len(payload) <= KEPT_BYTES else self._meaning)(identified(payload))
        except Malformed:
            return Reason.ANSWER_MALFORMED
        return Reason.ANSWER_TOO_LARGE if meaning.count > self._settings.max_addresses_per_answer else meaning

    def _pass_on(self, pending: _Pending, payload: bytes) -> Reply:
        """An answer as the server gave it, of which nothing is learned."""
        self.counters[Reason.ANSWERED] += 1
        query, ident = pending.query, pending.ident
        restored = renamed(payload, ident, query.question) if query.is_lookup else identified(payload, ident)
        return Reply(pending.client, restored, Reason.ANSWERED)

    def _still_asking(self, pending: _Pending) -> Endpoint | None:
        """The endpoint that asked, if the rules of today let it; they are the same for the same object."""
        client, query, asked = pending.client, pending.query, pending.endpoint
        endpoint, place = self.rules.endpoints.get(client.address), (pending.server, client.server_port)
        if endpoint is asked:
            return endpoint
        if endpoint is None or endpoint.id != asked.id:
            return None
        allowed = endpoint.trial(*place) is not None or (query.is_lookup and endpoint.may_ask(query.name, *place))
        return endpoint if allowed else None

    def _not_its_answer(self, key: int, pending: _Pending) -> list[Command]:
        dropped = self._drop(Reason.ANSWER_FOREIGN)
        if pending.foreign + 1 < MAX_FOREIGN:
            self._pending[key] = pending._replace(foreign=pending.foreign + 1)
            return [dropped]
        self._forget(key)
        client, query, ident = pending.client, pending.query, pending.ident
        return [Close(key), self._fail(client, query, ident, Reason.ANSWER_GUESSED, Explained.OTHER)]

    def _meaning(self, payload: bytes) -> _Meaning:
        answer = read_answer(payload)
        addresses, ttl_s = followed(answer)
        if len(addresses) > self._settings.max_addresses_per_answer:
            return _Meaning(answer.rcode, len(addresses), (), (), (), ttl_s)
        public: list[bytes] = []
        private: list[bytes] = []
        guarded: list[bytes] = []
        for address in addresses:
            number = int.from_bytes(address)
            closed, inward = _is_in(self._guarded, number), _is_in(self._private, number)
            (guarded if closed else private if inward else public).append(address)
        return _Meaning(answer.rcode, len(addresses), tuple(public), tuple(private), tuple(guarded), ttl_s)

    def lifetime(self, ttl_s: int) -> int:
        """Seconds that an address with this TTL stays open."""
        return min(max(ttl_s, self._settings.min_ttl_s), self._settings.max_ttl_s)

    def _credits(
        self, client: Client, query: Query, endpoint: Endpoint, meaning: _Meaning, now: float
    ) -> tuple[Credit, ...]:
        if meaning.rcode != Rcode.NOERROR:
            return ()
        found: list[Credit] = []
        for name in endpoint.meant(query.name):
            if not (selectors := endpoint.selectors(name)):
                continue
            inward = selectors & endpoint.lan
            until_s, tried = now + self.lifetime(meaning.ttl_s), endpoint.tried
            refusal = Refusal(client.address, name, Reason.ADDRESS_GUARDED, on_trial=selectors <= tried)
            self._keep_closed(refusal, meaning.guarded, now)
            if not inward:
                self._keep_closed(refusal._replace(reason=Reason.ADDRESS_PRIVATE), meaning.private, now)
            found += (
                Credit(endpoint.id, addresses, chosen, name, client.server, until_s, endpoint.alike, tried)
                for addresses, all_ in ((meaning.public, selectors), (meaning.private, inward))
                for chosen in (all_ - tried, all_ & tried)
                if addresses and chosen
            )
        return tuple(found)

    def _keep_closed(self, refusal: Refusal, addresses: tuple[bytes, ...], now: float) -> None:
        for address in addresses:
            self.counters[refusal.reason] += 1
            self._remember(refusal._replace(address=address), now)

    def _note_trial(self, client: Client, query: Query, reason: Reason, now: float) -> None:
        self.counters[Reason.ON_TRIAL] += 1
        self._remember(Refusal(client.address, query.name, reason, on_trial=True), now)

    def _remember(self, refusal: Refusal, now: float) -> None:
        asking = self.rules.endpoints.get(refusal.pod)
        refusal = refusal._replace(endpoint=asking.id if asking else 0)
        before = self.refused.pop(refusal, None)
        if before is None and len(self.refused) >= REMEMBERED_REFUSALS:
            ((pod, _),) = Counter(item.pod for item in self.refused).most_common(1)
            del self.refused[next(item for item in self.refused if item.pod == pod)]
        self.refused[refusal] = Repeats(before.times + 1 if before else 1, now)

    def recalled(self, endpoint: Endpoint, name: Name, address: bytes, server: bytes, until_s: float) -> Credit | None:
        """The credit for what `server` told the pod past us, if the rules let it ask there and open it. None if not."""
        number = int.from_bytes(address)
        if not endpoint.may_ask(name, self._identity(server), DNS_PORT) or _is_in(self._guarded, number):
            return None
        private = _is_in(self._private, number)
        for wanted in endpoint.meant(name):
            selectors = endpoint.selectors(wanted)
            if private:
                selectors &= endpoint.lan
            if selectors:
                of_all = endpoint.alike, endpoint.tried
                return Credit(endpoint.id, (address,), selectors, wanted, server, until_s, *of_all)
        return None

    def unreachable(self, key: int) -> list[Command]:
        """The socket of `key` could not be made or used: the server is not there (a port closed, no route, reset)."""
        pending = self._forget(key)
        if pending is None:
            return []
        if pending.answered:
            return [Close(key)]
        return [
            Close(key),
            self._fail(
                pending.client, pending.query, pending.ident, Reason.SERVER_UNREACHABLE, Explained.NETWORK_ERROR
            ),
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
            number = pending.endpoint.id
            if waiting := self._of_endpoint.pop(number) - 1:
                self._of_endpoint[number] = waiting
        return pending

    def _refuse(self, client: Client, query: Query, ident: bytes, reason: Reason, why: Explained, now: float) -> Reply:
        self.counters[reason] += 1
        self._remember(Refusal(client.address, query.name, reason), now)
        return Reply(client, reply(query, ident, self._settings.refusal, why, reason), reason)

    def _fail(self, client: Client, query: Query, ident: bytes, reason: Reason, why: Explained) -> Reply:
        self.counters[reason] += 1
        return Reply(client, reply(query, ident, Rcode.SERVFAIL, why, reason), reason)

    def _drop(self, reason: Reason, detail: str = "") -> Drop:
        self.counters[reason] += 1
        return Drop(reason, detail)


def _unopened(client: Client, query: Query, endpoint: Endpoint, meaning: _Meaning) -> Unopened | None:
    addresses = meaning.public + meaning.private
    if meaning.rcode != Rcode.NOERROR or not addresses or any(map(endpoint.selectors, endpoint.meant(query.name))):
        return None
    return Unopened(endpoint.id, query.name, addresses, client.server, meaning.ttl_s)


def _networks(texts: tuple[str, ...]) -> list[tuple[int, int]]:
    return [_network(Prefix.parse(text)) for text in texts]


def _network(prefix: Prefix) -> tuple[int, int]:
    """As (bits that do not count, those that do)."""
    return 128 - prefix.bits, int.from_bytes(prefix.address) >> 128 - prefix.bits


def _is_in(networks: list[tuple[int, int]], address: int) -> bool:
    return any(address >> shift == network for shift, network in networks)


def followed(answer: Answer) -> tuple[list[bytes], int]:
    """The addresses to which the name asked leads through its aliases, in order, and the lowest TTL on the way.

    Malformed if a record belongs to a name that the chain does not reach. Aliases may come in any order.
    """
    aliases: dict[Name, list[Name]] = {}
    for record in answer.records:
        if record.target is not None:
            aliases.setdefault(record.owner, []).append(record.target)
    reached, ahead = {answer.name}, [answer.name]
    while ahead:
        for target in aliases.get(ahead.pop(), ()):
            if target not in reached:
                reached.add(target)
                ahead.append(target)
    if any(record.owner not in reached for record in answer.records):
        raise Malformed("a record of a name to which the question does not lead")
    addresses = dict.fromkeys(address for record in answer.records for address in record.addresses)
    return list(addresses), min((record.ttl_s for record in answer.records), default=0)
