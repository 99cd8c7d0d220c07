"""Lan: announcers on a fake wire and a fake clock.

    lan = Lan(3, addresses=["192.168.86.18"])
    lan.settle()
    owner = lan.owner("192.168.86.18")
    lan.power_cut(owner)
    lan.settle()
    assert lan.longest_dark("192.168.86.18") < 0.42

The elections are the product's; wire, kernel and clock are played: frames are delayed, lost, cut off one way; processes
stall, die and start again; every node's clock has an offset and a rate of its own. Everything random comes from `seed`.

The free property, checked whenever any node is told to answer: **no other node still answers for that address**. Within
the assumptions of netstack.announcer.elect nothing that a test does may ever break it. `settle` checks liveness: then
every address that some node can hold has exactly one owner.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from netstack.announcer.elect import Election
from netstack.announcer.events import Alive, AskGateway, Lost, Output, Owned, Send, SetDeadline
from netstack.announcer.frames import BROADCAST
from netstack.announcer.settings import Timing
from netstack.core.address import pack, unpack

KEY = b"the key of the fake LAN"
INBOX = 256
"""Frames that a stalled process's socket holds; later ones are lost."""


class TwoOwners(AssertionError):
    """The free property is broken."""


@dataclass
class Node:
    """One board: its kernel outlives the process of its announcer."""

    name: str
    mac: bytes
    offset: float
    rate: float
    election: Election | None = None
    powered: bool = True
    stalled: bool = False
    inbox: list[Callable[[Election, float], list[Output]]] = field(default_factory=list)
    kernel: dict[bytes, float] = field(default_factory=dict)
    """Address -> deadline by this node's clock."""
    alive: dict[str, float] = field(default_factory=dict)
    timer: int = 0
    lag_s: float = 0.0
    """For how long the process is stopped in the middle of its next turn, before anything of it leaves."""

    def clock(self, time: float) -> float:
        return self.offset + self.rate * time

    def answers(self, address: bytes, time: float) -> bool:
        return self.powered and self.clock(time) < self.kernel.get(address, 0.0)


