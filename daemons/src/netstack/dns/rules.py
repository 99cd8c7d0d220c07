"""Which pod may ask whom for which names, and what a name opens: the file that the agent compiles.

    {"generation": 7,
     "lan": ["192.168.86.0/24", "2001:db8:86::/64"],
     "endpoints": [{"endpoint": 12, "addresses": ["10.244.1.5"], "search": ["cluster.local"],
                    "names":   [{"selector": 3, "matchName": "api.anthropic.com"},
                                {"selector": 4, "matchPattern": "*.x.io", "lan": true}],
                    "alike": [[3, 8, 11]], "tried": [4],
                    "queries": [{"to": 1073741911, "port": 53,
                                 "names": [{"matchName": "api.anthropic.com"}, {"matchPattern": "*.local"}]}],
                    "passes": [{"to": 1073741911, "port": 53, "names": [{"matchName": "api.anthropic.com"}]}]}]}

`queries` may be asked of servers with the identity `to` (as the kernel's table `identities` has it) at that port; 0 is
any. The addresses of `names` are credited to the selector; those of private networks, and of the networks around the
node (the file's `lan`: with a provider's IPv6 prefix they are not private), only with the rule's `lan`. Of selectors
that are `alike` each opens what the others open. Those that are `tried` are of policies on trial alone: no answer is
held back, and no other selector kept out, on their account. `passes`: servers of `queries` to which everything passes,
for only policies on trial bring it here; with what these would let be asked. What stands before a domain of `search` in
a question may be meant as well, and counts as if it had been asked for. A pod without an entry may ask nothing. An
entry of names or queries that has any other field is refused, because what it is not understood to restrict it must not
allow; unknown fields elsewhere are left to newer versions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from netstack.core.address import Prefix, pack
from netstack.core.errors import BadConfig
from netstack.dns.names import Match, Matcher, Name, Rule

ANY = 0
"""In `to` and `port`: whichever."""
_ASKED = 1
"""Under which the names of a query match; the number means nothing."""

Server = tuple[int, int]
"""Identity and port."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What one pod may ask. Its id is never used again on this node; its address may be."""

    id: int
    matcher: Matcher
    queries: Mapping[Server, Matcher]
    rules: tuple[Rule, ...]
    lan: frozenset[int] = frozenset()
    """Selectors that open addresses of private networks too."""
    search: tuple[Name, ...] = ()
    """Domains that the pod's resolver puts behind the name that a program asks it for."""
    alike: frozenset[frozenset[int]] = frozenset()
    """Selectors that open the same ports."""
    tried: frozenset[int] = frozenset()
    """Selectors of policies on trial alone: they open nothing yet."""
    passes: Mapping[Server, Matcher] = field(default_factory=dict)
    """Servers that only policies on trial keep behind the proxy, and what these would let be asked."""

    def may_ask(self, name: Name, identity: int, port: int) -> bool:
        """Whether the rules let the pod ask a server of this identity, at this port, for `name` or what it means."""
        for place in _places(identity, port):
            matcher = self.queries.get(place)
            if matcher is not None and any(map(matcher, self.meant(name))):
                return True
        return False

    def trial(self, identity: int, port: int) -> Matcher | None:
        """What policies on trial would let be asked of a server to which everything passes; None for any other."""
        if not self.passes:
            return None
        place = next((place for place in _places(identity, port) if place in self.queries), None)
        return self.passes.get(place) if place else None

    def meant(self, name: Name) -> tuple[Name, ...]:
        """What a program may want whose resolver asks for `name`: that, or what stands before a search domain."""
        if not self.search:
            return (name,)
        ends = (domain for domain in self.search if len(domain) < len(name) and name[-len(domain) :] == domain)
        return (name, *(name[: -len(domain)] for domain in ends))

    def selectors(self, name: Name) -> frozenset[int]:
        """Selectors to which the addresses of `name` are credited, maybe none."""
        return self.matcher(name)


def _places(identity: int, port: int) -> tuple[Server, ...]:
    """Under which a server may be named, the narrowest first."""
    return (identity, port), (identity, ANY), (ANY, port), (ANY, ANY)


@dataclass(frozen=True, slots=True)
class Rules:
    generation: int = 0
    endpoints: Mapping[bytes, Endpoint] = field(default_factory=dict)
    """By pod address."""
    lan: tuple[Prefix, ...] = ()
    """The networks around this node."""

    @property
    def ids(self) -> frozenset[int]:
        return frozenset(endpoint.id for endpoint in self.endpoints.values())

    @property
    def tried(self) -> dict[int, frozenset[int]]:
        """Of each endpoint that has some."""
        return {endpoint.id: endpoint.tried for endpoint in self.endpoints.values() if endpoint.tried}

    @property
    def selectors(self) -> dict[int, frozenset[int]]:
        """Of each endpoint, those on trial too."""
        return {e.id: frozenset(rule.selector for rule in e.rules) for e in self.endpoints.values()}


