"""A set of programs takes another's place under traffic, while the loader is killed before each change of a hook.

No packet of what policies allow is lost, not one: each hook changes in one step, and what is attached works without a
loader. What they deny never arrives. Between two such changes the loader only pins, which no packet sees
(test_loader.py kills it there, too).
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from bpf.test_loader import DIFFERING, NOTHING, OF_HOOKS, killed_before, prefixed, release
from bpf.test_wire import CLIENT, DATAGRAM, SERVICE, Lan, Pod, opened, two_nodes, wait_until
from instruments.watch import Watch, sending
from netstack.core.verdict import Verdict
from netstack.kernel import layout as l
from netstack.kernel import loader
from netstack.kernel.attach import POD, UPLINK
from netstack.kernel.programs import Compiled

pytestmark = pytest.mark.root

PORT, DENIED, SERVED = 7100, 7101, 8081
PAUSE_S = 0.004
BY_A_SOCKET, FROM_A_POD, DENIAL = b"by-a-socket", b"from-a-pod", b"this-is-denied"
FROM_NEAR = {b"to-a-pod": "far", b"to-a-service": "far", b"to-the-world": "client"}
"""Marks of what the near pod may send, and where that arrives."""

CONNECTING = """
import select, socket, sys
address, port, pause_s, mark = sys.argv[1:]
sent = 0
while not select.select([sys.stdin], [], [], float(pause_s))[0]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect((address, int(port)))
        sent += one.send(mark.encode()) > 0
print(sent)
"""
"""Each datagram by a socket of its own."""


@pytest.fixture
def lan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lan]:
    """The near pod may send to the far one, to the neighbor and to the LAN at PORT, and hear the far one there; the
    neighbor hears nobody."""
    with two_nodes(tmp_path_factory.mktemp) as lan, ExitStack() as stack:
        node = lan.nodes[0]
        node.enforce(lan.near, l.ENFORCE_EGRESS | l.ENFORCE_INGRESS)
        node.enforce(lan.neighbour, l.ENFORCE_INGRESS)
        for peer in (lan.far.identity, lan.neighbour.identity, l.IDENTITY_WORLD):
            node.rule(lan.near, l.ACTION_ALLOW, peer, PORT, l.DIRECTION_EGRESS, 17)
        node.rule(lan.near, l.ACTION_ALLOW, lan.far.identity, SERVED, l.DIRECTION_EGRESS, 17)
        node.rule(lan.near, l.ACTION_ALLOW, lan.far.identity, PORT, l.DIRECTION_INGRESS, 17)
        for pod, port in (
            (lan.far, PORT),
            (lan.far, SERVED),
            (lan.near, PORT),
        ):  # else a port is said to be unreachable
            stack.enter_context(opened(pod.namespace, DATAGRAM, bind=(pod.address, port)))
        stack.enter_context(opened(lan.client, DATAGRAM, bind=(CLIENT, PORT)))
        yield lan


class Eyes:
    """Counts what comes in, by where and by its mark."""

    def __init__(self, lan: Lan, stack: ExitStack) -> None:
        places = {"near": lan.near.namespace, "neighbor": lan.neighbour.namespace, "far": lan.far.namespace}
        self._watches = {name: Watch(netns.path) for name, netns in (places | {"client": lan.client}).items()}
        for watch in self._watches.values():
            stack.callback(watch.close)
        self._counts: Counter[tuple[str, bytes]] = Counter()

    def seen(self) -> dict[tuple[str, bytes], int]:
        """Since the beginning."""
        for name, watch in self._watches.items():
            frames = watch.seen()
            for mark in (*FROM_NEAR, BY_A_SOCKET, FROM_A_POD, DENIAL):
                self._counts[name, mark] += sum(mark in data for data in frames)
        return {key: count for key, count in self._counts.items() if count}


def frame(pod: Pod, to: str, port: int, mark: bytes, source: str = "") -> bytes:
    """Of the pod, as it leaves it."""
    packet = IP(src=source or pod.address, dst=to) / UDP(sport=4000, dport=port) / Raw(mark)
    return bytes(Ether(src=pod.mac.hex(":"), dst=pod.host_mac.hex(":")) / packet)


@contextmanager
def connecting(lan: Lan) -> Iterator[Callable[[], int]]:
    """A program in the near pod that asks a service all the time, so that the hooks of its node's sockets translate it;
    the result ends it, and says how often it has asked."""
    into = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
    enter = ["sh", "-c", into, lan.nodes[0].home.settings.cgroup, "nsenter", f"--net={lan.near.namespace.path}"]
    argv = [*enter, sys.executable, "-c", CONNECTING, SERVICE, "80", str(PAUSE_S), BY_A_SOCKET.decode()]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield lambda: int(process.communicate()[0])


@contextmanager
def traffic(lan: Lan, eyes: Eyes) -> Iterator[None]:
    """What is allowed and what is denied, every few milliseconds: the one arrives, all of it, once; the other never."""
    near, far, node = lan.near, lan.far, lan.nodes[0]
    allowed = [
        frame(near, far.address, PORT, b"to-a-pod"),
        frame(near, SERVICE, 80, b"to-a-service"),
        frame(near, CLIENT, PORT, b"to-the-world"),
    ]
    denied = [
        frame(near, far.address, DENIED, DENIAL),
        frame(near, CLIENT, DENIED, DENIAL),
        frame(near, lan.neighbour.address, PORT, DENIAL),
        frame(near, far.address, PORT, DENIAL, source=lan.neighbour.address),
    ]
    back = [frame(far, near.address, PORT, FROM_A_POD), frame(far, near.address, DENIED, DENIAL)]
    translated = node.count(Verdict.TRANSLATED)
    with (
        sending(near.namespace.path, allowed + denied, PAUSE_S) as there,
        sending(far.namespace.path, back, PAUSE_S) as here,
        connecting(lan) as asked,
    ):
        wait_until(lambda: len(eyes.seen()) >= len(FROM_NEAR) + 2)
        yield
        asking = asked()
    sent = {(where, mark): there() for mark, where in FROM_NEAR.items()}
    sent |= {("near", FROM_A_POD): here(), ("far", BY_A_SOCKET): asking}
    with suppress(AssertionError):
        wait_until(lambda: eyes.seen() == sent, 3)
    seen = eyes.seen()
    assert [where for where, mark in seen if mark == DENIAL] == []
    assert seen == sent
    assert node.count(Verdict.TRANSLATED) - translated == asking, "each socket's, by its hook"


def test_a_swap_whose_loader_is_killed_loses_no_packet_and_lets_none_through(lan: Lan, tmp_path: Path) -> None:
    home = lan.nodes[0].home

    def other(compiled: Compiled) -> None:
        for name in DIFFERING:
            prefixed(compiled, name, NOTHING)

    first = home.settings
    release(home, tmp_path, other)
    second = home.settings
    with ExitStack() as stack:
        eyes = Eyes(lan, stack)
        with traffic(lan, eyes):
            for number, home.settings in enumerate(itertools.cycle((second, first)), 1):
                killed = killed_before(number, home, loader.load, OF_HOOKS)
                eyes.seen()
                home.load()
                eyes.seen()
                if not killed:
                    break
    assert number == 1 + len(UPLINK) + 2 * len(POD) + 1, "one hook of sockets, the uplink's, those of two pods"
