"""`python -m lab.kubelet PREFIX`: what kubelets tell the API server by themselves, for the nodes of one lab.

Every node that is booted and not frozen renews its Lease from its own network, so a pulled cable silences it as it
would a kubelet. A node that the API server does not know (its data was wiped) registers again, and one that was taken
for lost says that it is ready, and its pods with it. Else pods are not this process's business (pods.py), nor are nodes
with a real kubelet (containers.py).
"""

from __future__ import annotations

import datetime
import functools
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

from . import cgroups, objects
from .controlplane import ApiError, Client
from .lab import Lab
from .node import Boot, Node

RENEW_S = 2.0  # a kubelet renews every 10 s; a test that shortens the grace wants it sooner
LEASE_S = 40
TIMEOUT_S = 4.0


class Kubelet:
    """`connect` makes a client from the node's network."""

    def __init__(self, node: Node, connect: Callable[[], Client]) -> None:
        self._node, self._connect = node, connect
        self._client: Client | None = None
        self._boot: Boot | None = None  # the one that the client's connection belongs to

    def run(self) -> NoReturn:
        pause = threading.Event()
        while True:
            try:
                self.beat()
            except (ApiError, OSError, KeyError) as error:  # no API server, no network, not all of the API yet
                sys.stderr.write(f"{self._node.name}: {error}\n")
                self._hang_up()
            pause.wait(RENEW_S)

    def beat(self) -> None:
        """Say that the node lives, if it does."""
        boot = self._node.boot_state()
        if boot != self._boot:
            self._hang_up()
            self._boot = boot
        if boot is None or not boot.ready or cgroups.frozen(self._node.payload) or self._node.own_kubelet.exists():
            return
        if self._client is None:
            self._client = self._connect()
        self._client.apply(lease(self._node.name))
        self._register(self._client)

    def _register(self, client: Client) -> None:
        found = client.get("Node", "", self._node.name)
        if found is None:
            client.apply(objects.node(self._node.name, self._node.address, self._node.pod_cidr))
            return
        ready = [one["status"] for one in found["status"].get("conditions", []) if one["type"] == "Ready"]
        if ready == ["Unknown"]:  # False is somebody's word (Lab.set_node_ready), and stays
            client.set_status("Node", "", self._node.name, {"conditions": [objects.condition("Ready", True)]})
            self._vouch(client)

    def _vouch(self, client: Client) -> None:
        """Say again that pods are ready whose containers are; only the first is taken back when a node is lost."""
        for pod in client.list("Pod", fieldSelector=f"spec.nodeName={self._node.name}"):
            said = {one["type"]: one["status"] for one in pod["status"].get("conditions", [])}
            if said.get("ContainersReady") == "True" and said.get("Ready") != "True":
                conditions = [objects.condition(kind, True) for kind in ("ContainersReady", "Ready")]
                client.set_status("Pod", *objects.key(pod), {"conditions": conditions})

    def _hang_up(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


def lease(node: str) -> objects.Object:
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": node, "namespace": "kube-node-lease"},
        "spec": {"holderIdentity": node, "leaseDurationSeconds": LEASE_S, "renewTime": now},
    }


def main() -> None:
    lab = Lab(sys.argv[1], int(sys.argv[2]), source="kubernetes")
    with ThreadPoolExecutor(len(lab.nodes)) as threads:
        for node in lab.nodes:
            netns = lab.names.netns_path(node.name)
            connect = functools.partial(lab.controlplane.client, netns=netns, timeout_s=TIMEOUT_S)
            threads.submit(Kubelet(node, connect).run)


if __name__ == "__main__":
    main()
