"""`netstack observe`: a flow on a line. Pure; netstack.observer names flows, reasons.py says why nothing allows one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from netstack.core.verdict import Verdict


def line(flow: Mapping[str, Any], why: Sequence[str] = ()) -> str:
    """Time, who to whom, verdict, and what decided; indented below: why each rule does not allow what none allows."""
    if "lost" in flow:
        return f"... {flow['lost']} events came too fast to be shown ..."
    parts = [_time(flow["time"]), f"{_end(flow, 'source')} -> {_end(flow, 'destination')}"]
    if not flow["source"]["address"]:
        parts[1] = f"a frame from {flow['pod'] or 'a device'}"
    parts += [flow["protocol"], flow["verdict"], _decided(flow)]
    if flow["repeats"]:
        parts.append(f"(and {flow['repeats']} more like it before)")
    return "\n".join(["  ".join(filter(None, parts)), *(f"              {reason}" for reason in why)])


def _time(instant: float) -> str:
    return datetime.fromtimestamp(instant).astimezone().strftime("%H:%M:%S.%f")[:-3]


def _end(flow: Mapping[str, Any], side: str) -> str:
    end = flow[side]
    name = end["pod"] or end["node"] or ",".join(end["names"])
    place = f"[{end['address']}]" if ":" in end["address"] else end["address"]
    text = f"{name} {place}" if name else place
    if end["port"]:
        text += f":{end['port']}"
    far = flow["direction"] and (side == "destination") == (flow["direction"] == "egress")
    return f"{text} ({flow['entity']})" if far and flow["entity"] != "pod" else text


def _decided(flow: Mapping[str, Any]) -> str:
    way = f"{flow['direction']} of {flow['pod']}: " if flow["direction"] and flow["pod"] else ""
    if flow["rule"]:
        return f"{way}{flow['rule']}"
    if flow["policies"]:
        return f"{way}no rule of {', '.join(flow['policies'])} allows it"
    if Verdict.of(flow["verdict"]) is Verdict.FORWARDED:
        return f"{way}no policy restricts it" if way else ""  # a node reaches its own pods whatever selects them
    return f"{way}{flow['reason']}"
