"""Who answers for an address: one election for each LAN, decided by beats between the nodes.

The protocol, and why no two nodes ever answer for one address at the same time

Each node sends each peer a beat every `beat_s`. A beat carries *claims*: the addresses that its sender holds or wants.
A peer acknowledges every beat at once and, with it, supports each of its claims but those that it refuses.

* **Promise.** Who supports a claim promises its holder to support nobody else for `takeover_s` from when the
  acknowledgement has left (`carried_out`): a process that is stopped in between must not date it back. The promise
  ends early only by a beat of the holder that no longer has the claim, and a holder sends that only after it has
  stopped answering.
* **Evidence.** The newest own beat that a majority of all nodes (this one included) supports is evidence. The kernel
  answers until *the time at which that beat was sent* + `fence_s`, on its own: a dead, stuck or cut-off owner
  falls silent without doing anything.
* **So**: let `o` answer by a beat sent at t. Each supporter promised at t or later, for more than fence_s. Another node
  that answers has a majority too, so the two share a node, and that node supported the second one only after its
  promise ended: after t + fence_s, or after `o` stopped by itself. No clocks are compared, only spans; losses in any
  direction, delays, doubled frames and stalls of any length change nothing. It is a lease with the beat as its renewal
  (compare Raft's leader lease, Paxos leases).
* **Restart.** A process that starts has forgotten its promises, so it acknowledges nothing for takeover_s (MUTE) and
  claims nothing for three times that (LISTENING); before its first beat its caller has set every deadline to zero.

A claim is made once nobody holds the address, by the best node in `rank`; the next in rank follows half a takeover
later, should the best one not know of it. A claim that gathers no evidence within the fence is withdrawn, tried again
later. Who holds an address keeps it, whoever returns: a move that mends nothing only breaks connections. A node that
must give it up (drain, no longer eligible) calls its claim YIELDING and goes on answering until a candidate asks;
then it stops, says so at once, and the candidate has its evidence one round trip later.

**Witness.** With `gateway`, a node that hears too few peers for a majority may lean on the gateway's ARP answers
instead, as long as every peer that it hears supports it. Then one board of four keeps the addresses up. The price is an
assumption: nodes that both reach the gateway hear each other, at least one way, with no two beats in a row lost on the
way that works. A LAN torn so that the gateway's side has a minority gets an owner on either side; when it heals, the
lower term yields at the first beat.

Shape: no socket, no clock. `receive`, `tick` and the rest take `now` (seconds, monotonic) and return outputs, which
the caller must carry out in order, and say so (`carried_out`): a deadline of zero comes before the frame that tells of
it. `wakeup` says when to tick next; before it ticks for `now` the caller hands in all that has arrived by `now`, or a
slow loop would look like dead peers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from netstack.announcer.beat import CLAIMS_MAX, Ack, Beat, Claim, Flag, Stage, decode, encode
from netstack.announcer.events import Alive, AskGateway, Lost, Output, Owned, Send, SetDeadline
from netstack.announcer.frames import BROADCAST, FrameError
from netstack.announcer.peers import NEVER, Peer
from netstack.announcer.rank import plan, weight
from netstack.announcer.settings import Timing

CALL_S = 1.0
"""Between two broadcast beats for peers whose MAC is unknown or that are long silent."""
FORGOTTEN_S = 10.0
"""Silence after which a peer is no longer sent its own frames but called by broadcast."""
GATEWAY_MISSES = 2
"""Questions in a row that the gateway leaves unanswered before it counts as unseen."""
GATEWAY_S = 1.0
"""Between two questions to the gateway while peers are enough. When they are not, every beat asks."""


@dataclass(slots=True)
class Holding:
    """This node's claim to one address."""

    term: int
    stage: Stage
    first: int
    """Sequence of the first beat that carries it: what was acknowledged before supports nothing."""
    since: float
    """When the stage CANDIDATE or OWNER began."""
    reason: str
    dark_from: float | None
    """When the owner before was last heard, if it went silent."""
    support: dict[str, int] = field(default_factory=dict)
    """Peer -> newest beat in which it supported this claim."""
    deadline: float = 0.0
    yield_until: float = 0.0


