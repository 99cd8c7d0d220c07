"""A real Kubernetes control plane for tests: etcd, API server, controller manager, scheduler.

    with ControlPlane(tmp_path) as plane:
        plane.apply_crds()
        client = plane.client()
        client.apply(Path("manifests/web.yaml"))
        config = plane.kubeconfig("netstack:node:n1", ["netstack:nodes"])
        plane.stop(), plane.restart(), plane.kill(), plane.wipe()

TLS and RBAC are on; users are who their certificates say (certificates.py). The controller manager makes
EndpointSlices, service accounts and PodCIDRs, collects what lost its owner, and watches the nodes' leases (plane.py).
There is no kubelet: Pods get their status from who plays it. Where the programs come from is in binaries.py.
"""

from .binaries import Unavailable, skip_reason
from .client import ApiError, Client
from .plane import ControlPlane

__all__ = ["ApiError", "Client", "ControlPlane", "Unavailable", "skip_reason"]
