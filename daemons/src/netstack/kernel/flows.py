"""Each endpoint's own table of flows: the inner maps of `conntrack`, one an endpoint id.

    conntrack   endpoint id -> its table
    a table     struct flow_key -> struct flow, LRU, as large as the endpoint's budget

Whoever adds an endpoint to `endpoints` makes its table before, and takes it away after. In between every packet of the
endpoint is dropped (MAP_FULL). A table's memory belongs to the kernel until no program looks into it any more.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from netstack.kernel import layout
from netstack.kernel.bpf import BpfError, Map, MapDefinition


class FlowTables:
    """The tables in `conntrack`. `definition` is that of new ones; those that are there stay as they are."""

    def __init__(self, conntrack: Map, definition: MapDefinition) -> None:
        self._conntrack = conntrack
        self._definition = definition

    @property
    def room(self) -> int:
        """For how many endpoints there is room."""
        return self._conntrack.definition.entries

    def endpoints(self) -> set[int]:
        """Ids of the endpoints that have a table."""
        return {layout.Number.unpack(key).value for key, _ in self._conntrack.items()}

    def add(self, endpoint: int) -> bool:
        """False if it has one. BpfError if there is no memory or no room."""
        key = layout.Number(endpoint).pack()
        if self._conntrack.get(key) is not None:
            return False
        with Map.create("flows", self._definition) as table:
            self._conntrack.put(key, struct.pack("=I", table.fd))
        return True

    def remove(self, endpoint: int) -> bool:
        """False if it has none."""
        return self._conntrack.delete(layout.Number(endpoint).pack())

    def open(self, endpoint: int) -> Map | None:
        """An endpoint's table, if it has one. Needs CAP_SYS_ADMIN."""
        number = self._conntrack.get(layout.Number(endpoint).pack())
        return None if number is None else Map.of_id(layout.Number.unpack(number).value, "flows")

    def all(self) -> Iterator[tuple[int, Map]]:
        """(endpoint id, table) of every endpoint. Needs CAP_SYS_ADMIN."""
        for endpoint in sorted(self.endpoints()):
            try:
                table = self.open(endpoint)
            except BpfError:  # gone meanwhile
                continue
            if table is not None:
                yield endpoint, table