@dataclass(slots=True)
class Promise:
    """This node's promise to support nobody but `holder`. Kept after its end, as the memory of who was last."""

    holder: str
    stage: Stage
    heard_at: float
    until: float


class Election:
    """One node's part in the election of one LAN."""

    def __init__(
        self, node: str, peers: Collection[str], key: bytes, boot: int, timing: Timing, *, witness: bool, now: float
    ) -> None:
        """`boot`: random, not zero, new for every start. `witness`: whether there is a gateway to lean on."""
        self.node = node
        self.timing = timing
        self.peers = {name: Peer(name) for name in sorted(peers)}
        self.dropped: Counter[str] = Counter()
        """Frames that were not believed, by reason."""
        self._key = key
        self._boot = boot
        self.witness = witness
        self._others_needed = (len(self.peers) + 1) // 2
        self._eligible: Mapping[bytes, frozenset[str]] = {}
        self._holdings: dict[bytes, Holding] = {}
        self._promises: dict[bytes, Promise] = {}
        self._given: set[bytes] = set()
        """Addresses of promises whose acknowledgement is among outputs that are not carried out yet."""
        self._waiting: dict[bytes, str] = {}
        """Address -> the peer that was refused because of a promise, and is told when that ends."""
        self._terms: dict[bytes, int] = {}
        self._free_since: dict[bytes, float] = {}
        self._not_before: dict[bytes, float] = {}
        self._sequence = 0
        self._sent: dict[int, float] = {}
        self._started = now
        self._last_seen = now
        self._able_since: float | None = None
        self._next_beat = now
        self._next_call = now
        self._next_claim = now
        self._carrier = True
        self._draining = False
        self._news = False
        self._gateway_asked = NEVER
        self._gateway_at = NEVER
        self._gateway_since = NEVER
        self._gateway_missed = GATEWAY_MISSES

    # ---- what happens to this node ----

    def want(self, eligible: Mapping[bytes, frozenset[str]], now: float) -> list[Output]:
        """The addresses to be held, each with the nodes that may hold it. Others are given up at once."""
        self._eligible = dict(eligible)
        out: list[Output] = []
        for address in self._holdings.keys() - eligible.keys():
            self._drop(address, "no longer to be announced", out)
        return out + self._take_in(now, look=True)

    def carrier(self, up: bool, now: float) -> list[Output]:
        """The interface's link came or went."""
        out: list[Output] = []
        self._carrier = up
        if not up:
            for address in list(self._holdings):
                self._drop(address, "the interface lost its carrier", out)
        return out + self._take_in(now, look=True)

    def leave(self, now: float) -> list[Output]:
        """Hand everything over. Done when `holdings` is empty, at the latest after two takeover times."""
        self._draining = True
        self._news = True
        return self._take_in(now, look=True)

    def gateway_answered(self, now: float) -> list[Output]:
        """The witness has answered. Dated back to the question, as beats are to their sending."""
        if not self.gateway_seen:
            self._gateway_since = now
        self._gateway_missed = 0
        self._gateway_at = self._gateway_asked
        return self._take_in(now, look=True)

    def receive(self, source: bytes, payload: bytes, now: float) -> list[Output]:
        """A beat frame from the MAC `source`. What cannot be believed is counted in `dropped`, nothing else."""
        try:
            message = decode(payload, self._key)
        except FrameError:
            self.dropped["malformed or not sealed by this cluster's key"] += 1
            return []
        peer = self.peers.get(message.node)
        if peer is None:
            self.dropped["from this node's own name" if message.node == self.node else "from an unknown node"] += 1
            return []
        out = self._wake(now)
        if isinstance(message, Ack):
            self._credit(peer, message)
        elif peer.hear(message, source, now, self.timing.silence_s):
            self._heard(peer, message, now, out)
        else:
            self.dropped["old or replayed"] += 1
        return out + self._take_in(now)

    def carried_out(self, now: float) -> None:
        """The outputs of the last call have left, at `now` at the latest: from then on its promises count."""
        for address in self._given & self._promises.keys():
            promise = self._promises[address]
            promise.until = max(promise.until, now + self.timing.takeover_s)
        self._given.clear()

    def tick(self, now: float) -> list[Output]:
        """Time has passed, and everything that has arrived was handed in before. Only here is anything concluded from
        what was *not* heard: half-way through the frames that piled up in a stall, every peer looks silent."""
        out = self._wake(now)
        self._tell_waiting(now, out)
        self._gather(now, out, lean=True)
        self._review(now, out)
        self._claim(now)
        if self._news or now >= self._next_beat:
            self._beat(now, out)
            self._gather(now, out, lean=True)
        return out

    def _take_in(self, now: float, *, look: bool = False) -> list[Output]:
        """What follows from good news alone. `look`: a tick is due."""
        out: list[Output] = []
        self._gather(now, out, lean=False)
        if self._news:
            self._beat(now, out)
        if look:
            self._next_claim = now
        return out

    def _wake(self, now: float) -> list[Output]:
        """Before anything else: what has ended meanwhile."""
        self._last_seen = now
        out: list[Output] = []
        self._lapse(now, out)
        return out

    @property
    def wakeup(self) -> float:
        """When to tick at the latest."""
        ends = [self._promises[address].until for address in self._waiting]
        deadlines = [holding.deadline for holding in self._holdings.values() if holding.stage is not Stage.CANDIDATE]
        silences = [peer.heard_at + self.timing.silence_s for peer in self.peers.values()] if self._holdings else []
        coming = [time for time in silences if time > self._last_seen]
        return min(self._next_beat, self._next_claim, *ends, *deadlines, *coming)

    @property
    def holdings(self) -> Mapping[bytes, Holding]:
        return self._holdings

    def holder(self, address: bytes, now: float) -> str:
        """Who holds `address` as far as this node knows; "" if nobody."""
        if (own := self._holdings.get(address)) and own.stage is not Stage.CANDIDATE:
            return self.node
        promise = self._promises.get(address)
        return promise.holder if promise and now < promise.until and promise.stage is not Stage.CANDIDATE else ""

    @property
    def gateway_seen(self) -> bool:
        return self._gateway_missed < GATEWAY_MISSES

    # ---- hearing and supporting others ----

    def _heard(self, peer: Peer, beat: Beat, now: float, out: list[Output]) -> None:
        for claim in beat.claims:
            self._terms[claim.address] = max(self._terms.get(claim.address, 0), claim.term)
        claimed = {claim.address for claim in beat.claims}
        for address in [a for a, p in self._promises.items() if p.holder == peer.name and a not in claimed]:
            del self._promises[address]
            self._next_claim = now
        for address in [a for a, name in self._waiting.items() if name == peer.name and a not in claimed]:
            del self._waiting[address]
        self._acknowledge(peer, beat, now, out)
        self._tell_waiting(now, out)
        out.append(Alive(peer.name, now + self.timing.alive_s))

    def _acknowledge(self, peer: Peer, beat: Beat, now: float, out: list[Output]) -> None:
        refused = tuple(claim.address for claim in beat.claims if not self._supports(peer, claim, now, out))
        if now >= self._started + self.timing.takeover_s:
            ack = Ack(self.node, beat.boot, beat.sequence, self._boot, refused)
            out.append(Send(peer.mac, encode(ack, self._key)))

    def _supports(self, peer: Peer, claim: Claim, now: float, out: list[Output]) -> bool:
        address = claim.address
        own = self._holdings.get(address)
        awaits = own is not None and own.stage is Stage.CANDIDATE and claim.stage is Stage.YIELDING
        if own is not None and not awaits and not self._gives_way(own, peer, claim, out):
            return False
        promise = self._promises.get(address)
        if promise and promise.holder != peer.name and now < promise.until:
            self._waiting[address] = peer.name
            return False
        self._promises[address] = Promise(peer.name, claim.stage, now, now + self.timing.takeover_s)
        self._given.add(address)
        if claim.stage is Stage.YIELDING:
            self._next_claim = now
        return True

    def _gives_way(self, own: Holding, peer: Peer, claim: Claim, out: list[Output]) -> bool:
        """Whether this node's own claim is gone in favour of the peer's."""
        if claim.stage is not Stage.CANDIDATE:
            # Two owners cannot be, unless a witness stood in for a majority: then the higher term stays.
            gives_way = own.stage is Stage.CANDIDATE or (claim.term, peer.name) > (own.term, self.node)
            reason = f"{peer.name} holds it with term {claim.term}"
        elif own.stage is Stage.CANDIDATE:
            theirs = (-claim.term, weight(claim.address, peer.name))
            gives_way = theirs < (-own.term, weight(claim.address, self.node))
            reason = f"{peer.name} comes first"
        else:
            gives_way = own.stage is Stage.YIELDING and peer.name in self._eligible.get(claim.address, ())
            reason = f"handed over to {peer.name}"
        if gives_way:
            self._drop(claim.address, reason, out)
        return gives_way

    def _tell_waiting(self, now: float, out: list[Output]) -> None:
        """A promise has ended: acknowledge again the beat of the peer that was refused because of it."""
        ended = {
            name
            for address, name in self._waiting.items()
            if (promise := self._promises.get(address)) is None or now >= promise.until
        }
        for name in sorted(ended):
            self._waiting = {address: waiting for address, waiting in self._waiting.items() if waiting != name}
            peer = self.peers[name]
            if peer.beat is not None and now - peer.heard_at < self.timing.silence_s:
                self._acknowledge(peer, peer.beat, now, out)

    # ---- own claims ----

    def _credit(self, peer: Peer, ack: Ack) -> None:
        if ack.boot != self._boot or ack.sequence > self._sequence:
            self.dropped["acknowledges what was not sent"] += 1
            return
        peer.acked = max(peer.acked, ack.sequence)
        for address, own in self._holdings.items():
            if ack.sequence >= own.first and address not in ack.refused:
                own.support[peer.name] = max(own.support.get(peer.name, 0), ack.sequence)

    def _gather(self, now: float, out: list[Output], *, lean: bool) -> None:
        """Push deadlines forward as far as the evidence goes; `lean`: the witness's too."""
        for address, own in self._holdings.items():
            deadline = self._evidence(address, own, now, lean) + self.timing.fence_s
            if deadline <= max(own.deadline, now):
                continue
            own.deadline = deadline
            out.append(SetDeadline(address, deadline))
            if own.stage is Stage.CANDIDATE:
                own.stage, own.since = Stage.OWNER, now
                self._not_before.pop(address, None)
                dark_s = None if own.dark_from is None else now - own.dark_from
                out.append(Owned(address, own.term, own.reason, dark_s))

    def _evidence(self, address: bytes, own: Holding, now: float, lean: bool) -> float:
        """When the newest beat was sent that enough nodes support; NEVER if there is none. The theory is on top."""
        promise = self._promises.get(address)
        if promise and now < promise.until:
            return NEVER  # this node's own vote belongs to another still
        ranked = sorted(own.support.values(), reverse=True)
        newest = self._sequence if self._sequence >= own.first else 0
        by_majority = NEVER
        if len(ranked) >= self._others_needed:
            by_majority = self._sent.get(ranked[self._others_needed - 1] if self._others_needed else newest, NEVER)
        if not lean or not self._may_lean(now):
            return by_majority
        supported = min((own.support.get(peer.name, 0) for peer in self._alive(now)), default=newest)
        return max(by_majority, min(self._sent.get(supported, NEVER), self._gateway_at))

    def _alive(self, now: float) -> list[Peer]:
        """Peers that are heard and can take part in deciding."""
        return [peer for peer in self.peers.values() if peer.counts(now, self.timing.silence_s)]

    def _is_majority(self, others: Collection[Peer]) -> bool:
        return len(others) >= self._others_needed

    def _reaches(self, now: float) -> bool:
        """Whether enough nodes acknowledge this node's beats for a claim to have a chance."""
        acknowledged = [
            peer for peer in self.peers.values() if now - self._sent.get(peer.acked, NEVER) < self.timing.fence_s
        ]
        if self._is_majority(acknowledged):
            return True
        gateway = self._may_lean(now) and now - self._gateway_at < self.timing.fence_s
        return gateway and all(peer in acknowledged for peer in self._alive(now))

    def _may_lean(self, now: float) -> bool:
        """Whether the gateway may stand in for a majority: not for who has only just come out of the dark and sees the
        gateway before it hears its peers."""
        return self.witness and now - self._gateway_since >= self.timing.takeover_s

    def _lapse(self, now: float, out: list[Output]) -> None:
        """Give up what the kernel has stopped answering for: others can then take it before their promises end."""
        for address, own in list(self._holdings.items()):
            if own.stage is not Stage.CANDIDATE and now >= own.deadline:
                self._drop(address, f"no majority acknowledged a beat for {self.timing.fence_s:g} s", out)

    def _review(self, now: float, out: list[Output]) -> None:
        """Give up or hand over what this node should not hold, and claims that nobody supports."""
        for address, own in list(self._holdings.items()):
            eligible = self._eligible[address]
            if self._draining or self.node not in eligible:
                reason = "this node leaves" if self._draining else "this node may no longer announce it"
                self._hand_over(address, own, reason, now, out)
            elif own.stage is Stage.YIELDING:
                own.stage = Stage.OWNER
            elif own.stage is Stage.CANDIDATE and now >= own.since + self.timing.fence_s:
                self._drop(address, "", out)
                place = sorted([self.node, *self.peers], key=lambda node: weight(address, node)).index(self.node)
                self._not_before[address] = now + (1 + place) * self.timing.takeover_s

    def _hand_over(self, address: bytes, own: Holding, reason: str, now: float, out: list[Output]) -> None:
        heirs = self._takers(now, Flag.LISTENING | Flag.DRAINING) & self._eligible[address] - {self.node}
        if own.stage is Stage.OWNER and heirs:
            own.stage = Stage.YIELDING
            own.yield_until = now + 2 * self.timing.takeover_s
            self._news = True
        elif own.stage is not Stage.YIELDING or not heirs or now >= own.yield_until:
            self._drop(address, f"{reason}, and no other takes it", out)

    def _drop(self, address: bytes, reason: str, out: list[Output]) -> None:
        own = self._holdings.pop(address)
        self._news = True
        if own.stage is not Stage.CANDIDATE:
            out.append(SetDeadline(address, 0.0))
            out.append(Lost(address, own.term, reason))

    def _takers(self, now: float, unfit: Flag) -> frozenset[str]:
        """Nodes that could take an address, as this one sees them."""
        names = {peer.name for peer in self._alive(now) if not peer.flags & unfit}
        return frozenset(names | ({self.node} if self._carrier and not self._draining else set()))

    def _claim(self, now: float) -> None:
        """Become a candidate for what is free, in the order of rank."""
        self._next_claim = float("inf")
        free = self._free_since = dict(self._free(now))
        start = self._started + self.timing.listen_s
        if now < start:
            self._next_claim = start
        if now < start or not self._carrier or self._draining or not self._reaches(now):
            self._able_since = None
            return
        self._able_since = self._able_since or now
        # Who still listens is counted in, or after a power failure the first node awake would take everything.
        takers = self._takers(now, Flag.DRAINING)
        orders = plan({address: self._eligible[address] & takers for address in free}, self._held(free))
        for address, order in orders.items():
            if self.node not in order or len(self._holdings) >= CLAIMS_MAX:
                continue
            turn = max(free[address], self._able_since) + order.index(self.node) * self.timing.takeover_s / 2
            turn = max(turn, self._not_before.get(address, NEVER))
            if now >= turn:
                self._candidate(address, now)
            else:
                self._next_claim = min(self._next_claim, turn)

    def _held(self, free: Collection[bytes]) -> dict[str, int]:
        """How many addresses each node holds. Claims to free ones do not count: they are what is being decided."""
        held = {
            peer.name: sum(claim.address not in free for claim in peer.beat.claims)
            for peer in self.peers.values()
            if peer.beat is not None
        }
        return held | {self.node: len(self._holdings)}

    def _free(self, now: float) -> Iterator[tuple[bytes, float]]:
        """Addresses that nobody holds, and since when."""
        for address in self._eligible:
            if address in self._holdings:
                continue
            promise = self._promises.get(address)
            if promise is None or promise.stage is Stage.YIELDING:
                yield address, self._free_since.get(address, now)
            elif now < promise.until:
                self._next_claim = min(self._next_claim, promise.until)
            elif not self._others_hear(promise, now):
                yield address, promise.until

    def _others_hear(self, promise: Promise, now: float) -> bool:
        """Whether a peer hears the holder that this node no longer does: one bad link must not move an address. Not
        believed for ever, as that holder may have given the address up unheard; then the others' promises decide."""
        if now >= promise.until + self.timing.listen_s:
            return False
        return any(peer.beat and promise.holder in peer.beat.heard for peer in self._alive(now))

    def _candidate(self, address: bytes, now: float) -> None:
        term = self._terms.get(address, 0) + 1
        self._terms[address] = term
        promise, dark_from, reason = self._promises.get(address), None, "nobody held it"
        if promise and promise.stage is Stage.YIELDING and now < promise.until:
            reason = f"{promise.holder} hands it over"
        elif promise:
            reason = f"{promise.holder} was silent for {now - promise.heard_at:.3f} s"
            dark_from = promise.heard_at
        self._holdings[address] = Holding(term, Stage.CANDIDATE, self._sequence + 1, now, reason, dark_from)
        self._news = True

    # ---- telling ----

    def _beat(self, now: float, out: list[Output]) -> None:
        self._news = False
        self._next_beat = now + self.timing.beat_s
        self._sequence += 1
        self._sent[self._sequence] = now
        while now - next(iter(self._sent.values())) > 2 * self.timing.fence_s:
            del self._sent[next(iter(self._sent))]
        alive = [peer.name for peer in self.peers.values() if now - peer.heard_at < self.timing.silence_s]
        claims = tuple(Claim(address, own.term, own.stage) for address, own in sorted(self._holdings.items()))
        beat = Beat(self.node, self._boot, self._sequence, self._flags(now), tuple(alive), claims)
        payload = encode(beat, self._key)
        known = [peer for peer in self.peers.values() if peer.mac and now - peer.heard_at < FORGOTTEN_S]
        out.extend(Send(peer.mac, payload) for peer in known)
        if len(known) < len(self.peers) and now >= self._next_call:
            self._next_call = now + CALL_S
            out.append(Send(BROADCAST, payload))
        if self._reaches(now):
            out.append(Alive(self.node, now + self.timing.alive_s))
        self._ask_gateway(now, out)

    def _flags(self, now: float) -> Flag:
        age = now - self._started
        flags = Flag.LISTENING if age < self.timing.listen_s else Flag(0)
        if age < 1.5 * self.timing.takeover_s:  # then a fence and two beats pass before the first claim
            flags |= Flag.MUTE
        if self._draining:
            flags |= Flag.DRAINING
        return flags | Flag.GATEWAY if self.gateway_seen else flags

    def _ask_gateway(self, now: float, out: list[Output]) -> None:
        prompt = [peer for peer in self._alive(now) if now - peer.heard_at < 1.5 * self.timing.beat_s]
        interval_s = GATEWAY_S if self._is_majority(prompt) else 0.0
        if self.witness and now - self._gateway_asked >= interval_s:
            self._gateway_missed += self._gateway_at != self._gateway_asked
            self._gateway_asked = now
            out.append(AskGateway())
