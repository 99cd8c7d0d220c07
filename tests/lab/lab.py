"""The lab as one object: up, down, and everything a test does to it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from . import cgroups, faults, image, inventory, network, objects, pods, programs, tls
from .capture import Capture
from .cluster import ClusterApi
from .controlplane import ControlPlane, binaries
from .host import Host
from .names import RUN, Names
from .node import Node
from .objects import Api, Object, ObjectApi
from .pods import Pod
from .router import Router
from .shell import run, wait_until

CLIENTS = {"cli1": "192.168.86.50", "cli2": "192.168.86.51"}
CONTROLLER_ADDRESS = "192.168.86.10"
SOURCES = ("directory", "kubernetes")
# What the product's RBAC binds.
NODES_GROUP, INGRESS_GROUP = "netstack:nodes", "netstack:ingress"
KUBECONFIG_VALID_S = 24 * 3600


class InUse(Exception):
    """A lab of this prefix is up already."""


class Lab:
    """A LAN with nodes. As a context manager it is up inside and gone after.

    `up(keep=True)` leaves it up when the process ends, and `Lab.open(prefix)` gets hold of it from another.
    """

    def __init__(
        self, prefix: str = "lab", nodes: int = 3, *, source: str = "directory", node_grace_s: int = 40
    ) -> None:
        """`source` of the objects: "directory" or "kubernetes". node_grace_s, with the latter: how long a node is
        silent before the cluster takes it for lost."""
        if source not in SOURCES:
            raise ValueError(f"source {source!r}: one of {', '.join(SOURCES)}")
        self.names = Names(prefix)
        self.source, self._node_grace_s = source, node_grace_s
        self.nodes = [Node(self.names, number) for number in range(1, nodes + 1)]
        self.clients = [Host(self.names, network.Port(name, address)) for name, address in CLIENTS.items()]
        self.controller = Host(self.names, network.Port(inventory.CONTROLLER, CONTROLLER_ADDRESS))
        self.router = Router(self.names, network.Port("rtr", network.GATEWAY, gateway=None))
        self.api = self._object_api(self.names.run / "shared/names/hosts")
        self._claim: socket.socket | None = None

    # Life

    @classmethod
    def open(cls, prefix: str = "lab") -> Lab:
        """A lab that is up already. Raises FileNotFoundError."""
        facts = json.loads((Names(prefix).run / "lab.json").read_text())
        return cls(prefix, facts["nodes"], source=facts["source"], node_grace_s=facts["node_grace_s"])

    def up(self, *, keep: bool = False) -> None:
        """Make the lab and wait until its nodes are booted. What a dead owner left of it is removed first.

        Raises InUse if it is up, kept, or its owner lives. keep: stay up after this process.
        """
        image.build()
        if self.source == "kubernetes":
            binaries.programs()
        self._hold()
        try:
            self.sweep()
            self._make()
            grace = {"source": self.source, "node_grace_s": self._node_grace_s}
            facts = {"nodes": len(self.nodes), **grace, "keep": keep, "pid": os.getpid()}
            (self.names.run / "lab.json").write_text(json.dumps(facts))
        except BaseException:
            self.down()
            raise
        if keep:
            self._release()

    def down(self) -> None:
        """Remove the lab, in whatever state it is. Nothing of it is left."""
        self.sweep()
        self._release()

    def sweep(self) -> None:
        """Remove everything of this prefix."""
        cgroups.kill(self.names.cgroup)
        programs.keep(self.names.run / "nodes")
        _unmount_below(self.names.run)
        for netns in network.namespaces(self.names):
            network.ip([f"netns del {netns}"])
        cgroups.remove(self.names.cgroup)
        if self.names.run.exists():
            self.names.run.rmdir()
        with contextlib.suppress(OSError):  # there are other labs, or none was ever up
            RUN.rmdir()

    def __enter__(self) -> Lab:
        self.up()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.down()

    def _hold(self) -> None:
        """Own this prefix, until released or the process ends."""
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(self.names.claim)
        except OSError:
            claim.close()
            raise InUse(f"another process holds the lab {self.names.prefix!r}") from None
        self._claim = claim
        facts = self.names.run / "lab.json"
        if facts.exists() and json.loads(facts.read_text())["keep"]:
            self._release()
            raise InUse(f"the lab {self.names.prefix!r} is up")

    def _release(self) -> None:
        if self._claim is not None:
            self._claim.close()
            self._claim = None

    def _make(self) -> None:
        run_folder = self.names.run
        run_folder.mkdir(parents=True)
        run(["mount", "-t", "tmpfs", "-o", "size=8g,mode=755", f"lab-{self.names.prefix}", str(run_folder)])
        for folder in ("manifests", "shared", "captures"):
            (run_folder / folder).mkdir()
        (run_folder / "shared/names").mkdir()
        if self.source == "directory":
            self._register()
        (run_folder / "shared/resolv.conf").write_text(f"nameserver {network.GATEWAY}\n")
        tls.authority()
        network.make_lan(self.names)
        for node in self.nodes:
            node.prepare()
            node.start()
        for host in (self.router, self.controller, *self.clients):
            network.plug(self.names, host.port)
            cgroups.create(host.cgroup)
        inventory.write_proxy(self.names)
        self.router.start()
        if self.source == "kubernetes":
            self._start_cluster()
        self.router.wait_started()
        for node in self.nodes:
            node.wait_booted()

    def _object_api(self, names: Path) -> ObjectApi:
        return Api(self.names.manifests, names) if self.source == "directory" else ClusterApi(self.controlplane, names)

    def _register(self) -> None:
        self.api.apply([objects.namespace(name) for name in ("default", "kube-system")])
        self.api.apply([objects.node(node.name, node.address, node.pod_cidr) for node in self.nodes])

    def _start_cluster(self) -> None:
        self.controlplane.start()
        self.controlplane.apply_crds()
        for node in self.nodes:
            for user, group in ((node_user(node.name), NODES_GROUP), (ingress_user(node.name), INGRESS_GROUP)):
                self.controlplane.kubeconfig(user, [group], KUBECONFIG_VALID_S, inline=True)
        self._register()
        cgroups.spawn(
            [sys.executable, "-m", "lab.kubelet", self.names.prefix, str(len(self.nodes))],
            cgroup=f"{self.names.cgroup}/kubelet",
            log=self.names.run / "kubelet.log",
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )

    # Members

    @functools.cached_property
    def controlplane(self) -> ControlPlane:
        """The control plane, to stop, kill, restart or wipe. Raises LookupError with the directory source."""
        if self.source != "kubernetes":
            raise LookupError(f"the lab {self.names.prefix!r} has no control plane")
        return ControlPlane(
            self.names.run / "controlplane",
            netns=self.names.netns(self.controller.name),
            address=CONTROLLER_ADDRESS,
            cgroup=f"{self.names.cgroup}/controlplane",
            node_grace_s=self._node_grace_s,
        )

    def node(self, name: str) -> Node:
        return {node.name: node for node in self.nodes}[name]

    def client(self, number: int) -> Host:
        """LAN client 1 (.50) or 2 (.51)."""
        return self.clients[number - 1]

    def member(self, name: str) -> Node | Host:
        """A node (n1 ..), client (cli1, cli2), the controller (ctl) or the router (rtr)."""
        everyone: tuple[Node | Host, ...] = (*self.nodes, *self.clients, self.controller, self.router)
        for one in everyone:
            if one.name == name:
                return one
        raise KeyError(f"{name}: not one of {', '.join(one.name for one in everyone)}")

    # Cluster

    def apply(self, source: Path | str | Object | Iterable[Object]) -> list[Object]:
        """Create or replace objects: a manifest file, YAML text, or dictionaries. Returns them as stored."""
        return self.api.apply(source)

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete an object; `namespace` is "" for a cluster-scoped one."""
        self.api.delete(kind, namespace, name)

    def set_node_ready(self, node: str, ready: bool) -> None:
        """What the cluster thinks of a node; nothing does it by itself after a power cut."""
        self.api.set_node_ready(node, ready)

    def pod(
        self,
        node: str,
        namespace: str,
        name: str,
        labels: Mapping[str, str] | None = None,
        command: Sequence[str] = ("sleep", "infinity"),
        *,
        ports: Mapping[str, int | str] | None = None,
        host_network: bool = False,
        start: bool = True,
    ) -> Pod:
        """Create a pod on a node, and start it; ready when its TCP ports listen. `ports`: name -> 8080 or "53/UDP"."""
        if self.api.get("Namespace", "", namespace) is None:
            self.apply(objects.namespace(namespace))
        self.apply(pods.pod_object(node, namespace, name, labels or {}, command, ports or {}, host_network))
        pod = Pod(self.node(node), self.api, namespace, name)
        if start:
            pod.start()
        return pod

    def web_pod(
        self, node: str, namespace: str, name: str, labels: Mapping[str, str] | None = None, port: int = 8080
    ) -> Pod:
        """A pod that answers HTTP with who was asked and by whom (share/answer.py), and echoes TCP and UDP on 7."""
        serve = ["python3", "/opt/lab/share/answer.py", "--name", name, "--http", str(port), "--tcp", "7", "--udp", "7"]
        return self.pod(node, namespace, name, labels, serve, ports={"http": port, "echo": 7, "echo-udp": "7/UDP"})

    def dns_pod(self, node: str) -> Pod:
        """The cluster's DNS in place of CoreDNS: Services' names, the rest from the home router."""
        self.apply(pods.KUBE_DNS)
        return self.pod(
            node,
            "kube-system",
            f"coredns-{node}",
            {"k8s-app": "kube-dns"},
            [*pods.DNS_SERVER, f"--server={self.router.address}"],
            ports={"dns": "53/UDP", "dns-tcp": 53},
        )

    def find_pod(self, namespace: str, name: str) -> Pod:
        """A pod that exists. Raises KeyError."""
        found = self.api.get("Pod", namespace, name)
        if found is None:
            raise KeyError(f"Pod {namespace}/{name}")
        return Pod(self.node(found["spec"]["nodeName"]), self.api, namespace, name)

    # Failures

    def powercut(self, node: str) -> float:
        """The node's cable goes dead and all its processes with it. Returns when, in time.monotonic() seconds."""
        return self.node(node).cut()

    def boot(self, node: str, *, wait: bool = True) -> None:
        """Switch a node on that lost its power, or powered off."""
        self.node(node).start()
        if wait:
            self.node(node).wait_booted()

    def reboot(self, node: str) -> None:
        """An orderly restart, from inside; returns when the node is booted again."""
        self.node(node).reboot()

    def unplug(self, member: str) -> float:
        """Pull a member's cable. Returns when, in time.monotonic() seconds."""
        faults.cable(self.names, self.member(member).port, plugged=False)
        return time.monotonic()

    def plug(self, member: str) -> None:
        """Plug a member's cable in again."""
        faults.cable(self.names, self.member(member).port, plugged=True)

    def freeze(self, node: str) -> None:
        """Stop every process of the node where it stands. Its kernel goes on: attached programs still see packets."""
        cgroups.freeze(self.node(node).payload, True)

    def thaw(self, node: str) -> None:
        """Let a frozen node go on."""
        cgroups.freeze(self.node(node).payload, False)

    def loss(self, member: str, percent: int) -> None:
        """Lose this share of the frames on the member's cable, in each direction; 0 mends it."""
        faults.loss(self.names, self.member(member).port, percent)

    # Looking

    def capture(self, where: str | Pod, expression: str = "") -> Capture:
        """Record what passes a cable, by its member's name ("n1"); a device of a node ("n1/veth0"); or a pod's eth0."""
        if isinstance(where, Pod):
            label, netns, device = f"{where.namespace}.{where.name}", where.netns, "eth0"
        elif "/" in where:
            member, _, device = where.partition("/")
            label, netns = where.replace("/", "."), self.names.netns_path(member)
        else:
            label, (netns, device) = where, faults.link(self.names, self.member(where).port)
        cgroup = f"{self.names.cgroup}/captures"
        cgroups.create(cgroup)
        pcap = self.names.run / "captures" / f"{label}-{time.monotonic_ns()}.pcap"
        return Capture(netns, device, expression, pcap, cgroups.members(cgroup))

    def write_inventory(self, path: Path) -> None:
        """The inventory, with kubeconfigs for each node if there is a control plane."""
        kubeconfigs = {}
        if self.source == "kubernetes":
            user = self.controlplane.user
            kubeconfigs = {
                node.name: {
                    "netstack_kubeconfig_source": user(node_user(node.name)) / "kubeconfig",
                    "netstack_ingress_kubeconfig_source": user(ingress_user(node.name)) / "kubeconfig",
                }
                for node in self.nodes
            }
        inventory.write(self.names, self.nodes, kubeconfigs, path)


def node_user(node: str) -> str:
    """The user as which a node's agent and announcer read the API."""
    return f"netstack:node:{node}"


def ingress_user(node: str) -> str:
    """The user as which its ingress does."""
    return f"netstack:ingress:{node}"


def labs() -> Sequence[Lab]:
    """Every lab of this machine that is up, by prefix."""
    return [Lab.open(facts.parent.name) for facts in sorted(RUN.glob("*/lab.json"))]


def _unmount_below(folder: Path) -> None:
    """Unmount everything mounted at or below the folder, innermost first."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    inside = [mount for mount in mounts if mount == str(folder) or mount.startswith(f"{folder}/")]
    for mount in reversed(inside):
        # busy until the last process that was killed, or ssh that lost its connection, has let go
        wait_until(lambda mount=mount: run(["umount", mount], check=False).returncode == 0, f"umount {mount}")  # type: ignore[misc]
