"""The question check in the kernel, a prototype (tests/instruments/question.c): what it says, the proxy says too."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Iterator

import pytest

from instruments.depth import examples
from instruments.question import NAME_BYTES, POD, PROGRAMS, SERVER, Question, Said
from netstack.core.address import pack
from netstack.dns.message import MAX_QUERY, Malformed, Type, read_query
from netstack.dns.names import Match, Matcher, Name, Rule
from netstack.dns.rules import Endpoint, Rules
from netstack.dns.session import Client, Reason, Reply, Session, Transport
from netstack.dns.settings import DnsSettings
from netstack.kernel.layout import IDENTITY_WORLD

pytestmark = pytest.mark.root

VERIFIED = 216  # offset of verified_insns in struct bpf_prog_info
MOST_VERIFIED = 200_000
"""Instructions that the verifier looks at; the real programs may take 500,000 with all that they do."""


@pytest.fixture(scope="module")
def kernel() -> Iterator[Question]:
    with Question() as made:
        yield made


def rule(text: str) -> Rule:
    return Rule(1, Match.PATTERN if "*" in text else Match.NAME, text)


def asked(name: Name, type_: int = Type.A, *, cls: int = 1, flags: int = 0x0100, extra: bytes | None = None) -> bytes:
    """A message that asks for `name`, whatever bytes it has; `extra` is the data of an EDNS record."""
    head = struct.pack("!6H", 0x1234, flags, 1, 0, 0, extra is not None)
    wire = b"".join(bytes([len(label)]) + label for label in name) + b"\0" + struct.pack("!HH", type_, cls)
    return head + wire + (b"" if extra is None else b"\0" + struct.pack("!HHIH", 41, 1232, 0, len(extra)) + extra)


def name(text: str) -> Name:
    return tuple(text.encode().split(b".")) if text else ()


def refusal(payload: bytes, rules: tuple[Rule, ...]) -> bytes | None:
    """What the proxy answers by itself because of the name; None if it does anything else."""
    endpoint = Endpoint(1, Matcher(rules), {(0, 0): Matcher(rules)}, rules)
    session = Session(DnsSettings(), Rules(1, {pack(POD): endpoint}), lambda: 0, lambda _: IDENTITY_WORLD)
    (command,) = session.query(Client(pack(POD), 40000, pack(SERVER), 53, Transport.UDP), payload, 0.0)
    return command.payload if isinstance(command, Reply) and command.reason is Reason.NAME_NOT_ALLOWED else None


def check(kernel: Question, payload: bytes, rules: tuple[Rule, ...]) -> Said:
    """What the kernel says. What it allows the proxy forwards; what it refuses the proxy refuses alike, to the byte."""
    said = kernel.judge(payload)
    assert kernel.refuse(payload) == (refusal(payload, rules) if said is Said.REFUSED else None)
    if said is Said.ALLOWED:
        query = read_query(payload)
        assert query.is_lookup and Matcher(rules)(query.name)
    return said


RULES = ("api.x.io", "*.y.io", "**.z.io", "ci*.w.io", "a.b.y.io", "**.c.y.io", "v.io")


@pytest.mark.parametrize(
    ("said", "names"),
    [
        (Said.ALLOWED, "api.x.io API.X.io a.y.io b.y.io c.y.io a.c.y.io a.z.io a.b.z.io a.b.y.io v.io"),
        (Said.REFUSED, "x.io a.api.x.io xapi.x.io y.io a.d.y.io z.io io w.io a.v.io evil.org"),
        (Said.PROXY, "ci.w.io ci1.w.io no.w.io a.ci.w.io"),
    ],
)
def test_names_of_every_kind_of_rule(kernel: Question, said: Said, names: str) -> None:
    rules = tuple(map(rule, RULES))
    kernel.rules(*rules)
    assert {text: check(kernel, asked(name(text)), rules) for text in names.split()} == dict.fromkeys(
        names.split(), said
    )


def test_whoever_has_no_rules_is_the_proxys(kernel: Question) -> None:
    kernel.maps["scopes"].delete(pack(POD))
    assert kernel.judge(asked(name("x.io"))) is Said.PROXY
    kernel.rules()
    assert check(kernel, asked(name("x.io")), ()) is Said.REFUSED


def test_a_byte_of_a_label_is_never_taken_for_a_length(kernel: Question) -> None:
    for length in (ord("-"), ord("0")):  # as a byte it may begin a label, as a length it begins the one of the rule
        rules = (rule("b" * length + ".io"), rule("*." + "b" * length + ".io"))
        kernel.rules(*rules)
        assert check(kernel, asked((b"b" * length, b"io")), rules) is Said.ALLOWED
        assert check(kernel, asked((bytes([length]) + b"b" * length, b"io")), rules) is Said.REFUSED
    kernel.rules(rule("x.io"))
    assert check(kernel, asked((b"x.io",)), (rule("x.io"),)) is Said.PROXY


ODD = {
    "an answer": asked(name("x.io"), flags=0x8100),
    "a status request": asked(name("x.io"), flags=0x1000),
    "another class": asked(name("x.io"), cls=3),
    "a zone": asked(name("x.io"), 252),
    "a byte behind": asked(name("x.io")) + b"\0",
    "a byte short": asked(name("x.io"))[:-1],
    "EDNS with a byte behind": asked(name("x.io"), extra=b"") + b"\0",
    "longer than any question": asked(name("x.io"), extra=bytes(MAX_QUERY)),
    "EDNS cut": asked(name("x.io"), extra=b"abcd")[:-1],
    "two questions": asked(name("x.io"))[:5] + b"\2" + asked(name("x.io"))[6:],
    "an answer section": asked(name("x.io"))[:7] + b"\1" + asked(name("x.io"))[8:],
    "a pointer": asked(())[:12] + b"\xc0\x0c" + asked(())[13:],
    "a label of 64": asked(())[:12] + b"\x40" + b"a" * 64 + asked(())[12:],
    "a space": asked((b"a b", b"io")),
    "a name too long for the table": asked((b"a" * 63,) * 3 + (b"a" * 61,)),
    "nothing": b"",
    "half a header": asked(())[:6],
}


@pytest.mark.parametrize("payload", ODD.values(), ids=ODD)
def test_what_is_odd_is_the_proxys(kernel: Question, payload: bytes) -> None:
    kernel.rules(rule("*"))
    assert check(kernel, payload, (rule("*"),)) is Said.PROXY


def test_the_longest_name_that_the_table_takes(kernel: Question) -> None:
    labels = (b"a" * 63,) * 3 + (b"a" * 59,)
    assert sum(len(label) + 1 for label in labels) == NAME_BYTES
    rules = (rule(b".".join(labels).decode()),)
    kernel.rules(*rules)
    assert check(kernel, asked(labels), rules) is Said.ALLOWED
    assert check(kernel, asked((b"a",) * (NAME_BYTES // 2)), rules) is Said.REFUSED


class Draw:
    """Random rules and questions, the same of the same seed. A small alphabet makes matches likely."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def label(self, letters: str) -> str:
        return "".join(self.random.choices(letters, k=self.random.randint(1, 3)))

    def rule(self) -> Rule:
        first = self.random.choice(["", "", "*", "**", "*", "**", self.label("ab*")])
        others = [self.label("ab-") for _ in range(self.random.randint(not first, 3))]
        if others and not self.random.randrange(8):
            others[self.random.randrange(len(others))] = self.label("ab*")
        return rule(".".join(filter(None, [first, *others])))

    def rules(self) -> tuple[Rule, ...]:
        return tuple(self.rule() for _ in range(self.random.randint(0, 6)))

    def name(self, letters: str = "abAB-") -> Name:
        return tuple(self.label(letters).encode() for _ in range(self.random.randint(0, 5)))


