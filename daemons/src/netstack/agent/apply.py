"""Makes the kernel equal the tables and routes: the only writer of the agent's maps. Thinks nothing; order.py did.

At start, the tables in force are read back from the pinned maps, so that an agent that is restarted writes only what
differs, which is nothing when nothing changed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path

from netstack.agent.order import NAMES, Tables
from netstack.agent.routes import PROXY_ROUTE_V6, PROXY_RULE, Wanted
from netstack.core.address import Prefix, unpack
from netstack.core.table import Change, Op, Table
from netstack.kernel import layout
from netstack.kernel.bpf import Map, MapDefinition
from netstack.kernel.flows import FlowTables
from netstack.kernel.netlink import HERE, UNICAST, UNREACHABLE, Netlink, Route, Rule


class Kernel:
    """The agent's maps. `writes` counts elements written since the start, by map."""

    def __init__(self, pins: Path, flows: MapDefinition) -> None:
        """`flows`: how an endpoint's table of flows shall be. BpfError ENOENT before the loader has run."""
        self._maps = {name: Map.open(pins / "maps" / name) for name in NAMES}
        self._flows = FlowTables(Map.open(pins / "maps" / "conntrack"), flows)
        self.writes = dict.fromkeys(NAMES, 0)

    @property
    def sizes(self) -> dict[str, int]:
        return {name: opened.definition.entries for name, opened in self._maps.items()} | {
            "conntrack": self._flows.room
        }

    def read(self) -> Tables:
        """What the maps hold now. A services entry whose slots are torn, or an endpoint that has no table of flows, is
        left out, so it is written again; tables of endpoints that are gone go."""
        tables = {
            name: Table(name, dict(self._maps[name].items())) for name in NAMES if name not in ("slots", "config")
        }
        zero = layout.Number(0).pack()
        config = self._maps["config"].get(zero) or b""
        tables["config"] = Table("config", {zero: config} if any(config) else {})
        endpoints = {key: layout.Endpoint.unpack(value).id for key, value in tables["endpoints"].entries.items()}
        having = self._flows.endpoints()
        for number in having - set(endpoints.values()):
            self._flows.remove(number)
        whole = {key: value for key, value in tables["endpoints"].entries.items() if endpoints[key] in having}
        tables["endpoints"] = Table("endpoints", whole)
        slots: dict[bytes, bytes] = {}
        for value in tables["services"].entries.values():
            service = layout.Service.unpack(value)
            place = layout.Number(service.first).pack()
            if service.slots and place not in slots:
                slots[place] = self._region(service.first, service.slots)
        tables["slots"] = Table("slots", slots)
        return tables

    def _region(self, first: int, length: int) -> bytes:
        slots = self._maps["slots"]
        return b"".join(slots.get(layout.Number(index).pack()) or bytes(4) for index in range(first, first + length))

    def write(self, changes: Iterable[Change]) -> None:
        """In order; neighbours of one kind in one batch. BpfError if the kernel refuses: then read() says what is."""
        for (name, op), group in groupby(changes, key=lambda change: (change.table, change.op)):
            if name == "endpoints":
                self._write_endpoints(op, list(group))
            elif op is Op.PUT:
                entries = _elements(name, group)
                self._maps[name].put_batch(entries)
                self.writes[name] += len(entries)
            elif name != "slots":  # an array has no deletes; nobody points there any more
                keys = [change.key for change in group]
                self._maps[name].delete_batch(keys)
                self.writes[name] += len(keys)

    def _write_endpoints(self, op: Op, changes: list[Change]) -> None:
        """An endpoint has its table of flows before its first packet may pass, and until after its last."""
        for change in changes:
            number = layout.Endpoint.unpack(change.value).id
            if op is Op.PUT:
                self._flows.add(number)
                self._maps["endpoints"].put(change.key, change.value)
            else:
                self._maps["endpoints"].delete(change.key)
                if number not in self._endpoints():  # another address of it may stay
                    self._flows.remove(number)
        self.writes["endpoints"] += len(changes)

    def _endpoints(self) -> set[int]:
        return {layout.Endpoint.unpack(value).id for _, value in self._maps["endpoints"].items()}


def _elements(name: str, puts: Iterable[Change]) -> dict[bytes, bytes]:
    if name != "slots":
        return {change.key: change.value for change in puts}
    elements = {}
    for change in puts:
        first = layout.Number.unpack(change.key).value
        for index in range(len(change.value) // 4):
            elements[struct.pack("=I", first + index)] = change.value[4 * index : 4 * index + 4]
    return elements


def routes_of(wanted: Iterable[Wanted], uplink: int, loopback: int, pods: Mapping[bytes, int]) -> set[Route]:
    """Routes as the kernel has them. `pods`: address -> ifindex of the host side."""
    kinds = {"uplink": (uplink, UNICAST), "lo": (loopback, HERE), "": (0, UNREACHABLE)}
    routes = {
        Route(item.destination, kinds[item.device][0], item.via, item.table, kind=kinds[item.device][1])
        for item in wanted
    }
    return routes | {Route(Prefix(address, 128), ifindex) for address, ifindex in pods.items()}


def sync_routes(netlink: Netlink, wanted: set[Route], refused: list[str]) -> int:
    """Add what lacks, then remove what is ours and not wanted; how many changes. What the kernel refuses (a device that
    is down, IPv6 where this node has none) is put into `refused`, and keeps nothing else from being done."""
    present = netlink.routes()
    changes = 0
    for route in sorted(wanted - present):
        try:
            netlink.put_route(route)
            changes += 1
        except OSError as error:
            refused.append(f"no route to {route.destination}: {error.strerror}")
    replaced = {(route.destination, route.table) for route in wanted}
    for route in sorted(present - wanted):
        if (route.destination, route.table) not in replaced:
            changes += netlink.delete_route(route)
    return changes


def sync_neighbours(netlink: Netlink, uplink: int, wanted: Iterable[bytes], refused: list[str]) -> int:
    """Other nodes, whose MACs the kernel always knows: the programs believe a node's address from its MAC alone.
    `refused` as with routes."""
    present, nodes = netlink.kept_neighbours(uplink), set(wanted)
    for address in sorted(nodes - present):
        try:
            netlink.keep_neighbour(uplink, address)
        except OSError as error:
            refused.append(f"the MAC of {unpack(address)} cannot be known: {error.strerror}")
    for address in present - nodes:
        netlink.forget_neighbour(uplink, address)
    return len(nodes ^ present)


def sync_rules(netlink: Netlink, wanted: Iterable[Wanted]) -> int:
    """A rule that leads the proxy's mark to its table for each family that has a route there, and no other of ours."""
    rules = {
        Rule(PROXY_RULE.priority, PROXY_RULE.mark, PROXY_RULE.mask, PROXY_RULE.table, v6=route == PROXY_ROUTE_V6)
        for route in wanted
        if route.table == PROXY_RULE.table
    }
    present = netlink.rules()
    changes = sum(netlink.put_rule(rule) for rule in sorted(rules - present))
    return changes + sum(netlink.delete_rule(rule) for rule in sorted(present - rules))
