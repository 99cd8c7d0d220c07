"""The real programs on the veth of the pod of dns_wire, with the tables that the agent would write for it:
default deny, port 53 of the cluster's DNS to the proxy, 443/TCP of the names of selector 3."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from instruments.dns_wire import NODE, POD, ROOT, SERVER, Wire
from lab.shell import run
from netstack.core.address import pack
from netstack.core.verdict import Verdict
from netstack.kernel import layout
from netstack.kernel.bpf import SCHED_CLS, Map, Program
from netstack.kernel.flows import FlowTables
from netstack.kernel.layout import MAPS, Config, Endpoint, Identity, Instant, Number, PolicyKey, PolicyRule, PrefixKey
from netstack.kernel.loader import LoaderSettings
from netstack.kernel.programs import Compiled

SETTINGS = LoaderSettings()
ENDPOINT, SELECTOR = 12, 3
_POD_IDENTITY, _DNS_IDENTITY = 70001, 70002
_MAC = bytes.fromhex


def compiled(folder: Path) -> Compiled:
    """The programs for this kernel, by a process of its own (4 s)."""
    output = folder / "programs.json"
    command = [sys.executable, "-m", "netstack.kernel.compile", str(ROOT / "files/bpf"), str(output)]
    subprocess.run(command, check=True, env={"PYTHONPATH": str(ROOT / "daemons/src"), "PATH": "/usr/sbin:/usr/bin"})
    return Compiled.from_json(output.read_text())


class Programs:
    """pod_ingress and pod_egress, attached."""

    def __init__(self, wire: Wire, programs: Compiled) -> None:
        self.wire = wire
        for name, declared in programs.maps.items():
            if name not in wire.maps:
                wire.maps[name] = SETTINGS.create(name) if name in MAPS else Map.create(name, declared)
        self._fill()
        descriptors = {name: table.fd for name, table in wire.maps.items()}
        self._neighbour()
        wire.nsenter(wire.node, "tc", "qdisc", "add", "dev", "pod5", "clsact")
        for name, direction in (("pod_ingress", "ingress"), ("pod_egress", "egress")):
            pin = wire.folder / "bpf" / name
            with Program.load(name, SCHED_CLS, programs.programs[name].linked(descriptors)) as program:
                program.pin(pin)
            wire.nsenter(
                wire.node, "tc", "filter", "add", "dev", "pod5", direction, "bpf", "da", "object-pinned", str(pin)
            )

    def _link(self, netns: str, device: str) -> dict[str, Any]:
        (link,) = json.loads(run(["ip", "-n", netns, "-j", "link", "show", device]).stdout)
        return dict(link)

    def _neighbour(self) -> None:
        """The pod answers no ARP of the node's: the agent writes its MAC into the neighbour table."""
        mac = self._link(self.wire.pods[POD], "eth0")["address"]
        run(["ip", "-n", self.wire.node, "neigh", "replace", POD, "lladdr", mac, "dev", "pod5", "nud", "permanent"])

    def _fill(self) -> None:
        veth, inside = self._link(self.wire.node, "pod5"), self._link(self.wire.pods[POD], "eth0")
        macs = (_MAC(link["address"].replace(":", "")) for link in (inside, veth))
        uplink = self._link(self.wire.node, "eth0")["ifindex"]
        tables = self.wire.maps
        config = Config(node4=pack(NODE), pod_net4=pack("10.244.1.0"), pod_net4_bits=120, uplink=uplink, generation=1)
        tables["config"].put(Number(0).pack(), config.pack())
        endpoint = Endpoint(ENDPOINT, veth["ifindex"], _POD_IDENTITY, layout.ENFORCE_EGRESS, *macs)
        FlowTables(tables["conntrack"], SETTINGS.definition("flows")).add(ENDPOINT)
        tables["endpoints"].put(pack(POD), endpoint.pack())
        for address, identity, node in ((POD, _POD_IDENTITY, pack(NODE)), (SERVER, _DNS_IDENTITY, bytes(16))):
            tables["identities"].put(PrefixKey(128, pack(address)).pack(), Identity(identity, 0, node).pack())
        for protocol in (socket.IPPROTO_UDP, socket.IPPROTO_TCP):
            self._rule(_DNS_IDENTITY, protocol, 53, layout.ACTION_REDIRECT_DNS)
        self._rule(SELECTOR, socket.IPPROTO_TCP, 443, layout.ACTION_ALLOW)

    def _rule(self, peer: int, protocol: int, port: int, action: int) -> None:
        key = PolicyKey(layout.POLICY_BITS_PORT, ENDPOINT, peer, layout.DIRECTION_EGRESS, protocol, port)
        self.wire.maps["policy"].put(key.pack(), PolicyRule(1, action).pack())

    def counted(self, verdict: Verdict) -> int:
        """Packets so far that ended in `verdict`."""
        values = self.wire.maps["counters"].get(Number(verdict).pack()) or b""
        size = Instant.size()
        return sum(Instant.unpack(values[i : i + size]).value for i in range(0, len(values), size))
