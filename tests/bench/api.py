"""What the `kubernetes` source costs, and how fast it is, on a real API server.

One node with the real loader and agent (instruments.board), the control plane on its LAN. `object_to_kernel` counts
from the moment a client begins to write an EndpointSlice until the pinned map has its backend; first in a home's
cluster, then in a large one. `initial_sync` counts from the start of an agent that knows nothing until the last service
is in the map. The requests of a node at rest are counted by the API server itself, for all daemons of three lab nodes.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import yaml

from bench.figures import Area, Figure, Measured, Settings
from bench.idle import megabytes_of
from e2e import demo
from instruments.board import LAN, ROOT, Board
from lab import Lab
from lab.controlplane import Client, ControlPlane, skip_reason
from lab.shell import wait_until
from netstack.core.address import pack, unpack
from netstack.kernel import layout
from netstack.kernel.bpf import Map

USER, GROUP = "netstack:node:n1", "netstack:nodes"
NAMESPACE = "bench"
HOME = (100, 50)
LARGE = (5000, 10000)
"""Services, pods."""
PODS_A_NODE = 100
WRITERS = 4
"""Connections that fill the cluster."""
CLUSTER_IPS, POD_IPS = IPv4Address("10.97.0.0"), IPv4Address("10.244.8.0")
PROBE_IP, PROBE_PORT = "10.96.200.1", 80
CHANGES = 200
SYNC_S, REST_S = 120.0, 60.0
QUIET_S = 2.0
SCHEMA = "netstack-nodes"

_WRITTEN = "from writing an EndpointSlice to its backend in the kernel"
FIGURES = (
    Figure("api.object_to_kernel_p50", "ms", f"{_WRITTEN}, 100 services and 50 pods", target=200),
    Figure(
        "api.object_to_kernel_p99", "ms", f"the same, the slowest of 100 (of {CHANGES})", statistic="p99", target=200
    ),
    Figure("api.object_to_kernel_p50.5000svc", "ms", f"{_WRITTEN}, 5,000 services and 10,000 pods"),
    Figure("api.object_to_kernel_p99.5000svc", "ms", "the same, the slowest of 100", statistic="p99"),
    Figure(
        "api.initial_sync_5000svc_10000pod", "s", "from the agent's start to the last service in the kernel", target=15
    ),
    Figure("pss.agent.api_10000pods", "MB", "memory of the agent after that (PSS)"),
    Figure("api.requests_per_node_minute", "1/min", "requests of one node's daemons, nothing happening"),
)


def measure(wanted: frozenset[str], settings: Settings) -> Iterator[Measured]:
    lacking = skip_reason()
    if lacking:
        settings.say(f"{', '.join(sorted(wanted))}: left out: {lacking}")
        return
    large = {name for name in wanted if "5000svc" in name or "10000pods" in name}
    if wanted - large - {"api.requests_per_node_minute"}:
        with Site() as site:
            settings.say("filling a home's cluster")
            site.fill(*HOME)
            site.begin()
            delays = site.delays(CHANGES)
        for name in ("p50", "p99"):
            yield Measured(f"api.object_to_kernel_{name}", delays)
    if large:
        yield from _large(settings)
    if "api.requests_per_node_minute" in wanted:
        yield Measured("api.requests_per_node_minute", list(requests(settings)))


def _large(settings: Settings) -> Iterator[Measured]:
    with Site() as site:
        settings.say(f"filling a cluster of {LARGE[0]} services and {LARGE[1]} pods")
        began = time.monotonic()
        site.fill(*LARGE)
        settings.say(f"filled in {time.monotonic() - began:.0f} s")
        syncs, memory = [], []
        for number in range(settings.repeats):
            syncs.append(site.begin())
            memory.append(site.megabytes())
            settings.say(f"first sync {number + 1}: {syncs[-1]:.1f} s, {memory[-1]:.0f} MB")
            if number + 1 < settings.repeats:
                site.forget()
        delays = site.delays(CHANGES)
    yield Measured("api.initial_sync_5000svc_10000pod", syncs)
    yield Measured("pss.agent.api_10000pods", memory)
    for name in ("p50", "p99"):
        yield Measured(f"api.object_to_kernel_{name}.5000svc", delays)


class Site:
    """A board and a control plane on its LAN."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._services = 0

    def __enter__(self) -> Site:
        try:
            self._make()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _make(self) -> None:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="netstack-bench-")))
        (folder / "board").mkdir()
        kubeconfig = ControlPlane(folder / "plane").user(USER) / "kubeconfig"
        self.board = Board(folder / "board", source="kubernetes", kubeconfig=str(kubeconfig))
        self._resize()
        self._stack.enter_context(self.board)
        plane = ControlPlane(folder / "plane", netns=self.board.lan, address=LAN, node_grace_s=3600)
        self.plane = self._stack.enter_context(plane)
        self.plane.apply_crds()
        self.plane.kubeconfig(USER, [GROUP])
        self.client = self.plane.client()
        self.board.load()

    def _resize(self) -> None:
        """The board's maps are small; these hold the large cluster."""
        path = self.board.folder / "agent.yaml"
        config = yaml.safe_load(path.read_text())
        config["datapath"]["sizes"] = {"services": 1 << 17, "slots": 1 << 20, "backends": 1 << 15}
        path.write_text(yaml.safe_dump(config))

    def fill(self, services: int, pods: int) -> None:
        fill(self.plane, services, pods)
        self._services = services

    # ---- the agent ----

    def begin(self) -> float:
        """Start the agent; seconds until the last service is in the kernel."""
        began = time.monotonic()
        self.board.start()
        wait_until(lambda: self._ports() >= self._services + 1, "the first sync", SYNC_S, step_s=0.02)
        return time.monotonic() - began

    def forget(self) -> None:
        """The agent gone with all that it knew: its folders, and the maps."""
        self.board.stop()
        config = str(self.board.folder / "agent.yaml")
        loader = ["env", f"PYTHONPATH={ROOT / 'daemons/src'}", "python3", "-m", "netstack.kernel.loader"]
        self.board.run(*loader, "--config", config, "--detach", check=True)
        for path in sorted((self.board.folder / "state").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        self.board.load()

    def megabytes(self) -> float:
        assert self.board.agent is not None
        time.sleep(QUIET_S)  # what the first compile left is collected
        return megabytes_of([self.board.agent.pid])

    def map(self, name: str) -> Map:
        """A pinned map, through the agent's own view of the board's bpffs."""
        assert self.board.agent is not None
        return Map.open(Path(f"/proc/{self.board.agent.pid}/root{self.board.folder}/bpf/netstack/maps/{name}"))

    def _ports(self) -> int:
        """ClusterIP entries of the services map that have backends."""
        with self.map("services") as services:
            return sum(1 for _, value in services.items() if layout.Service.unpack(value).backends)

    def delays(self, changes: int) -> list[float]:
        """Milliseconds from writing to kernel, one change after another."""
        found = []
        key = layout.ServiceKey(pack(PROBE_IP), PROBE_PORT, 6, layout.SCOPE_CLUSTER).pack()
        with self.map("services") as services, self.map("slots") as slots, self.map("backends") as backends:

            def behind() -> str:
                value = services.get(key)
                first = layout.Service.unpack(value).first if value else 0
                backend = backends.get(slots.get(layout.Number(first).pack()) or bytes(4))
                return unpack(layout.Backend.unpack(backend).address) if backend else ""

            for number in range(1, changes + 1):
                wanted = probe_slice(number)
                address = wanted["endpoints"][0]["addresses"][0]
                began = time.monotonic()
                self.client.apply(wanted)
                wait_until(lambda address=address: behind() == address, address, 60, step_s=0.0005)  # type: ignore[misc]
                found.append(1000 * (time.monotonic() - began))
        return found


# ---- the cluster ----


def fill(plane: ControlPlane, services: int, pods: int) -> None:
    """Objects as they are in a cluster: two pods behind each service, a hundred on each node."""
    client = plane.client()
    client.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    account = ("ServiceAccount", NAMESPACE, "default")
    wait_until(lambda: client.get(*account) is not None, "the service account", 60)
    _create(plane, [node(number) for number in range(max(1, pods // PODS_A_NODE))])
    _create(plane, [pod(number) for number in range(pods)])
    _create(plane, [service(number) for number in range(services)])
    _create(plane, [endpoint_slice(number, pods) for number in range(services)])
    client.apply([probe(), probe_slice(0)])
    client.close()


def _create(plane: ControlPlane, objects: Sequence[dict[str, Any]]) -> None:
    with ThreadPoolExecutor(WRITERS) as threads:
        for done in [threads.submit(_post, plane, objects[part::WRITERS]) for part in range(WRITERS)]:
            done.result()


def _post(plane: ControlPlane, objects: Sequence[dict[str, Any]]) -> None:
    client = plane.client()
    for one in objects:
        at = client.resource(one["kind"])
        client.request("POST", at.path(one["metadata"].get("namespace", "")), one)
        if "status" in one:
            client.set_status(one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"], one["status"])
    client.close()


# ---- objects ----


def node(number: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": f"n{number + 1}"},
        "status": {"addresses": [{"type": "InternalIP", "address": str(IPv4Address("192.168.86.21") + number)}]},
    }


def pod(number: int) -> dict[str, Any]:
    address = str(POD_IPS + number)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"p{number}",
            "namespace": NAMESPACE,
            "labels": {"app": f"a{number // 10}", "tier": f"t{number % 3}"},
        },
        "spec": {"nodeName": f"n{number // PODS_A_NODE + 1}", "containers": [{"name": "c", "image": "bench"}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    }


def service(number: int) -> dict[str, Any]:
    address = str(CLUSTER_IPS + number)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"s{number}", "namespace": NAMESPACE},
        "spec": {"clusterIP": address, "ports": [{"port": 80, "targetPort": 8080}]},
    }


def endpoint_slice(number: int, pods: int) -> dict[str, Any]:
    behind = [2 * number % pods, (2 * number + 1) % pods]
    return _slice(f"s{number}", [(str(POD_IPS + one), f"n{one // PODS_A_NODE + 1}") for one in behind])


def probe() -> dict[str, Any]:
    spec = {"clusterIP": PROBE_IP, "ports": [{"port": PROBE_PORT, "targetPort": 8080}]}
    metadata = {"name": "probe", "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def probe_slice(number: int) -> dict[str, Any]:
    """One backend, another one for every number."""
    return _slice("probe", [(f"10.244.1.{10 + number % 200}", "n1")])


def _slice(name: str, endpoints: Sequence[tuple[str, str]]) -> dict[str, Any]:
    labels = {"kubernetes.io/service-name": name}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": [
            {"addresses": [address], "nodeName": on, "conditions": {"ready": True}} for address, on in endpoints
        ],
    }


# ---- requests ----


def requests(settings: Settings) -> Iterator[float]:
    """Requests a minute and node, in each of a few minutes; counted by a FlowSchema of the nodes' own."""
    with Lab("benchapi", source="kubernetes") as lab:
        settings.say("installing netstack")
        demo.site(lab)
        client = lab.controlplane.client()
        client.apply(schema())
        for lab_node in lab.nodes:
            demo.wait_ready(lab_node)
        settings.say(f"counting requests for {settings.repeats} minutes")
        before = dispatched(client)
        for _ in range(settings.repeats):
            time.sleep(REST_S)
            after = dispatched(client)
            yield (after - before) / len(lab.nodes) * 60 / REST_S
            before = after
        client.close()


def schema() -> dict[str, Any]:
    """A class of requests of its own, for the nodes' group (Kubernetes API Priority and Fairness)."""
    everything = {
        "resourceRules": [
            {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": True, "namespaces": ["*"]}
        ],
        "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
        "subjects": [{"kind": "Group", "group": {"name": GROUP}}],
    }
    return {
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1",
        "kind": "FlowSchema",
        "metadata": {"name": SCHEMA},
        "spec": {
            "matchingPrecedence": 100,
            "priorityLevelConfiguration": {"name": "workload-high"},
            "distinguisherMethod": {"type": "ByUser"},
            "rules": [everything],
        },
    }


def dispatched(client: Client) -> int:
    """Requests of that class so far."""
    text = client.request("GET", "/metrics", accept="text/plain")
    pattern = rf'^apiserver_flowcontrol_dispatched_requests_total{{[^}}]*flow_schema="{SCHEMA}"[^}}]*}} (\S+)$'
    return round(sum(float(number) for number in re.findall(pattern, text, re.MULTILINE)))


AREA = Area(FIGURES, measure)
