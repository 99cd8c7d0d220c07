"""The real programs on the veths of the pods of dns_wire, with the tables that the agent would write for them:
default deny, port 53 of the cluster's DNS to the proxy, 443/TCP of the names of selector 3."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from instruments.dns_wire import NODE, POD, ROOT, ROUTER, SERVER, STRANGER, Wire
from lab.shell import run
from netstack.core.address import pack
from netstack.core.verdict import Verdict
from netstack.kernel import layout
from netstack.kernel.bpf import SCHED_CLS, Map, Program
from netstack.kernel.flows import FlowTables
from netstack.kernel.layout import MAPS, Config, Endpoint, Identity, Number, PolicyKey, PolicyRule, PrefixKey
from netstack.kernel.loader import LoaderSettings
from netstack.kernel.programs import Compiled

SETTINGS = LoaderSettings()
ENDPOINT, OTHER_ENDPOINT, SELECTOR = 12, 13, 3
_POD_IDENTITY, _DNS_IDENTITY = 70001, 70002
_MAC = bytes.fromhex
_DEVICES = {POD: "pod5", STRANGER: "pod6"}
_DIRECTIONS = {"pod_ingress": "ingress", "pod_egress": "egress"}


def compiled(folder: Path) -> Compiled:
    """The programs for this kernel, by a process of its own (4 s)."""
    output = folder / "programs.json"
    command = [sys.executable, "-m", "netstack.kernel.compile", str(ROOT / "files/bpf"), str(output)]
    subprocess.run(command, check=True, env={"PYTHONPATH": str(ROOT / "daemons/src"), "PATH": "/usr/sbin:/usr/bin"})
    return Compiled.from_json(output.read_text())


class Programs:
    """pod_ingress and pod_egress, attached to the first pod, and with `both` to the stranger too. `restricted`: the
    policy is in force from the start."""

    def __init__(self, wire: Wire, programs: Compiled, *, both: bool = False, restricted: bool = True) -> None:
        self.wire = wire
        for name, declared in programs.maps.items():
            if name not in wire.maps:
                wire.maps[name] = SETTINGS.create(name) if name in MAPS else Map.create(name, declared)
        self._fill()
        self._load(programs)
        for address, number in ((POD, ENDPOINT), (STRANGER, OTHER_ENDPOINT))[: 1 + both]:
            self.admit(address, number) if restricted else self.begin(address, number)
            self._attach(_DEVICES[address])

    def _load(self, programs: Compiled) -> None:
        descriptors = {name: table.fd for name, table in self.wire.maps.items()}
        for name in _DIRECTIONS:
            with Program.load(name, SCHED_CLS, programs.programs[name].linked(descriptors)) as program:
                program.pin(self.wire.folder / "bpf" / name)

    def _attach(self, device: str) -> None:
        self.wire.nsenter(self.wire.node, "tc", "qdisc", "add", "dev", device, "clsact")
        for name, direction in _DIRECTIONS.items():
            pin = str(self.wire.folder / "bpf" / name)
            self.wire.nsenter(
                self.wire.node, "tc", "filter", "add", "dev", device, direction, "bpf", "da", "object-pinned", pin
            )

    def _link(self, netns: str, device: str) -> dict[str, Any]:
        (link,) = json.loads(run(["ip", "-n", netns, "-j", "link", "show", device]).stdout)
        return dict(link)

    def _fill(self) -> None:
        uplink = self._link(self.wire.node, "eth0")["ifindex"]
        tables = self.wire.maps
        self.config = Config(
            node4=pack(NODE), pod_net4=pack("10.244.1.0"), pod_net4_bits=120, uplink=uplink, generation=1
        )
        tables["config"].put(Number(0).pack(), self.config.pack())
        self._identity(SERVER, _DNS_IDENTITY, ROUTER)  # a pod of another node
        self._identity(NODE, layout.IDENTITY_HOST, NODE)

    def _identity(self, address: str, identity: int, node: str) -> None:
        value = Identity(identity, 0, pack(node))
        self.wire.maps["identities"].put(PrefixKey(128, pack(address)).pack(), value.pack())

    def admit(self, address: str, number: int) -> None:
        """What the agent writes when a pod with this address begins: its endpoint, its table of flows, its rules."""
        self.begin(address, number)
        self.restrict(address, number)

    def begin(self, address: str, number: int) -> None:
        """... that no policy restricts."""
        FlowTables(self.wire.maps["conntrack"], SETTINGS.definition("flows")).add(number)
        self._endpoint(address, number, 0)
        self._identity(address, _POD_IDENTITY, NODE)
        # the pod answers no ARP of the node's: the agent writes its MAC into the neighbour table
        device, mac = _DEVICES[address], self._link(self.wire.pods[address], "eth0")["address"]
        neighbour = ["lladdr", mac, "dev", device, "nud", "permanent"]
        run(["ip", "-n", self.wire.node, "neigh", "replace", address, *neighbour])

    def restrict(self, address: str, number: int) -> None:
        """A policy begins: rules, then the endpoint, then the generation, as the agent orders it."""
        for protocol in (socket.IPPROTO_UDP, socket.IPPROTO_TCP):
            self._rule(number, _DNS_IDENTITY, protocol, 53, layout.ACTION_REDIRECT_DNS)
        self._rule(number, SELECTOR, socket.IPPROTO_TCP, 443, layout.ACTION_ALLOW)
        self._endpoint(address, number, layout.ENFORCE_EGRESS)
        self.config = replace(self.config, generation=self.config.generation + 1)
        self.wire.maps["config"].put(Number(0).pack(), self.config.pack())

    def _endpoint(self, address: str, number: int, enforce: int) -> None:
        device = _DEVICES[address]
        veth, inside = self._link(self.wire.node, device), self._link(self.wire.pods[address], "eth0")
        macs = (_MAC(link["address"].replace(":", "")) for link in (inside, veth))
        endpoint = Endpoint(number, veth["ifindex"], _POD_IDENTITY, enforce, *macs)
        self.wire.maps["endpoints"].put(pack(address), endpoint.pack())

    def allow(self, port: int, selector: int = SELECTOR) -> None:
        """The policy allows this port of the selector's names too."""
        self._rule(ENDPOINT, selector, socket.IPPROTO_TCP, port, layout.ACTION_ALLOW)

    def redirect_at_the_node(self) -> None:
        """The policy leads questions for the node's own DNS server to the proxy too."""
        self._rule(ENDPOINT, layout.IDENTITY_HOST, socket.IPPROTO_TCP, 53, layout.ACTION_REDIRECT_DNS)

    def shut(self, port: int, peer: int) -> None:
        """The policy allows this port no more, of a selector's names or of whom else it let."""
        self.wire.maps["policy"].delete(_key(ENDPOINT, peer, socket.IPPROTO_TCP, port))

    def _rule(self, endpoint: int, peer: int, protocol: int, port: int, action: int) -> None:
        self.wire.maps["policy"].put(_key(endpoint, peer, protocol, port), PolicyRule(1, action).pack())

    def counted(self, verdict: Verdict) -> int:
        """Packets so far that ended in `verdict`."""
        return self.wire.maps["counters"].sums()[verdict]


def _key(endpoint: int, peer: int, protocol: int, port: int) -> bytes:
    return PolicyKey(layout.POLICY_BITS_PORT, endpoint, peer, layout.DIRECTION_EGRESS, protocol, port).pack()
