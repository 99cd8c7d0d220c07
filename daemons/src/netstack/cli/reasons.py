"""Why no rule allows what was denied for want of one: read from the tables that the programs read."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from netstack.cli.explain import considered
from netstack.cli.frames import Flow
from netstack.core.address import pack
from netstack.core.protocol import PROTOCOLS
from netstack.core.unit import RUN, ask
from netstack.kernel import layout
from netstack.kernel.bpf import Map

FRESH_S = 2.0
"""How long what was read of a table is good enough."""
DIRECTIONS = {"ingress": layout.DIRECTION_INGRESS, "egress": layout.DIRECTION_EGRESS}

Entry = tuple[layout.PolicyKey, layout.PolicyRule]


class Reasons:
    """BpfError if the node's tables are not there."""

    def __init__(self, maps: Path, run: Path = RUN) -> None:
        self._policy, self._fqdn = Map.open(maps / "policy"), Map.open(maps / "fqdn")
        self._run = run
        self._read_at = float("-inf")
        self._entries: dict[tuple[int, int], list[Entry]] = {}
        self._rules: dict[int, str] = {}

    def of(self, flow: Mapping[str, Any]) -> tuple[str, ...]:
        """Of a flow as netstack.observer.flows has it; nothing if a rule decided or no policy was asked."""
        if "lost" in flow or flow["rule"] or not flow["direction"]:
            return ()
        verdict, protocol = flow["verdict"], flow["protocol"]
        if verdict not in ("DEFAULT_DENY", "AUDITED") or protocol not in PROTOCOLS:
            return ()
        direction = DIRECTIONS[flow["direction"]]
        if verdict == "AUDITED":
            direction += layout.DIRECTION_AUDIT
        source, destination = flow["source"], flow["destination"]
        asked = Flow(pack(source["address"]), pack(destination["address"]), destination["port"], protocol)
        peer = asked.source if flow["direction"] == "ingress" else asked.destination
        numbers = (flow["identity"], layout.IDENTITY_ANY, *self._learned(flow["endpoint"], peer))
        self._refresh()
        return considered(self._entries.get((flow["endpoint"], direction), ()), self._rules, numbers, asked)

    def _learned(self, endpoint: int, address: bytes) -> list[int]:
        """Selectors that have not expired; others may still be noted, for the connections that they allowed."""
        raw = self._fqdn.get(layout.FqdnKey(endpoint, address).pack())
        now_s = time.monotonic()
        return [number for number, expires_s in layout.Fqdn.read(raw).items() if now_s < expires_s] if raw else []

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._read_at < FRESH_S:
            return
        self._read_at = now
        self._entries = {}
        for raw, value in self._policy.items():
            key = layout.PolicyKey.unpack(raw)
            self._entries.setdefault((key.endpoint, key.direction), []).append((key, layout.PolicyRule.unpack(value)))
        try:
            rules = ask("agent", {"command": "rules"}, run=self._run) or {}
        except (OSError, RuntimeError):
            rules = {}  # rules keep their numbers
        self._rules = {int(number): name for number, name in rules.items()}