class Lan:
    """A LAN of `count` nodes n1, n2, ... that all want `addresses`."""

    def __init__(
        self, count: int, addresses: Iterable[str] = ("192.168.86.18",), *, seed: int = 0, witness: bool = True,
        timing: Timing | None = None, loss: float = 0.0, drift: float = 0.02, start: bool = True,
    ) -> None:  # fmt: skip
        self.seed = seed
        self.random = random.Random(seed)
        self.time = 0.0
        self.timing = timing or Timing()
        self.witness = witness
        self.loss = loss
        self.addresses = [pack(text) for text in addresses]
        names = [f"n{index + 1}" for index in range(count)]
        self.nodes = {
            name: Node(
                name, bytes([2, 0, 0, 0, 0, index]), self.random.uniform(1, 1e5), self.random.uniform(1, 1 + drift)
            )
            for index, name in enumerate(names)
        }
        self.eligible: dict[bytes, frozenset[str]] = {address: frozenset(names) for address in self.addresses}
        self.cut_links: set[tuple[str, str]] = set()
        self.torn = False
        """Set by a test that leaves the assumptions on purpose: two owners are then no failure."""
        self.history: list[tuple[float, str, Owned | Lost]] = []
        self.frames = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._dark_since = dict.fromkeys(self.addresses, 0.0)
        self._darkness: dict[bytes, list[tuple[float, float]]] = {address: [] for address in self.addresses}
        for name in names if start else ():
            self.start(name)

    # ---- faults ----

    def start(self, name: str) -> None:
        """Power on if off, and start a new announcer process, which first clears what its kernel answers."""
        node = self.nodes[name]
        node.powered, node.stalled, node.inbox = True, False, []
        node.kernel = {}
        node.election = Election(
            name, [peer for peer in self.nodes if peer != name], KEY, self.random.getrandbits(64) | 1, self.timing,
            witness=self.witness, now=node.clock(self.time),
        )  # fmt: skip
        self._call(node, lambda election, now: election.want(self.eligible, now))

    def kill(self, name: str) -> None:
        """kill -9 of the process; the kernel answers on until its deadlines."""
        self.nodes[name].election = None

    def power_cut(self, name: str) -> None:
        node = self.nodes[name]
        self._note_dark()
        node.election, node.powered, node.kernel = None, False, {}
        self._note_dark()

    def stall(self, name: str) -> None:
        """SIGSTOP: frames queue up, timers do not run."""
        self.nodes[name].stalled = True

    def resume(self, name: str) -> None:
        """SIGCONT: what has arrived is read before the clock is looked at."""
        node = self.nodes[name]
        node.stalled = False
        inbox, node.inbox = node.inbox, []
        for work in inbox:
            self._call(node, work)
        self._call(node, Election.tick)

    def lag(self, name: str, seconds: float) -> None:
        """The process is stopped once between what it decides and what it sends."""
        self.nodes[name].lag_s = seconds

    def leave(self, name: str) -> None:
        """SIGTERM."""
        self._call(self.nodes[name], Election.leave)

    def carrier(self, name: str, up: bool) -> None:
        """The node's own link; the node notices."""
        others = [*self.nodes, "gateway"]
        (self.heal if up else self.cut)(*((a, b) for other in others for a, b in ((name, other), (other, name))))
        self._call(self.nodes[name], lambda election, now: election.carrier(up, now))

    def want(self, eligible: Mapping[str, Iterable[str]]) -> None:
        """New objects on every node: addresses and the nodes that may hold them."""
        self.eligible = {pack(text): frozenset(names) for text, names in eligible.items()}
        for node in self.nodes.values():
            self._call(node, lambda election, now: election.want(self.eligible, now))

    def cut(self, *links: tuple[str, str]) -> None:
        """Lose every frame from a to b, for each (a, b); "gateway" is a node too."""
        self.cut_links |= set(links)

    def heal(self, *links: tuple[str, str]) -> None:
        """Mend links; without arguments all."""
        self.cut_links = self.cut_links - set(links) if links else set()

    def partition(self, *groups: Iterable[str]) -> None:
        """Only nodes of one group hear each other."""
        side = {name: index for index, group in enumerate(groups) for name in group}
        names = [*self.nodes, "gateway"]
        self.cut(*((a, b) for a in names for b in names if side.get(a) != side.get(b)))

    # ---- time ----

    def run(self, seconds: float) -> None:
        end = self.time + seconds
        while self._events and self._events[0][0] <= end:
            self.time, _, action = heapq.heappop(self._events)
            self._note_dark()
            action()
            self._note_dark()
        self.time = end
        self._note_dark()

    def settle(self, seconds: float = 6.0) -> None:
        """Quiet: after `seconds` each address that a running node may hold has exactly one owner, in agreement."""
        self.run(seconds)
        for address, names in self.eligible.items():
            able = [name for name in names if (node := self.nodes[name]).election and node.powered and not node.stalled]
            owners = self.owners(address)
            assert len(owners) == (1 if able else 0), (
                f"seed {self.seed}, {self.time:.3f} s: {unpack(address)} is answered by {owners or 'nobody'}, "
                f"could be by {able}; {self.story()}"
            )

    def owners(self, address: bytes | str) -> list[str]:
        packed = pack(address) if isinstance(address, str) else address
        return [node.name for node in self.nodes.values() if node.answers(packed, self.time)]

    def owner(self, address: str) -> str:
        (name,) = self.owners(address)
        return name

    def forget_darkness(self) -> None:
        self._darkness = {address: [] for address in self._darkness}

    def longest_dark(self, address: str) -> float:
        """Longest time, seconds, that nobody answered since `forget_darkness`; a running one counts."""
        packed = pack(address)
        spans = [end - start for start, end in self._darkness[packed]]
        if (since := self._dark_since.get(packed)) is not None:
            spans.append(self.time - since)
        return max(spans, default=0.0)

    def story(self) -> str:
        return "; ".join(
            f"{time:.3f} {name} {type(event).__name__} {event.reason}" for time, name, event in self.history
        )

    # ---- machinery ----

    def _at(self, delay: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.time + delay, next(self._order), action))

    def _call(self, node: Node, work: Callable[[Election, float], list[Output]]) -> None:
        if node.election is None or not node.powered:
            return
        if node.stalled:
            if len(node.inbox) < INBOX:
                node.inbox.append(work)
            return
        election, outputs = node.election, work(node.election, node.clock(self.time))
        if node.lag_s and outputs:
            pause, node.lag_s, node.stalled = node.lag_s, 0.0, True
            self._at(pause, lambda: self._late(node, election, outputs))
            return
        self._all_out(node, election, outputs)

    def _late(self, node: Node, election: Election, outputs: list[Output]) -> None:
        if node.election is election and node.powered:
            self._all_out(node, election, outputs)
            self.resume(node.name)

    def _all_out(self, node: Node, election: Election, outputs: list[Output]) -> None:
        for output in outputs:
            self._carry_out(node, output)
        if outputs:
            election.carried_out(node.clock(self.time))
        self._arm(node, election)

    def _arm(self, node: Node, election: Election) -> None:
        """One timer a node, up to 2 ms late as schedulers are."""
        node.timer += 1
        armed = node.timer

        def ring() -> None:
            if node.timer == armed and node.election is election and not node.stalled:
                self._call(node, Election.tick)

        delay = max(0.0, (election.wakeup - node.clock(self.time)) / node.rate)
        self._at(delay + self.random.uniform(0, 0.002), ring)

    def _carry_out(self, node: Node, output: Output) -> None:
        match output:
            case Send():
                for peer in self.nodes.values():
                    if peer is not node and output.destination in (peer.mac, BROADCAST):
                        self._transmit(node, peer, output.payload)
            case SetDeadline():
                self._set_deadline(node, output)
            case AskGateway():
                if not {(node.name, "gateway"), ("gateway", node.name)} & self.cut_links and not self._lost():
                    self._at(0.001, lambda: self._call(node, Election.gateway_answered))
            case Alive():
                node.alive[output.node] = output.until
            case Owned() | Lost():
                self.history.append((self.time, node.name, output))

    def _transmit(self, sender: Node, receiver: Node, payload: bytes) -> None:
        self.frames += 1
        if (sender.name, receiver.name) not in self.cut_links and not self._lost():
            delay = self.random.uniform(0.00005, 0.001)
            self._at(delay, lambda: self._call(receiver, lambda e, now: e.receive(sender.mac, payload, now)))

    def _lost(self) -> bool:
        return self.loss > 0 and self.random.random() < self.loss

    def _set_deadline(self, node: Node, output: SetDeadline) -> None:
        node.kernel[output.address] = output.deadline
        if not node.answers(output.address, self.time):
            return
        others = [name for name in self.owners(output.address) if name != node.name]
        if others and not self.torn:
            raise TwoOwners(
                f"seed {self.seed}, {self.time:.3f} s: {node.name} is told to answer for {unpack(output.address)} "
                f"while {others} still answers; {self.story()}"
            )

    def _note_dark(self) -> None:
        """Keep the spans without an answer. Called around every event; deadlines that pass in between are dated
        back."""
        for address, spans in self._darkness.items():
            answered = bool(self.owners(address))
            since = self._dark_since.get(address)
            if answered and since is not None:
                spans.append((since, self.time))
                del self._dark_since[address]
            elif not answered and since is None:
                self._dark_since[address] = min(self.time, self._last_answer(address))

    def _last_answer(self, address: bytes) -> float:
        passed = [(node.kernel.get(address, 0.0) - node.offset) / node.rate for node in self.nodes.values()]
        return max((time for time in passed if time > 0), default=self.time)
