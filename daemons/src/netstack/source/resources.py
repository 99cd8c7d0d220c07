"""The kinds of the API that are read or written: where they live, and what of them is kept.

Before anything is kept, an object is cut down to what a model reads (netstack.source.parse): managedFields,
containers and images are most of a Pod or Node and decide nothing here. Fields of built-in kinds that are not named
here are dropped, not refused: the API server has checked them, and a newer one may have more. What users write for
netstack and its peers (policies, pools) stays whole, so that the compiler judges every field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from sys import intern
from typing import Any

from netstack.source.depth import shallow

Raw = Mapping[str, Any]
ALL = ("",)
"""Every annotation."""
STATIC_UID = "kubernetes.io/config.hash"
"""Annotation of the object that stands for a static pod: the uid by which its kubelet, and so the runtime, knows it."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind. `crd`: it may be missing, and may vanish with its definition."""

    kind: str
    version: str
    plural: str
    namespaced: bool
    cut: Callable[[Raw], dict[str, Any]]
    """Object -> the parts beside its head that are kept."""
    annotations: tuple[str, ...] = ()
    """Prefixes of the annotations that are kept."""
    crd: bool = False
    uid: bool = False
    """It is kept: objects of ours may belong to one of it, or one has to be told from an earlier one of its name."""
    older: str = ""
    """The version in which a definition from before serves it, and that one alone."""

    def path(self, namespace: str = "", name: str = "", part: str = "", *, version: str = "") -> str:
        """In `version`, or else in the one that is read and written."""
        version = version or self.version
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        scope = f"/namespaces/{namespace}" if namespace else ""
        return f"{root}{scope}/{self.plural}" + (f"/{name}" if name else "") + (f"/{part}" if part else "")

    @property
    def definition(self) -> str:
        """Name of the CustomResourceDefinition."""
        return f"{self.plural}.{self.version.partition('/')[0]}"

    def trim(self, raw: Raw) -> dict[str, Any]:
        """The object as it is kept: a valid manifest of its kind. TypeError or AttributeError: it is no such object."""
        metadata = raw["metadata"]
        head = {"name": metadata["name"]} | {
            name: metadata[name] for name in ("namespace", "creationTimestamp") if metadata.get(name)
        }
        if self.uid and metadata.get("uid"):
            head["uid"] = metadata["uid"]
        if metadata.get("labels"):  # the same few strings on thousands of objects
            head["labels"] = {intern(key): intern(value) for key, value in metadata["labels"].items()}
        notes = {
            key: value for key, value in (metadata.get("annotations") or {}).items() if key.startswith(self.annotations)
        }
        notes.pop("kubectl.kubernetes.io/last-applied-configuration", None)
        if notes:
            head["annotations"] = notes
        return {"apiVersion": self.version, "kind": self.kind, "metadata": head, **self.cut(raw)}


@dataclass(frozen=True, slots=True)
class Want:
    """A kind that a daemon needs, and which objects of it: of one namespace, of one name in it. `status`: it also
    writes their status."""

    kind: str
    fields: str = ""
    labels: str = ""
    status: bool = False
    namespace: str = ""
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name or '*'}" if self.namespace else self.kind

    @property
    def key(self) -> str:
        """What tells it from others, as the name of a folder."""
        return ".".join(filter(None, (self.kind.lower(), self.namespace, self.name)))

    @property
    def resource(self) -> Resource:
        return RESOURCES[self.kind]

    @property
    def selectors(self) -> dict[str, str]:
        """As query parameters."""
        name = f"metadata.name={self.name}" if self.name else ""
        selectors = {"fieldSelector": ",".join(filter(None, (name, self.fields))), "labelSelector": self.labels}
        return {parameter: text for parameter, text in selectors.items() if text}


def _some(data: Any, *names: str) -> dict[str, Any]:
    return {name: data[name] for name in names if data.get(name) is not None}


def _parts(**parts: Any) -> dict[str, Any]:
    return {name: part for name, part in parts.items() if part}


def _whole(raw: Raw) -> dict[str, Any]:
    return {name: shallow(raw[name]) for name in ("spec", "specs") if name in raw}


def _nothing(raw: Raw) -> dict[str, Any]:
    return {}


SERVICE = (
    *("type", "clusterIP", "clusterIPs", "externalIPs", "loadBalancerIP", "loadBalancerClass", "selector"),
    *("sessionAffinity", "sessionAffinityConfig", "externalTrafficPolicy", "internalTrafficPolicy", "ipFamilies"),
    *("ipFamilyPolicy", "loadBalancerSourceRanges", "publishNotReadyAddresses"),
)


