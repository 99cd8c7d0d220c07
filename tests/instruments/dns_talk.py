"""A DNS conversation through the proxy's Session, without sockets: pods ask, servers answer, in lines of a test.

Free properties, checked at every step:
* what is forwarded is the pod's message under another id, and its name is one that the rules allow, unless to that
  server everything passes;
* what the pod receives has its own id and its question as it was spelled;
* credits go to the asker's endpoint, for selectors that the name satisfies, and never expire before the minimum;
* a question that ended leaves nothing behind.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass

import dnslib

from netstack.core.address import pack, unpack
from netstack.dns.rules import parse
from netstack.dns.session import Client, Close, Command, Drop, Forward, Reply, Session, Transport
from netstack.dns.settings import DnsSettings
from netstack.kernel.layout import IDENTITY_WORLD

POD, OTHER_POD, SERVER = "10.244.1.5", "10.244.1.6", "10.96.0.10"


def rules_text(*endpoints: dict[str, object], generation: int = 1, lan: Sequence[str] = ()) -> str:
    return json.dumps({"generation": generation, "lan": list(lan), "endpoints": list(endpoints)})


def endpoint(
    number: int,
    address: str,
    names: dict[int, str] | None = None,
    queries: tuple[str, ...] = (),
    lan: tuple[int, ...] = (),
    search: tuple[str, ...] = (),
    passes: tuple[str, ...] | None = None,
) -> dict[str, object]:
    """An entry of the rules file: selector -> name or pattern. These and `queries` may be asked, of any server. `lan`:
    selectors that open private addresses too. `search`: the pod's search domains. `passes`: everything is, for only
    policies on trial have rules, and would let these names be asked."""
    texts = dict.fromkeys([*(names or {}).values(), *queries])
    return {
        "endpoint": number,
        "addresses": [address],
        "search": list(search),
        "names": [
            {"selector": selector, **_match(text), **({"lan": True} if selector in lan else {})}
            for selector, text in (names or {}).items()
        ],
        "queries": [{"to": 0, "port": 0, "names": [_match(text) for text in texts]}],
        **({} if passes is None else {"passes": [{"to": 0, "port": 0, "names": list(map(_match, passes))}]}),
    }


def _match(text: str) -> dict[str, str]:
    return {"matchPattern" if "*" in text else "matchName": text}


def question(name: str, kind: str = "A", ident: int = 0x1234, *, edns: bool = False) -> bytes:
    record = dnslib.DNSRecord(dnslib.DNSHeader(id=ident, rd=1), q=dnslib.DNSQuestion(name, getattr(dnslib.QTYPE, kind)))
    if edns:
        record.add_ar(dnslib.EDNS0(udp_len=1232))
    return bytes(record.pack())


def answer_to(asked: bytes, *zone_lines: str, rcode: int = 0) -> bytes:
    """An answer to the message `asked` with the records of `zone_lines` (master file form), question as spelled."""
    request = dnslib.DNSRecord.parse(asked)
    reply = request.reply(ra=1, aa=0)
    reply.header.rcode = rcode
    for line in zone_lines:
        reply.add_answer(*dnslib.RR.fromZone(line))
    packed = bytearray(reply.pack())
    end = asked.index(b"\0", 12) + 5
    packed[12:end] = asked[12:end]  # dnslib keeps case, but not everything that it was asked
    return bytes(packed)


@dataclass(frozen=True, slots=True)
class Asked:
    """A question that went to the server."""

    key: int
    sent: bytes
    client: Client
    original: bytes


class Talk:
    def __init__(self, *endpoints: dict[str, object], settings: DnsSettings | None = None) -> None:
        self.settings = settings or DnsSettings()
        self._ids = itertools.count(0x8000)
        self.identities: dict[str, int] = {}
        self.session = Session(
            self.settings, parse(rules_text(*endpoints)), lambda: next(self._ids) & 0xFFFF, self.identify
        )
        self.now = 1000.0
        self._asked: dict[int, Asked] = {}

    def identify(self, address: bytes) -> int:
        return self.identities.get(unpack(address), IDENTITY_WORLD)

    def say(self, payload: bytes, pod: str = POD, transport: Transport = Transport.UDP) -> Command:
        """The pod sends `payload`; the one command that follows."""
        client = Client(pack(pod), 40000, pack(SERVER), 53, transport)
        (command,) = self.session.query(client, payload, self.now)
        if isinstance(command, Forward):
            assert command.payload[2:] == payload[2:]
            found, place = self.session.rules.endpoints[client.address], (self.identify(client.server), 53)
            if found.trial(*place) is None:
                name = tuple(label.lower() for label in dnslib.DNSRecord.parse(payload).q.qname.label)
                assert found.may_ask(name, *place), f"{name} was forwarded against the rules"
            self._asked[command.key] = Asked(command.key, command.payload, client, payload)
        else:
            self._check_reply(command, payload)
        return command

    def ask(self, name: str, kind: str = "A", pod: str = POD, ident: int = 0x1234) -> Asked:
        """The pod asks for a name that it may ask for."""
        command = self.say(question(name, kind, ident), pod)
        assert isinstance(command, Forward), command
        return self._asked[command.key]

    def refused(self, name: str, kind: str = "A", pod: str = POD) -> Reply:
        """The pod asks for a name that it may not ask for."""
        command = self.say(question(name, kind), pod)
        assert isinstance(command, Reply), command
        return command

    def hear(self, asked: Asked, payload: bytes) -> Reply | Drop | None:
        """Something arrives at the socket of `asked`: the reply that follows, the drop, or nothing."""
        commands = self.session.answer(asked.key, payload, self.now)
        if not commands:
            return None
        if isinstance(commands[0], Drop):
            assert len(commands) == 1
            return commands[0]
        close, reply = commands
        assert isinstance(close, Close) and close.key == asked.key
        assert self.session.answer(asked.key, payload, self.now) == []
        self._check_reply(reply, asked.original)
        assert isinstance(reply, Reply)
        return reply

    def answered(self, asked: Asked, *zone_lines: str) -> Reply:
        """The server answers with records in master file form."""
        reply = self.hear(asked, answer_to(asked.sent, *zone_lines))
        assert isinstance(reply, Reply), reply
        return reply

    def _check_reply(self, command: Command, original: bytes) -> None:
        if not isinstance(command, Reply):
            assert isinstance(command, Drop)
            return
        end = original.index(b"\0", 12) + 5
        for payload in filter(None, (command.payload, command.otherwise())):
            assert payload[:2] == original[:2]
            assert payload[12:end] == original[12:end]
            assert payload[2] & 0x80
        for credit in command.credits:
            found = self.session.rules.endpoints[command.client.address]
            assert credit.endpoint == found.id
            assert credit.selectors <= found.selectors(credit.name)
            assert credit.until_s >= self.now + self.settings.min_ttl_s
            assert credit.addresses and command.otherwise()
