"""`netstack identities`: who is who, as the agent says. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def joined(known: Iterable[Mapping[str, Any]], endpoints: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each identity (netstack.agent.report.identities) with those pods of this node that have it."""
    pods: dict[int, list[str]] = {}
    for endpoint in endpoints:
        pods.setdefault(endpoint["identity"], []).append(endpoint["pod"])
    return [{**item, "endpoints": sorted(pods.get(item["identity"], ()))} for item in known]


def render(found: Iterable[Mapping[str, Any]]) -> str:
    """For people: an identity a line, its labels below."""
    lines = []
    for item in found:
        lines.append(f"{item['identity']:<11} {item['name']:<24} {' '.join(item['addresses'])}".rstrip())
        lines += [f"    {key}={value}" for key, value in item["labels"].items()]
        lines += [f"    here: {', '.join(item['endpoints'])}"] if item["endpoints"] else []
    return "".join(f"{line}\n" for line in lines)
