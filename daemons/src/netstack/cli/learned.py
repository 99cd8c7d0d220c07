"""`netstack dns`: what each pod has learned from DNS, from whom, until when, by which rule; what was refused. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Pods = Mapping[int, Mapping[str, Any]]
"""Endpoint id -> its view in the agent's status."""


def rows(names: Iterable[Mapping[str, Any]], pods: Pods, wanted: str = "") -> list[dict[str, Any]]:
    """Of the DNS proxy's answer to `names`: one row for each address of each pod whose name begins with `wanted`.

    `open` is False where no rule is in force any more: the address is noted, and opens nothing. Nor do rules on trial.
    `heard`: said to a pod that no policy allows it by name.
    """
    found = []
    for entry in names:
        pod = pods[entry["endpoint"]]["pod"] if entry["endpoint"] in pods else f"endpoint {entry['endpoint']}, gone"
        if not pod.startswith(wanted):
            continue
        ruled = [selector for selector in entry["selectors"] if selector["rule"] is not None]
        live = [selector for selector in ruled if not selector.get("on_trial")]
        found.append(
            {
                "pod": pod,
                "address": entry["address"],
                "names": [{"name": name.removesuffix("."), "from": entry["from"][name]} for name in entry["names"]],
                "rules": [selector["rule"] for selector in live],
                "on_trial": [selector["rule"] for selector in ruled if selector.get("on_trial")],
                "open": bool(live) and entry["endpoint"] in pods,
                "for_s": max((selector["for_s"] for selector in live), default=0),
                "heard": entry.get("heard", False),
            }
        )
    return sorted(found, key=lambda row: (row["pod"], [item["name"] for item in row["names"]], row["address"]))


def refusals(status: Mapping[str, Any], pods: Pods, wanted: str = "") -> list[dict[str, Any]]:
    """The last questions that were refused, and addresses that stay closed whoever names them; oldest first. With
    `on_trial` only policies on trial would refuse them."""
    found = [
        {**item, "pod": _who(item, pods), "name": item["name"].removesuffix(".") or "."} for item in status["refused"]
    ]
    return [item for item in found if item["pod"].startswith(wanted)]


def _who(refusal: Mapping[str, Any], pods: Pods) -> str:
    """The pod that asked, not the one that has its address by now."""
    if (number := refusal.get("endpoint", 0)) == 0:  # or of an earlier release
        return str(refusal["pod"])
    return str(pods[number]["pod"]) if number in pods else f"{refusal['pod']}, gone"


def render(rows: Iterable[Mapping[str, Any]], refused: Iterable[Mapping[str, Any]]) -> str:
    """For people."""
    lines, pod = [], ""
    for row in rows:
        if row["pod"] != pod:
            pod = row["pod"]
            lines.append(pod)
        said = ", ".join(f"{item['name']} (said {item['from']})" for item in row["names"]) or "name not known any more"
        if row["heard"]:
            why = "heard; no name opens it"
        elif row["open"]:
            why = f"open for {row['for_s']} s by {', '.join(row['rules'])}"
        elif row["on_trial"]:
            why = f"noted for policies on trial: {', '.join(row['on_trial'])}"
        else:
            why = "closed: no rule in force"
        lines.append(f"  {row['address']:<16} {said}; {why}")
    refused = list(refused)
    if refused:
        lines.append("refused of late")
        for item in refused:
            place = f" at {item['address']}" if "address" in item else ""
            when = (
                f"{item['ago_s']} s ago" if item["times"] == 1 else f"{item['times']} times, last {item['ago_s']} s ago"
            )
            trial = "; on trial, so it passed" if item.get("on_trial") else ""
            lines.append(f"  {item['pod']}: {item['name']}{place}: {item['reason']}{trial} ({when})")
    return "\n".join(lines or ["no pod has learned an address"]) + "\n"