def parse(text: str) -> Rules:
    """The file's text as rules; BadConfig names the field that is wrong."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise BadConfig("(file)", f"is not JSON: {error}") from error
    endpoints: dict[bytes, Endpoint] = {}
    ids: set[int] = set()
    for place, entry in _entries(_mapping("(file)", data), "endpoints", "endpoints"):
        names = tuple(_rules(entry, "names", place, selects=True))
        queries, passes = _queries(entry, "queries", place), _queries(entry, "passes", place)
        lan = frozenset(_lan(entry, f"{place}.names"))
        search = tuple(_search(entry, place))
        alike, tried = _alike(entry, place), frozenset(_tried(entry, place))
        number = _number(place, entry, "endpoint")
        endpoint = Endpoint(number, Matcher(names), queries, names, lan, search, alike, tried, passes)
        if endpoint.id in ids:
            raise BadConfig(f"{place}.endpoint", f"{endpoint.id} is named twice")
        ids.add(endpoint.id)
        for address in _addresses(place, entry):
            if address in endpoints:
                raise BadConfig(f"{place}.addresses", f"belong to endpoint {endpoints[address].id} too")
            endpoints[address] = endpoint
    return Rules(_number("", data, "generation"), endpoints, tuple(_networks(data)))


def _networks(data: Mapping[str, Any]) -> Iterator[Prefix]:
    listed = data.get("lan", [])
    if not isinstance(listed, list):
        raise BadConfig("lan", f"must be a list of networks, not {listed!r}")
    for number, text in enumerate(listed):
        try:
            yield Prefix.parse(text, strict=True)
        except ValueError as error:
            raise BadConfig(f"lan[{number}]", str(error)) from error


def _queries(entry: Mapping[str, Any], key: str, place: str) -> dict[Server, Matcher]:
    queries: dict[Server, Matcher] = {}
    for where, group in _entries(entry, key, f"{place}.{key}"):
        if group.keys() != {"to", "port", "names"}:
            raise BadConfig(where, f"must hold to, port and names; it holds {', '.join(sorted(group)) or 'nothing'}")
        server = (_number(where, group, "to"), _number(where, group, "port"))
        if server in queries:
            raise BadConfig(where, "another entry has the same server and port")
        queries[server] = Matcher(_rules(group, "names", where, selects=False))
    return queries


def _rules(entry: Mapping[str, Any], key: str, place: str, *, selects: bool) -> Iterator[Rule]:
    for where, words in _entries(entry, key, f"{place}.{key}"):
        rule = _rule(where, words, selects)
        _labels(f"{where}.{rule.match}", rule)
        yield rule


def _labels(place: str, rule: Rule) -> Name:
    try:
        return rule.labels()
    except ValueError as error:
        raise BadConfig(place, str(error)) from error


def _search(entry: Mapping[str, Any], place: str) -> Iterator[Name]:
    listed = entry.get("search", [])
    if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
        raise BadConfig(f"{place}.search", f"must be a list of domains, not {listed!r}")
    for number, text in enumerate(listed):
        domain = _labels(f"{place}.search[{number}]", Rule(_ASKED, Match.NAME, text))
        if not domain:
            raise BadConfig(f"{place}.search[{number}]", "must not be the root")
        yield domain


def _alike(entry: Mapping[str, Any], place: str) -> frozenset[frozenset[int]]:
    listed = entry.get("alike", [])
    if not isinstance(listed, list) or not all(isinstance(group, list) for group in listed):
        raise BadConfig(f"{place}.alike", f"must be a list of lists of selectors, not {listed!r}")
    if not all(type(number) is int for group in listed for number in group):
        raise BadConfig(f"{place}.alike", f"must hold selectors, not {listed!r}")
    return frozenset(map(frozenset, listed))


def _tried(entry: Mapping[str, Any], place: str) -> list[int]:
    listed = entry.get("tried", [])
    if not isinstance(listed, list) or not all(type(number) is int for number in listed):
        raise BadConfig(f"{place}.tried", f"must be a list of selectors, not {listed!r}")
    return listed


def _lan(entry: Mapping[str, Any], place: str) -> Iterator[int]:
    for where, words in _entries(entry, "names", place):
        said = words.get("lan", False)
        if not isinstance(said, bool):
            raise BadConfig(f"{where}.lan", f"must be true or false, not {said!r}")
        if said:
            yield words["selector"]


def _rule(place: str, entry: Mapping[str, Any], selects: bool) -> Rule:
    found = [match for match in Match if match in entry]
    known = {"selector", "lan"} if selects else set()
    if len(found) != 1 or entry.keys() - known - set(found):
        wanted = f"{'selector and ' if selects else ''}one of matchName, matchPattern"
        held = ", ".join(sorted(entry)) or "nothing"
        raise BadConfig(place, f"must hold {wanted}, and nothing else; it holds {held}")
    (match,) = found
    if not isinstance(entry[match], str):
        raise BadConfig(f"{place}.{match}", f"must be a string, not {entry[match]!r}")
    selector = _number(place, entry, "selector") if selects else _ASKED
    if selects and not 0 < selector < 1 << 32:
        raise BadConfig(f"{place}.selector", f"must be between 1 and {(1 << 32) - 1}, not {selector}")
    return Rule(selector, match, entry[match])


def _addresses(place: str, entry: Mapping[str, Any]) -> Iterator[bytes]:
    listed = entry.get("addresses")
    if not isinstance(listed, list):
        raise BadConfig(f"{place}.addresses", f"must be a list of addresses, not {listed!r}")
    for text in listed:
        try:
            yield pack(text)
        except ValueError as error:
            raise BadConfig(f"{place}.addresses", str(error)) from error


def _entries(data: Mapping[str, Any], key: str, place: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    listed = data.get(key, [])
    if not isinstance(listed, list):
        raise BadConfig(place, f"must be a list, not {listed!r}")
    return [(f"{place}[{i}]", _mapping(f"{place}[{i}]", entry)) for i, entry in enumerate(listed)]


def _mapping(place: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BadConfig(place, f"must be an object, not {value!r}")
    return value


def _number(place: str, entry: Mapping[str, Any], key: str) -> int:
    value = entry.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadConfig(f"{place}.{key}".lstrip("."), f"must be a number, not {value!r}")
    return value
