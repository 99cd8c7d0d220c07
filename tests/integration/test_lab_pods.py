"""The lab as API server, kubelet and container runtime, with a CNI plugin of this test's own.

Once with the folder that plays the API server, once with the real one: they must not be told apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from lab import Lab
from lab.cni import CniError
from lab.controlplane import skip_reason
from lab.node import NotRunning
from lab.shell import wait_until

pytestmark = [pytest.mark.root, pytest.mark.lab]

CONFLIST = {"cniVersion": "1.0.0", "name": "test", "plugins": [{"type": "test", "colour": "red"}]}

# The least that connects a pod: a veth pair, /32 routes, and addresses counted up. It writes down what it is asked.
PLUGIN = r"""#!/bin/sh
set -e
request=$(cat)
echo "$CNI_COMMAND|$CNI_CONTAINERID|$CNI_NETNS|$CNI_IFNAME|$CNI_ARGS|$request" >> /var/lib/cni.log
if [ -e /var/lib/cni-refuses ]; then
    echo '{"cniVersion": "1.0.0", "code": 11, "msg": "try again", "details": "full"}'
    exit 1
fi
link=v$(echo "$CNI_CONTAINERID" | cut -c1-12)
[ "$CNI_COMMAND" = ADD ] || { ip link del "$link" 2>/dev/null || true; exit 0; }
count=$(grep -c ^ADD /var/lib/cni.log)
address=10.244.NUMBER.$((count + 2))
netns=$(basename "$CNI_NETNS")
ip link add "$link" type veth peer name "$CNI_IFNAME" netns "$netns"
ip -n "$netns" addr add "$address/32" dev "$CNI_IFNAME"
ip -n "$netns" link set "$CNI_IFNAME" up
ip -n "$netns" route add 169.254.1.1 dev "$CNI_IFNAME"
ip -n "$netns" route add default via 169.254.1.1
ip -n "$netns" neigh add 169.254.1.1 dev "$CNI_IFNAME" lladdr "$(cat "/sys/class/net/$link/address")"
ip link set "$link" up
ip route add "$address/32" dev "$link"
echo "{\"cniVersion\": \"1.0.0\", \"interfaces\": [], \"ips\": [{\"address\": \"$address/32\"}]}"
"""


@pytest.fixture(scope="module", params=["directory", "kubernetes"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    why_not = skip_reason() if request.param == "kubernetes" else None
    if why_not is not None:
        pytest.skip(why_not)
    with Lab("tlabp", nodes=2, source=request.param) as lab:
        for node in lab.nodes:
            node.run("mkdir -p /opt/cni/bin /etc/cni/net.d")
            node.run("cat > /opt/cni/bin/test", stdin=PLUGIN.replace("NUMBER", str(node.number)))
            node.run("chmod 755 /opt/cni/bin/test")
            node.run("cat > /etc/cni/net.d/10-test.conflist", stdin=json.dumps(CONFLIST))
            node.run("echo '{}' > /etc/cni/net.d/99-other.conflist")
            connect(lab, node.name)
        yield lab


def connect(lab: Lab, name: str) -> None:
    """Routes between the nodes' pods, for one boot."""
    node = lab.node(name)
    node.run("sysctl -q net.ipv4.ip_forward=1")
    for other in lab.nodes:
        if other != node:
            node.run(f"ip route replace {other.pod_cidr} via {other.address}")


def calls(lab: Lab, node: str) -> list[list[str]]:
    return [line.split("|", 5) for line in lab.node(node).run("cat /var/lib/cni.log").stdout.splitlines()]


# The API


def test_nodes_see_objects_as_files_that_change_whole_or_not_at_all(lab: Lab) -> None:
    lab.apply("{apiVersion: v1, kind: Secret, metadata: {name: hidden, namespace: a}, stringData: {x: y}}")
    if lab.source == "kubernetes":
        assert lab.node("n1").run("ls -A /etc/netstack/manifests").stdout == ""
        lab.delete("Secret", "a", "hidden")
        return
    seen = lab.node("n2").run("cat /etc/netstack/manifests/secret.a.hidden.yaml").stdout
    assert yaml.safe_load(seen)["stringData"] == {"x": "y"}
    before = lab.node("n1").run("ls -A /etc/netstack/manifests").stdout.split()
    assert "node._.n1.yaml" in before
    assert [name for name in before if name.startswith(".")] == []
    lab.delete("Secret", "a", "hidden")
    assert "secret.a.hidden.yaml" not in lab.node("n1").run("ls /etc/netstack/manifests").stdout


