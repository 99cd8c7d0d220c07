"""What the daemon says about itself on its control socket: `status`, `names` and `judge`, as plain JSON values."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from functools import cache
from typing import Any

from netstack.core.address import pack, unpack
from netstack.dns.apply import Entry
from netstack.dns.heard import Fact
from netstack.dns.names import text
from netstack.dns.rules import Rules
from netstack.dns.session import Reason, Session
from netstack.dns.sockets import packed


def status(session: Session, learned: int, heard: int, error: str | None, now: float) -> dict[str, Any]:
    """`learned`: how many addresses are open; `heard`: how many facts no name opens; `error`: why the rules
    file on disk is not in force, None if it is."""
    return {
        "generation": session.rules.generation,
        "rules_error": error,
        "broken": [f"{error}; rules of generation {session.rules.generation} stay in force"] if error else [],
        "pods": len(session.rules.ids),
        "in_flight": session.in_flight,
        "learned": learned,
        "heard": heard,
        "counters": {str(reason): count for reason, count in sorted(session.counters.items())},
        "refused": [
            {
                "pod": unpack(item.pod),
                "endpoint": item.endpoint,
                "name": text(item.name),
                "reason": str(item.reason),
                **({"address": unpack(item.address)} if item.address else {}),
                **({"on_trial": True} if item.on_trial else {}),
                "times": repeats.times,
                "ago_s": round(now - repeats.last_s),
            }
            for item, repeats in session.refused.items()
        ],
    }


def judge(session: Session, request: Mapping[str, Any]) -> dict[str, Any]:
    """Whether a pod may ask a server (and its port) for `name`, and what opens the addresses that it would learn."""
    pod, name = pack(request["pod"]), tuple(request["name"].lower().removesuffix(".").encode().split(b"."))
    reason = session.judge(pod, name, pack(request["server"]), request["port"])
    endpoint = session.rules.endpoints.get(pod)
    selectors = endpoint.selectors(name) - endpoint.tried if endpoint else frozenset()
    return {
        "allowed": reason is Reason.FORWARDED,
        "reason": str(reason),
        "opens": [f"{rule.match}: {rule.text}" for rule in endpoint.rules if rule.selector in selectors]
        if endpoint
        else [],
    }


def asked(request: Mapping[str, Any]) -> frozenset[bytes] | None:
    """The addresses of which a request for names is: thousands, where a pod that scans the world is observed, and then
    a few, as fast as it scans. None: all."""
    wanted = request.get("addresses")
    return None if wanted is None else frozenset(map(packed, wanted))


def heard(facts: Iterable[Fact], wanted: Container[bytes] | None = None) -> list[dict[str, Any]]:
    """As `names`: what pods were told and no name opens, of the addresses `wanted`."""
    found: dict[tuple[int, bytes], dict[str, str]] = {}
    for fact in facts:
        if wanted is None or fact.address in wanted:
            found.setdefault((fact.endpoint, fact.address), {})[text(fact.name)] = unpack(fact.server)
    return [
        {
            "endpoint": endpoint,
            "pod": [],
            "address": unpack(address),
            "names": list(servers),
            "from": servers,
            "selectors": [],
            "heard": True,
        }
        for (endpoint, address), servers in sorted(found.items())
    ]


def names(rules: Rules, entries: Iterable[Entry], now: float) -> list[dict[str, Any]]:
    """Each address that is open to a pod, by which rules and for how many seconds more.

    A selector whose rule is no longer in force has no `rule`: the address is noted, but nothing opens it. Nor does one
    `on_trial`, which only policies on trial want.
    """
    endpoints = {endpoint.id: endpoint for endpoint in rules.endpoints.values()}
    pods: dict[int, list[str]] = {}
    tried = rules.tried
    for address, endpoint in rules.endpoints.items():
        pods.setdefault(endpoint.id, []).append(unpack(address))

    @cache
    def texts(number: int) -> dict[int, str]:
        own = endpoints[number].rules if number in endpoints else ()
        return {rule.selector: f"{rule.match}: {rule.text}" for rule in own}

    return [
        {
            "endpoint": entry.endpoint,
            "pod": sorted(pods.get(entry.endpoint, ())),
            "address": unpack(entry.address),
            "names": [text(name) for name in entry.names],
            "from": {text(name): unpack(server) for name, server in entry.names.items()},
            "selectors": [
                {
                    "selector": selector,
                    "rule": texts(entry.endpoint).get(selector),
                    "for_s": round(at - now),
                    **({"on_trial": True} if selector in tried.get(entry.endpoint, ()) else {}),
                }
                for selector, at in sorted(entry.expiries_s.items())
            ],
        }
        for entry in sorted(entries, key=lambda entry: (entry.endpoint, entry.address))
    ]