SEEDS = range(examples(40))


@pytest.mark.parametrize("seed", SEEDS)
def test_it_never_contradicts_the_proxy(kernel: Question, seed: int) -> None:
    draw = Draw(seed)
    rules = draw.rules()
    kernel.rules(*rules)
    decided = all(re.fullmatch(r"(\*{1,2}(\.|$))?[^*]*", one.text) for one in rules)
    for _ in range(20):
        payload = asked(draw.name(), extra=draw.random.choice([None, b"", b"abcd"]))
        assert check(kernel, payload, rules) is not Said.PROXY or not decided


@pytest.mark.parametrize("seed", SEEDS)
def test_it_never_contradicts_the_proxy_on_broken_messages(kernel: Question, seed: int) -> None:
    draw = Draw(seed)
    rules = (*draw.rules(), rule("*"))[: draw.random.randint(1, 7)]
    kernel.rules(*rules)
    for _ in range(20):
        payload = bytearray(asked(draw.name("ab.\x01-"), extra=draw.random.choice([None, b"abcd"])))
        at = draw.random.randrange(len(payload))
        payload[at : at + draw.random.randint(0, 2)] = draw.random.randbytes(draw.random.randint(0, 2))
        said = check(kernel, bytes(payload), rules)
        try:
            read_query(bytes(payload))
        except Malformed:
            assert said is Said.PROXY


def test_the_verifier_takes_it_with_much_room(kernel: Question) -> None:
    looked_at = {
        program: struct.unpack_from("=I", kernel.programs[program].info(VERIFIED + 4), VERIFIED)[0]
        for program in PROGRAMS
    }
    assert all(0 < count < MOST_VERIFIED for count in looked_at.values()), looked_at
