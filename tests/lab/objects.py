"""The lab's API server: a folder with one file an object, which netstack's directory source watches in every node.

`Api` does to an object what the API server does before anybody else sees it (uid, time of creation, a Service's
cluster address and node ports), keeps what an author does not write (status, addresses) when an object is applied
again, and plays the controller that keeps EndpointSlices. Files change by rename, so no half-written one is ever read.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Protocol

import yaml

from .endpoints import hosts, slices

Object = dict[str, Any]

CLUSTER_SCOPED = {
    "Node",
    "Namespace",
    "IngressClass",
    "CiliumClusterwideNetworkPolicy",
    "CiliumCIDRGroup",
    "ClusterIssuer",
    "GatewayClass",
}
CLUSTER_CIDR, SERVICE_CIDR = "10.244.0.0/16", "10.96.0.0/12"
FIRST_CLUSTER_IP = IPv4Address("10.96.0.16")  # below are those with a fixed role
FIRST_NODE_PORT = 30000

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def documents(source: Path | str | Object | Iterable[Object]) -> Iterator[Object]:
    """Objects of a manifest file, a YAML text, one object or several; Lists unpacked."""
    if isinstance(source, Path):
        source = source.read_text()
    if isinstance(source, str):
        source = (document for document in yaml.load_all(source, Loader=Loader) if document)
    for one in [source] if isinstance(source, dict) else source:
        if one["kind"] == "List":
            yield from documents(one["items"])
        else:
            yield one


def key(one: Object) -> tuple[str, str]:
    """Namespace ("" if it has none) and name."""
    return one["metadata"].get("namespace", ""), one["metadata"]["name"]


def condition(kind: str, holds: bool) -> Object:
    return {"type": kind, "status": str(holds)}


def write_if_changed(path: Path, text: str) -> None:
    """Replace the file by rename, unless it holds this text already."""
    if not path.exists() or path.read_text() != text:
        unfinished = path.with_name(f".{path.name}")
        unfinished.write_text(text)
        unfinished.rename(path)


class ObjectApi(Protocol):
    """What a lab does with objects, whoever keeps them."""

    def apply(self, source: Path | str | Object | Iterable[Object]) -> list[Object]: ...
    def set_status(self, kind: str, namespace: str, name: str, status: Mapping[str, Any]) -> None: ...
    def set_node_ready(self, name: str, ready: bool) -> None: ...
    def delete(self, kind: str, namespace: str, name: str) -> None: ...
    def get(self, kind: str, namespace: str, name: str) -> Object | None: ...
    def list(self, kind: str) -> Sequence[Object]: ...


class Api:
    """`folder` holds the objects; `names` is the hosts file of the cluster's DNS, which follows them."""

    def __init__(self, folder: Path, names: Path) -> None:
        self.folder, self.names = folder, names

    def apply(self, source: Path | str | Object | Iterable[Object]) -> list[Object]:
        """Create or replace objects; returns them as they are now."""
        applied = [self._put(self._admit(document)) for document in documents(source)]
        self.reconcile()
        return applied

    def set_status(self, kind: str, namespace: str, name: str, status: Mapping[str, Any]) -> None:
        """Replace fields of an object's status. Raises KeyError if there is no such object."""
        found = self.get(kind, namespace, name)
        if found is None:
            raise KeyError(f"{kind} {namespace}/{name}")
        self._put({**found, "status": {**found.get("status", {}), **status}})
        self.reconcile()

    def set_node_ready(self, name: str, ready: bool) -> None:
        """What the node lifecycle controller concludes some 40 s after it last heard of a kubelet: of the node, and of
        all its pods."""
        self.set_status("Node", "", name, {"conditions": [condition("Ready", ready)]})
        for pod in self.list("Pod"):
            if pod["spec"].get("nodeName") == name:
                self.set_status("Pod", *key(pod), {"conditions": [condition("Ready", ready)]})

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete an object; `namespace` is "" for a cluster-scoped one. Raises FileNotFoundError."""
        self._path(kind, namespace, name).unlink()
        self.reconcile()

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        try:
            found: Object = yaml.load(self._path(kind, namespace, name).read_text(), Loader=Loader)
        except FileNotFoundError:
            return None
        return found

    def list(self, kind: str) -> Sequence[Object]:
        paths = sorted(self.folder.glob(f"{kind.lower()}.*.yaml"))
        return [yaml.load(path.read_text(), Loader=Loader) for path in paths]

    def reconcile(self) -> None:
        """Let EndpointSlices and the cluster's names follow Services and Pods."""
        services = self.list("Service")
        wanted = {
            (one["metadata"]["namespace"], one["metadata"]["name"]): one for one in slices(services, self.list("Pod"))
        }
        for old in self.list("EndpointSlice"):
            manager = old["metadata"].get("labels", {}).get("endpointslice.kubernetes.io/managed-by")
            if manager == "lab" and key(old) not in wanted:
                self._path("EndpointSlice", *key(old)).unlink()
        for one in wanted.values():
            self._put(self._admit(one))
        write_if_changed(self.names, hosts(services, self.list("EndpointSlice")))

    def _path(self, kind: str, namespace: str, name: str) -> Path:
        return self.folder / f"{kind}.{namespace or '_'}.{name}.yaml".lower()

    def _put(self, one: Object) -> Object:
        path = self._path(one["kind"], *key(one))
        write_if_changed(path, yaml.dump(one, Dumper=Dumper, sort_keys=False))
        return one

    def _admit(self, document: Object) -> Object:
        """The object as the API server would store it."""
        kind, meta = document["kind"], dict(document["metadata"])
        if kind not in CLUSTER_SCOPED:
            meta.setdefault("namespace", "default")
        old = self.get(kind, meta.get("namespace", ""), meta["name"]) or {}
        born = old.get("metadata", {})
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        meta["uid"] = born.get("uid") or str(uuid.uuid4())
        meta["creationTimestamp"] = born.get("creationTimestamp") or now
        one = {**document, "metadata": meta}
        if kind == "Service":
            one["spec"] = self._service(dict(one.get("spec", {})), old.get("spec", {}))
        if "status" in old and "status" not in one:
            one["status"] = old["status"]
        return one

    def _service(self, spec: Object, old: Object) -> Object:
        """The spec with the defaults of a Service, and addresses from the cluster's ranges."""
        spec.setdefault("type", "ClusterIP")
        if spec["type"] == "ExternalName":
            return spec
        spec.setdefault("clusterIP", old.get("clusterIP") or self._free_cluster_ip())
        spec.setdefault("clusterIPs", [spec["clusterIP"]])
        spec.setdefault("ipFamilies", ["IPv4"])
        spec.setdefault("ipFamilyPolicy", "SingleStack")
        spec.setdefault("sessionAffinity", "None")
        spec.setdefault("internalTrafficPolicy", "Cluster")
        outside = spec["type"] in ("NodePort", "LoadBalancer")
        if outside:
            spec.setdefault("externalTrafficPolicy", "Cluster")
        given = {port["port"]: port["nodePort"] for port in old.get("ports", []) if "nodePort" in port}
        taken = {port.get("nodePort") for other in self.list("Service") for port in other["spec"].get("ports", [])}
        ports = []
        for port in spec.get("ports", []):
            port = {"protocol": "TCP", "targetPort": port["port"], **port}
            if outside and spec.get("allocateLoadBalancerNodePorts", True) and "nodePort" not in port:
                free = next(number for number in range(FIRST_NODE_PORT, 32768) if number not in taken)
                port["nodePort"] = given.get(port["port"], free)
                taken.add(port["nodePort"])
            ports.append(port)
        return {**spec, "ports": ports}

    def _free_cluster_ip(self) -> str:
        taken = {other["spec"].get("clusterIP") for other in self.list("Service")}
        candidate = FIRST_CLUSTER_IP
        while str(candidate) in taken:
            candidate += 1
        return str(candidate)


def node(name: str, address: str, pod_cidr: str) -> Object:
    """The Node object that a kubelet registers and the controller gives a PodCIDR."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}},
        "spec": {"podCIDR": pod_cidr, "podCIDRs": [pod_cidr]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}],
            "conditions": [condition("Ready", True)],
        },
    }


def namespace(name: str) -> Object:
    labels = {"kubernetes.io/metadata.name": name}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