def test_nodes_are_registered(lab: Lab) -> None:
    node = lab.api.get("Node", "", "n2")
    assert node is not None
    assert node["spec"]["podCIDR"] == "10.244.2.0/24"
    assert node["status"]["addresses"][0] == {"type": "InternalIP", "address": "192.168.86.22"}


def service(name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"}, "spec": spec}


def test_a_service_gets_what_the_api_server_gives(lab: Lab) -> None:
    first, second = lab.apply(
        [service("a", ports=[{"port": 80}]), service("b", ports=[{"port": 80, "targetPort": "http"}])]
    )
    assert first["spec"]["clusterIP"] != second["spec"]["clusterIP"]
    assert first["spec"]["ports"] == [{"protocol": "TCP", "targetPort": 80, "port": 80}]
    one, two, three = ({"name": f"p{port}", "port": port} for port in (80, 443, 8080))
    (outside,) = lab.apply(service("c", type="LoadBalancer", ports=[one, two]))
    node_ports = [port["nodePort"] for port in outside["spec"]["ports"]]
    assert len(set(node_ports)) == 2
    # applied again, changed: what was given stays
    (again,) = lab.apply(service("c", type="LoadBalancer", ports=[one, two, three]))
    assert [port["nodePort"] for port in again["spec"]["ports"]][:2] == node_ports
    assert again["spec"]["clusterIP"] == outside["spec"]["clusterIP"]
    assert again["metadata"]["uid"] == outside["metadata"]["uid"]
    for name in "abc":
        lab.delete("Service", "shop", name)


# Pods


def test_a_pod_is_made_as_a_runtime_makes_it(lab: Lab) -> None:
    pod = lab.web_pod("n1", "shop", "web", {"app": "web"})
    address = pod.address
    try:
        command, container_id, netns, interface, arguments, request = calls(lab, "n1")[-1]
        assert (command, interface) == ("ADD", "eth0")
        assert netns == f"/run/netns/cni-{container_id[:32]}"
        uid = pod.object["metadata"]["uid"]
        assert {"K8S_POD_NAMESPACE=shop", "K8S_POD_NAME=web", f"K8S_POD_UID={uid}"} <= set(arguments.split(";"))
        assert json.loads(request) == {"type": "test", "colour": "red", "name": "test", "cniVersion": "1.0.0"}

        assert pod.exec("ip -4 -o addr show dev eth0").stdout.split()[3] == f"{address}/32"
        slice_ = f"kubepods-burstable-pod{uid.replace('-', '_')}.slice"
        assert f"/kubepods-burstable.slice/{slice_}/pod-shop-web.service" in pod.exec("cat /proc/self/cgroup").stdout
        assert pod.exec("cat /etc/resolv.conf").stdout.splitlines() == [
            "search shop.svc.cluster.local svc.cluster.local cluster.local",
            "nameserver 10.96.0.10",
            "options ndots:5",
        ]
        assert pod.object["status"]["podIP"] == address
        assert pod.object["status"]["phase"] == "Running"
    finally:
        pod.delete()
    assert calls(lab, "n1")[-1][:3] == ["DEL", container_id, netns]
    assert json.loads(calls(lab, "n1")[-1][5])["prevResult"]["ips"] == [{"address": f"{address}/32"}]
    assert lab.api.get("Pod", "shop", "web") is None
    assert container_id[:32] not in lab.node("n1").run("ip netns list").stdout


def test_pods_talk_across_nodes_and_are_captured(lab: Lab) -> None:
    server, client = lab.web_pod("n1", "shop", "server"), lab.pod("n2", "shop", "client")
    try:
        with lab.capture(server, "tcp port 8080") as inside, lab.capture("n2", "tcp port 8080") as outside:
            answer = client.get(f"http://{server.address}:8080/x")
        assert answer.json()["name"] == "server"
        assert answer.json()["client"] == client.address
        assert len(inside.frames()) == len(outside.frames()) > 6
        echo = client.exec(["socat", "-T1", "-", f"UDP:{server.address}:7"], stdin="hello")
        assert not echo.stderr
        assert echo.stdout == f"server {client.address} hello"
    finally:
        server.delete()
        client.delete()


def test_a_pod_on_the_hosts_network(lab: Lab) -> None:
    before = len(calls(lab, "n1"))
    pod = lab.pod("n1", "shop", "host", command=["nc", "-lk", "9100"], ports={"x": 9100}, host_network=True)
    try:
        assert pod.address == lab.node("n1").address
        assert "eth0" in pod.exec("ip -o link").stdout
        assert lab.client(1).run(["nc", "-z", pod.address, "9100"]).returncode == 0
        assert len(calls(lab, "n1")) == before
    finally:
        pod.delete()


def test_a_refused_add_leaves_nothing(lab: Lab) -> None:
    node = lab.node("n2")
    node.run("touch /var/lib/cni-refuses")
    before = node.run("ip netns list").stdout
    try:
        with pytest.raises(CniError, match=r"test ADD: try again full \(code 11\)"):
            lab.pod("n2", "shop", "refused")
    finally:
        node.run("rm /var/lib/cni-refuses")
    assert node.run("ip netns list").stdout == before
    assert lab.find_pod("shop", "refused").object["status"]["phase"] == "Pending"
    lab.delete("Pod", "shop", "refused")


def test_a_pod_that_ends_says_why(lab: Lab) -> None:
    with pytest.raises(NotRunning, match="no such luck"):
        lab.pod("n1", "shop", "short", command=["sh", "-c", "echo no such luck; exit 3"], ports={"http": 80})
    lab.find_pod("shop", "short").delete()


def test_pods_are_made_anew_after_a_power_cut(lab: Lab) -> None:
    pod = lab.web_pod("n2", "shop", "survivor")
    first = pod.sandbox
    lab.powercut("n2")
    with pytest.raises(NotRunning):
        pod.start()
    lab.boot("n2")
    connect(lab, "n2")
    pod.start()
    try:
        dead, new = calls(lab, "n2")[-2:]
        assert dead[:3] == ["DEL", first.container_id, ""]
        assert new[0] == "ADD"
        assert pod.address != first.address
        assert lab.find_pod("shop", "survivor").object["status"]["podIP"] == pod.address
        assert lab.node("n2").run("ip netns list | wc -l").stdout == "1\n"
    finally:
        pod.delete()


# What follows pods


def endpoints(lab: Lab, name: str) -> list[tuple[str, str, bool]]:
    slices = [one for one in lab.api.list("EndpointSlice") if one["metadata"]["name"].startswith(f"{name}-")]
    entries = [entry for one in slices for entry in one["endpoints"] or []]
    return sorted((entry["addresses"][0], entry["nodeName"], entry["conditions"]["ready"]) for entry in entries)


def test_endpoint_slices_follow_services_and_pods(lab: Lab) -> None:
    lab.apply(service("web", selector={"app": "web"}, ports=[{"name": "http", "port": 80, "targetPort": "http"}]))
    assert endpoints(lab, "web") == []
    one, other = (lab.web_pod(node, "shop", f"web-{node}", {"app": "web"}) for node in ("n1", "n2"))
    elsewhere = lab.pod("n1", "default", "web", {"app": "web"})
    try:
        assert endpoints(lab, "web") == [(one.address, "n1", True), (other.address, "n2", True)]
        (found,) = (one for one in lab.api.list("EndpointSlice") if one["metadata"]["namespace"] == "shop")
        assert found["ports"] == [{"name": "http", "protocol": "TCP", "port": 8080}]
        assert found["metadata"]["labels"]["kubernetes.io/service-name"] == "web"
        one.set_ready(False)
        assert endpoints(lab, "web") == [(one.address, "n1", False), (other.address, "n2", True)]
        lab.set_node_ready("n2", False)
        assert endpoints(lab, "web") == [(one.address, "n1", False), (other.address, "n2", False)]
        lab.set_node_ready("n2", True)
        assert endpoints(lab, "web") == [(one.address, "n1", False), (other.address, "n2", True)]
    finally:
        for pod in (one, other, elsewhere):
            pod.delete()
    assert endpoints(lab, "web") == []
    lab.delete("Service", "shop", "web")


def test_cluster_dns(lab: Lab) -> None:
    dns = lab.dns_pod("n1")
    client = lab.pod("n2", "shop", "asker")
    lab.node("n1").run("ip route add 10.96.0.10 dev lo || true")

    def ask(name: str) -> str:
        said = client.exec(["dig", "+noall", "+comments", "+answer", "+time=1", f"@{dns.address}", name]).stdout
        answers = [line.split()[-1] for line in said.splitlines() if line and not line.startswith(";")]
        return " ".join([said.partition("status: ")[2].partition(",")[0], *answers])

    try:
        assert endpoints(lab, "kube-dns") == [(dns.address, "n1", True)]
        assert ask("kube-dns.kube-system.svc.cluster.local") == "NOERROR 10.96.0.10"
        (made,) = lab.apply(service("fresh", ports=[{"port": 80}]))
        name = "fresh.shop.svc.cluster.local"
        wait_until(lambda: ask(name) == f"NOERROR {made['spec']['clusterIP']}", f"{name} to resolve")
        lab.delete("Service", "shop", "fresh")
        wait_until(lambda: ask(name) == "NXDOMAIN", f"{name} to be gone")
    finally:
        client.delete()
        dns.delete()