def _service(raw: Raw) -> dict[str, Any]:
    spec = raw.get("spec") or {}
    ports = [_some(port, "name", "protocol", "port", "targetPort", "nodePort") for port in spec.get("ports") or ()]
    balancer = _some((raw.get("status") or {}).get("loadBalancer") or {}, "ingress")
    return {"spec": _some(spec, *SERVICE) | _parts(ports=ports)} | _parts(status=_parts(loadBalancer=balancer))


def _endpoint_slice(raw: Raw) -> dict[str, Any]:
    endpoints = [
        _some(endpoint, "addresses", "conditions", "nodeName")
        | _parts(targetRef=_some(endpoint.get("targetRef") or {}, "kind", "namespace", "name"))
        for endpoint in raw.get("endpoints") or ()
    ]
    ports = [_some(port, "name", "protocol", "port") for port in raw.get("ports") or ()]
    return _some(raw, "addressType") | {"endpoints": endpoints, "ports": ports}


def _node(raw: Raw) -> dict[str, Any]:
    status = raw.get("status") or {}
    addresses = [item for item in status.get("addresses") or () if item.get("type") == "InternalIP"]
    conditions = [
        _some(item, "type", "status")
        for item in status.get("conditions") or ()
        if item.get("type") == "NetworkUnavailable"
    ]
    kept = _parts(addresses=addresses, conditions=conditions)
    return {"spec": _some(raw.get("spec") or {}, "podCIDR", "podCIDRs")} | _parts(status=kept)


def _pod(raw: Raw) -> dict[str, Any]:
    spec, status = raw.get("spec") or {}, raw.get("status") or {}
    sidecars = [item for item in spec.get("initContainers") or () if item.get("restartPolicy") == "Always"]
    ports = [
        _some(port, "name", "protocol", "containerPort")
        for container in (*(spec.get("containers") or ()), *sidecars)
        for port in container.get("ports") or ()
    ]
    kept = _some(spec, "nodeName", "hostNetwork", "serviceAccountName") | _parts(
        containers=[{"ports": ports}] if ports else []
    )
    return {"spec": {key: intern(v) if isinstance(v, str) else v for key, v in kept.items()}} | _parts(
        status=_some(status, "phase", "podIP", "podIPs")
    )


def _ingress(raw: Raw) -> dict[str, Any]:
    status = _parts(loadBalancer=_some((raw.get("status") or {}).get("loadBalancer") or {}, "ingress"))
    spec = _some(raw.get("spec") or {}, "ingressClassName", "rules", "tls", "defaultBackend")
    return {"spec": spec} | _parts(status=status)


def _ingress_class(raw: Raw) -> dict[str, Any]:
    return {"spec": _some(raw.get("spec") or {}, "controller")}


def _secret(raw: Raw) -> dict[str, Any]:
    return _some(raw, "type") | _parts(data=_some(raw.get("data") or {}, "tls.crt", "tls.key", "ca.crt"))


OURS = ("netstack.kubelab.io/",)
CILIUM, METALLB = "cilium.io/v2", "metallb.io/v1beta1"
RESOURCES = {
    resource.kind: resource
    for resource in (
        Resource("Service", "v1", "services", True, _service, ("metallb.io/", "metallb.universe.tf/"), uid=True),
        Resource("EndpointSlice", "discovery.k8s.io/v1", "endpointslices", True, _endpoint_slice),
        Resource("Node", "v1", "nodes", False, _node),
        Resource("Pod", "v1", "pods", True, _pod, (STATIC_UID,), uid=True),
        Resource("Namespace", "v1", "namespaces", False, _nothing, OURS),
        Resource("Ingress", "networking.k8s.io/v1", "ingresses", True, _ingress, ALL),
        Resource("IngressClass", "networking.k8s.io/v1", "ingressclasses", False, _ingress_class, ALL),
        Resource("Secret", "v1", "secrets", True, _secret),
        Resource("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies", True, _whole, OURS),
        Resource("CiliumNetworkPolicy", CILIUM, "ciliumnetworkpolicies", True, _whole, OURS, crd=True),
        Resource(
            "CiliumClusterwideNetworkPolicy",
            CILIUM,
            "ciliumclusterwidenetworkpolicies",
            False,
            _whole,
            OURS,
            crd=True,
        ),
        Resource(
            "CiliumCIDRGroup",
            CILIUM,
            "ciliumcidrgroups",
            False,
            _whole,
            crd=True,
            older="cilium.io/v2alpha1",  # Cilium 1.17 and before
        ),
        Resource("IPAddressPool", METALLB, "ipaddresspools", True, _whole, crd=True),
        Resource("L2Advertisement", METALLB, "l2advertisements", True, _whole, crd=True),
        Resource("ServiceL2Status", METALLB, "servicel2statuses", True, _whole, crd=True),
    )
}
