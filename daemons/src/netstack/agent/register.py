"""The register of this node's endpoints: who has which address and which number. Survives the agent, not the boot.

An endpoint's number is never given twice on a node, not even after a reboot or to a pod with the same address: what
conntrack, learned names and counters know under it can never be inherited. Addresses are given in rotation, so one
that was just freed rests as long as possible.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from netstack.agent.identities import LocalEndpoint
from netstack.core.address import Prefix, pack, unpack
from netstack.core.ref import Ref

FIRST_POD = 3
"""Of a PodCIDR, .0 is the range itself, .1 is kept free (other plugins' gateway), .2 is the ingress endpoint's."""
INGRESS_HOST = 2
INGRESS_NAME = "netstack-ingress"
"""The pod name and container id by which netstack-ingress asks for its endpoint."""
LAST_ID = (1 << 32) - 1


LATER = ("uid", "namespace_labels", "ports")
"""Fields of a Record that its first release had not."""


def _later(found: Mapping[str, Any]) -> dict[str, Any]:
    return {**found, "ports": tuple(map(tuple, found.get("ports", ())))}


class Full(Exception):
    """No address is left."""


@dataclass(frozen=True, slots=True)
class Record:
    """One endpoint. `interface` is the name in the pod's namespace, `device` that of the host side."""

    container: str
    interface: str
    device: str
    id: int
    address: str
    namespace: str
    pod: str
    labels: Mapping[str, str] = field(default_factory=dict)
    service_account: str = ""
    ifindex: int = 0
    """Of `device`; 0 until attached."""
    mac: str = ""
    host_mac: str = ""
    uid: str = ""
    """The pod's; "" where the runtime did not tell, or an earlier release reserved."""
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[tuple[str, str, int], ...] = ()
    """The pod's named ports (source/models.py)."""

    @property
    def ingress(self) -> bool:
        return self.container == INGRESS_NAME

    @property
    def attached(self) -> bool:
        return self.ifindex != 0

    def local(self) -> LocalEndpoint:
        """As the compiler wants it. Only of an attached one."""
        return LocalEndpoint(
            id=self.id,
            address=pack(self.address),
            ref=Ref("Pod", self.namespace, self.pod),
            ifindex=self.ifindex,
            mac=bytes.fromhex(self.mac),
            host_mac=bytes.fromhex(self.host_mac),
            labels=self.labels,
            service_account=self.service_account,
            ingress=self.ingress,
            uid=self.uid,
            namespace_labels=self.namespace_labels,
            ports=self.ports,
        )


@dataclass(frozen=True, slots=True)
class Register:
    """Immutable; every change is a new one, which takes effect when it is on disk."""

    boot: str
    """The boot in which the endpoints were made (/proc/sys/kernel/random/boot_id)."""
    next_id: int = 1
    last_host: int = FIRST_POD - 1
    """Where the rotation of addresses stands: index into the PodCIDR."""
    records: tuple[Record, ...] = ()

    @classmethod
    def load(cls, text: str, boot: str) -> Register:
        """From `dump`'s text ("" = none yet). After a reboot only the counters are left. ValueError if it is torn."""
        if not text:
            return cls(boot)
        try:
            data: dict[str, Any] = json.loads(text)
            items = data["records"] if data["boot"] == boot else ()
            records = tuple(Record(**item, **_later(data.get("later", {}).get(str(item["id"]), {}))) for item in items)
            return cls(boot, int(data["next_id"]), int(data["last_host"]), records)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"is no register of endpoints: {error!r}") from error

    def dump(self) -> str:
        """What came LATER stands beside the records: a release before it, which somebody goes back to, takes no record
        with more fields than it has."""
        data = asdict(self)
        data["later"] = {record["id"]: {name: record.pop(name) for name in LATER} for record in data["records"]}
        return json.dumps(data, indent=1) + "\n"

    def find(self, container: str, interface: str) -> Record | None:
        return next((r for r in self.records if (r.container, r.interface) == (container, interface)), None)

    def reserve(
        self,
        cidr: Prefix,
        container: str,
        interface: str,
        device: str,
        namespace: str,
        pod: str,
        foreign: Collection[bytes] = (),
    ) -> Register:
        """With one more record, which `find` finds. `foreign`: addresses in use that are not in the register. Full if
        no address or number is left."""
        if self.next_id > LAST_ID:
            raise Full("all 2^32 endpoint numbers were given out")
        taken = {record.address for record in self.records} | set(map(unpack, foreign))
        ingress = container == INGRESS_NAME
        size = 1 << (128 - cidr.bits)
        if ingress:
            host = INGRESS_HOST
        else:
            usable = size - FIRST_POD - 1  # the last one is the range's broadcast address
            rotation = ((self.last_host + step - FIRST_POD) % usable + FIRST_POD for step in range(1, usable + 1))
            found = next((host for host in rotation if unpack(cidr.nth(host)) not in taken), None)
            if found is None:
                raise Full(f"{cidr} is full: all {usable} addresses are in use")
            host = found
        address = unpack(cidr.nth(host))
        if address in taken:
            raise Full(f"{address} is in use")
        record = Record(container, interface, device, self.next_id, address, namespace, pod)
        return replace(
            self,
            next_id=self.next_id + 1,
            last_host=self.last_host if ingress else host,
            records=(*self.records, record),
        )

    def put(self, record: Record) -> Register:
        """With this record in place of the one with its number."""
        return replace(self, records=tuple(record if r.id == record.id else r for r in self.records))

    def release(self, number: int) -> Register:
        return replace(self, records=tuple(record for record in self.records if record.id != number))

    def endpoints(self) -> tuple[LocalEndpoint, ...]:
        return tuple(record.local() for record in self.records if record.attached)
