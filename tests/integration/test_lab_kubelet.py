"""A real kubelet with containerd over the CNI plugin: its pods are wired, its probes pass whatever policies say, and
what they find is what Services follow. It takes minutes, and a kubelet to be built once: for LONG=1.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.demo import site, wait_ready
from lab import Lab, containers
from lab.controlplane import skip_reason
from lab.pods import Pod
from lab.shell import wait_until

pytestmark = [
    pytest.mark.root,
    pytest.mark.lab,
    pytest.mark.skipif(os.environ.get("LONG") != "1", reason="a kubelet to build, and minutes: LONG=1"),
]

NAMESPACE, ADDRESS = "real", "10.96.40.1"
PATIENCE_S = 90.0
PROBES = 5
"""So many that a kubelet takes three failures in a row for a verdict."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    why_not = skip_reason()
    if why_not is not None:
        pytest.skip(why_not)
    with Lab("tlabk", 2, source="kubernetes") as lab:
        site(lab)
        for node in lab.nodes:
            wait_ready(node)
        containers.start(lab, lab.node("n1"))
        lab.apply([denying(), service()])
        yield lab


def denying() -> dict[str, Any]:
    """Nothing may come in to any pod of the namespace."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "deny", "namespace": NAMESPACE},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
    }


def service() -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": NAMESPACE},
        "spec": {"clusterIP": ADDRESS, "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }


def web(name: str) -> dict[str, Any]:
    """A pod that serves a folder: it is ready while /www/ready is there, and killed when /www/alive is not."""
    serve = "mkdir /www && touch /www/ready /www/alive && exec httpd -f -p 8080 -h /www"
    probe = {"periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 3}
    container = {
        "name": "web",
        "image": containers.IMAGE,
        "imagePullPolicy": "Never",
        "command": ["sh", "-c", serve],
        "ports": [{"containerPort": 8080}],
        "readinessProbe": {**probe, "httpGet": {"port": 8080, "path": "/ready"}},
        "livenessProbe": {**probe, "httpGet": {"port": 8080, "path": "/alive"}, "initialDelaySeconds": 2},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": "web"}},
        "spec": {
            "nodeName": "n1",
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
        },
    }


def status(lab: Lab, name: str) -> dict[str, Any]:
    return dict((lab.api.get("Pod", NAMESPACE, name) or {}).get("status") or {})


def ready(lab: Lab, name: str) -> bool:
    return any(one["type"] == "Ready" and one["status"] == "True" for one in status(lab, name).get("conditions", ()))


def restarts(lab: Lab, name: str) -> int:
    return sum(one["restartCount"] for one in status(lab, name).get("containerStatuses", ()))


def inside(lab: Lab, name: str, command: str) -> None:
    """Run a command in the pod's container."""
    (found,) = (one["containerID"].partition("//")[2] for one in status(lab, name)["containerStatuses"])
    lab.node("n1").run(f"ctr -n k8s.io tasks exec --exec-id e{abs(hash(command))} {found} {command}")


def await_(lab: Lab, what: str, condition: Any) -> None:
    try:
        wait_until(condition, what, PATIENCE_S, step_s=0.5)
    except TimeoutError as error:
        said = lab.node("n1").run("journalctl -q -u kubelet -u containerd -o cat -n 60", check=False).stdout
        raise AssertionError(f"{error}\n{said}") from error


@pytest.fixture(scope="module")
def served(lab: Lab) -> str:
    lab.api.client.apply(web("web"))
    await_(lab, "the pod to be ready", lambda: ready(lab, "web"))
    return str(status(lab, "web")["podIP"])


@pytest.fixture(scope="module")
def stranger(lab: Lab) -> Pod:
    """A pod of the other node, in another namespace."""
    return lab.pod("n2", "elsewhere", "stranger", {"app": "stranger"})


def test_probes_pass_where_nothing_else_may_come_in(lab: Lab, served: str, stranger: Pod) -> None:
    assert served.startswith("10.244.1.")
    assert stranger.get(f"http://{served}:8080/ready", timeout_s=2).status == 0
    await_(lab, f"{PROBES} probes", lambda: probes(lab) >= PROBES)
    assert ready(lab, "web") and restarts(lab, "web") == 0


def probes(lab: Lab) -> int:
    """How often the kubelet found the pod alive."""
    metrics = lab.node("n1").run("curl -sk https://127.0.0.1:10250/metrics/probes").stdout
    return sum(
        int(float(line.rpartition(" ")[2]))
        for line in metrics.splitlines()
        if line.startswith("prober_probe_total") and 'result="successful"' in line and 'probe_type="Liveness"' in line
    )


def test_a_service_follows_what_the_kubelet_finds(lab: Lab, served: str, stranger: Pod) -> None:
    lab.delete("NetworkPolicy", NAMESPACE, "deny")
    try:
        await_(lab, "the Service", lambda: stranger.get(f"http://{ADDRESS}/ready", timeout_s=2).status == 200)
        inside(lab, "web", "rm /www/ready")
        await_(lab, "the pod not to be ready", lambda: not ready(lab, "web"))
        await_(lab, "the Service without it", lambda: stranger.get(f"http://{ADDRESS}/", timeout_s=2).status == 0)
        inside(lab, "web", "touch /www/ready")
        await_(lab, "the Service", lambda: stranger.get(f"http://{ADDRESS}/ready", timeout_s=2).status == 200)
    finally:
        lab.apply(denying())


def test_a_dead_container_is_replaced_and_a_deleted_pod_gives_its_address_back(lab: Lab, served: str) -> None:
    inside(lab, "web", "rm /www/alive")
    await_(lab, "a restart", lambda: restarts(lab, "web") == 1 and ready(lab, "web"))
    path = lab.api.client.resource("Pod").path(NAMESPACE, "web")
    lab.api.client.request("DELETE", path)
    await_(lab, "the pod to go", lambda: lab.api.get("Pod", NAMESPACE, "web") is None)
    await_(lab, "its route to go", lambda: served not in lab.node("n1").run("ip -4 route show table all").stdout)
