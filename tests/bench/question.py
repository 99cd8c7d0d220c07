"""What judging a name in the kernel would cost, beside the DNS proxy's cost for the same, in one run.

The program is a prototype (instruments/question.c) and no node runs it: docs/architecture.md says why.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.dns import NAMES, OURS, ZONE, Site
from bench.events import busy_s
from bench.figures import Area, Figure, Measured, Settings
from instruments.dns_talk import question
from instruments.question import POD, SERVER, Question
from netstack.core.address import pack
from netstack.dns.names import Match, Matcher, Rule
from netstack.dns.rules import Endpoint, Rules
from netstack.dns.session import Client, Command, Forward, Session, Transport
from netstack.dns.settings import DnsSettings
from netstack.kernel.layout import IDENTITY_WORLD

REPEAT = 1000
"""Runs of a program on one packet, so that the clock costs nothing."""
REFUSED_ZONE = "refused.test"

FIGURES = (
    Figure(
        "dns.question.session_us",
        "us",
        f"the proxy judges a question (Session.query), of {NAMES} names that the pod may ask",
    ),
    Figure(
        "dns.question.kernel_ns", "ns", "a tc program judges it: what that adds to a packet", "dns.question.session_us"
    ),
    Figure("dns.refusal.cpu_us", "us", "processor time of netstack-dns for a question that is refused"),
    Figure(
        "dns.refusal.kernel_ns", "ns", "a tc program judges and answers it, each packet alone", "dns.refusal.cpu_us"
    ),
)

RULES = tuple(Rule(1, Match.NAME, f"n{number}.{ZONE}") for number in range(NAMES))
ALLOWED, REFUSED = ([question(f"n{number}.{zone}") for number in range(NAMES)] for zone in (ZONE, REFUSED_ZONE))


def measure(wanted: frozenset[str], settings: Settings) -> Iterator[Measured]:
    with Question() as kernel:
        kernel.rules(*RULES)
        if any(name.startswith("dns.question.") for name in wanted):
            pairs = [(_session_us(), _judged_ns(kernel)) for _ in range(settings.repeats)]
            yield from _pair("dns.question.session_us", "dns.question.kernel_ns", pairs)
        if any(name.startswith("dns.refusal.") for name in wanted):
            with tempfile.TemporaryDirectory(prefix="netstack-bench-") as text, Site(Path(text)) as site:
                pairs = [(_refused_us(site, settings), _refused_ns(kernel)) for _ in range(settings.repeats)]
            yield from _pair("dns.refusal.cpu_us", "dns.refusal.kernel_ns", pairs)


def _pair(of_proxy: str, of_kernel: str, pairs: Sequence[tuple[float, float]]) -> Iterator[Measured]:
    """Samples in the units of both, a pair for each round."""
    yield Measured(of_proxy, [us for us, _ in pairs])
    yield Measured(of_kernel, [ns for _, ns in pairs], [1000 * us for us, _ in pairs])


def _session_us() -> float:
    """Each name a few times, as programs ask: what the proxy keeps of questions helps it."""
    endpoint = Endpoint(1, Matcher(RULES), {(0, 0): Matcher(RULES)}, RULES)
    session = Session(DnsSettings(), Rules(1, {pack(POD): endpoint}), lambda: 1, lambda _: IDENTITY_WORLD)
    client = Client(pack(POD), 40000, pack(SERVER), 53, Transport.UDP)
    spent = 0.0
    for _ in range(10):
        for at in range(0, NAMES, 50):  # as many as one pod may have under way
            began = time.thread_time()
            commands: list[Command] = [session.query(client, payload, 0.0)[0] for payload in ALLOWED[at : at + 50]]
            spent += time.thread_time() - began
            for command in commands:
                assert isinstance(command, Forward)
                session.unreachable(command.key)
    return 1e6 * spent / (10 * NAMES)


def _judged_ns(kernel: Question) -> float:
    spent = [kernel.ns("judge", one, REPEAT) - kernel.ns("headers", one, REPEAT) for one in ALLOWED[::5]]
    return statistics.fmean(spent)


def _refused_us(site: Site, settings: Settings) -> float:
    before = busy_s(site.proxy)
    answered, _ = site.flood(OURS, settings.seconds * 3, REFUSED_ZONE)
    return 1e6 * (busy_s(site.proxy) - before) / answered


def _refused_ns(kernel: Question) -> float:
    """The answer takes the question's place, so each run is the first of its packet, with what that costs."""
    runs = [(kernel.ns("refuse", one, 1), kernel.ns("headers", one, 1)) for one in REFUSED]
    return statistics.median(answered for answered, _ in runs) - statistics.median(read for _, read in runs)


AREA = Area(FIGURES, measure)
