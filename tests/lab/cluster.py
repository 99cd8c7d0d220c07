"""The lab's API when it is a real one: the same calls as objects.Api, answered by the control plane.

What the folder of manifests does on the spot, controllers do here a moment later; so a call that changes Services or
Pods returns when the controller manager's EndpointSlices say what endpoints.py derives from the same objects. That
also holds the lab's own derivation to the real one's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .controlplane import ApiError, Client, ControlPlane
from .endpoints import hosts, slices
from .objects import CLUSTER_SCOPED, Object, condition, documents, key, namespace, write_if_changed
from .shell import wait_until

NAME_LABEL = "kubernetes.io/service-name"
MANAGER_LABEL, MANAGER = "endpointslice.kubernetes.io/managed-by", "endpointslice-controller.k8s.io"
CONTROLLERS_TIMEOUT_S = 60.0
MOVES_ENDPOINTS = {"Service", "Pod", "Node", "EndpointSlice", "Namespace"}

Endpoints = dict[tuple[str, str], set[tuple[str, bool]]]  # Service -> its addresses, and whether each is ready


class ClusterApi:
    """`names` is the hosts file of the cluster's DNS, which follows the objects that change through here."""

    def __init__(self, plane: ControlPlane, names: Path) -> None:
        self.plane, self.names = plane, names
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = self.plane.client()
        return self._client

    def apply(self, source: Path | str | Object | Iterable[Object]) -> list[Object]:
        """Create objects, or make them what they are said to be; missing namespaces too. Returns them as stored."""
        wanted = list(documents(source))
        namespaced = [one for one in wanted if one["kind"] not in CLUSTER_SCOPED]
        for name in sorted({one["metadata"].get("namespace", "default") for one in namespaced}):
            self._have_namespace(name)
        applied = [self._apply(one) for one in wanted]
        self._settle(one["kind"] for one in wanted)
        return applied

    def set_status(self, kind: str, namespace: str, name: str, status: Mapping[str, Any]) -> None:
        """Replace fields of an object's status. Raises KeyError if there is no such object."""
        try:
            self.client.set_status(kind, namespace, name, status)
        except ApiError as error:
            if error.code != 404:
                raise
            raise KeyError(f"{kind} {namespace}/{name}") from None
        self._settle([kind])

    def set_node_ready(self, name: str, ready: bool) -> None:
        """What the node's kubelet says of the node, and of all its pods."""
        self.client.set_status("Node", "", name, {"conditions": [condition("Ready", ready)]})
        for pod in self.client.list("Pod", fieldSelector=f"spec.nodeName={name}"):
            self.client.set_status("Pod", *key(pod), {"conditions": [condition("Ready", ready)]})
        self._settle(["Pod"])

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete an object, and wait until it is gone. Raises FileNotFoundError."""
        try:
            self.client.delete(kind, namespace, name)
        except ApiError as error:
            if error.code != 404:
                raise
            raise FileNotFoundError(f"{kind} {namespace}/{name}") from None
        self._settle([kind])

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        return self.client.get(kind, namespace, name)

    def list(self, kind: str) -> Sequence[Object]:
        return self.client.list(kind)

    def _have_namespace(self, name: str) -> None:
        """Pods are let in once the namespace has its service account."""
        if self.get("Namespace", "", name) is None:
            self.client.apply(namespace(name))
        account = ("ServiceAccount", name, "default")
        wait_until(lambda: self.get(*account) is not None, f"the service account of {name}", CONTROLLERS_TIMEOUT_S)

    def _apply(self, document: Object) -> Object:
        try:
            (stored,) = self.client.apply(document)
        except ApiError as error:
            # A pod's spec cannot change; whoever applies another one means another pod.
            if document["kind"] != "Pod" or error.reason != "Invalid" or self.get("Pod", *key(document)) is None:
                raise
            self.client.delete("Pod", *key(document))
            (stored,) = self.client.apply(document)
        return stored

    def _settle(self, kinds: Iterable[str]) -> None:
        if MOVES_ENDPOINTS.isdisjoint(kinds):
            return

        def caught_up() -> bool:
            services, found = self.list("Service"), self.list("EndpointSlice")
            made = [one for one in found if one["metadata"].get("labels", {}).get(MANAGER_LABEL) == MANAGER]
            nodes = {node["metadata"]["name"] for node in self.list("Node")}
            pods = [pod for pod in self.list("Pod") if pod["spec"].get("nodeName") in nodes]
            if listed(made) != listed(slices(services, pods)):
                return False
            write_if_changed(self.names, hosts(services, found))
            return True

        wait_until(caught_up, "the EndpointSlices to follow", CONTROLLERS_TIMEOUT_S, step_s=0.05)


def listed(endpoint_slices: Iterable[Object]) -> Endpoints:
    """Services with at least one endpoint."""
    found: Endpoints = {}
    for one in endpoint_slices:
        meta = one["metadata"]
        for endpoint in one.get("endpoints") or []:
            ready = endpoint.get("conditions", {}).get("ready", True)
            entries = {(address, ready) for address in endpoint["addresses"]}
            found.setdefault((meta["namespace"], meta["labels"][NAME_LABEL]), set()).update(entries)
    return found
