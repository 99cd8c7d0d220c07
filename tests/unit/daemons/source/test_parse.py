import base64
from typing import Any

import pytest

from netstack.core.address import Prefix, pack, unpack
from netstack.core.errors import BadObject
from netstack.source.models import EndpointSlice, Ingress, IPAddressPool, Node, Pod, Policy, Secret, Service
from netstack.source.parse import parse
from netstack.source.resources import RESOURCES


def obj(kind: str, version: str, /, name: str = "x", **parts: Any) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": "ns"}, **parts}


def service(**spec: Any) -> Service:
    parsed = parse(obj("Service", "v1", spec=spec))
    assert isinstance(parsed, Service)
    return parsed


def test_a_service_is_read() -> None:
    parsed = parse(
        obj(
            "Service",
            "v1",
            spec={
                "type": "LoadBalancer",
                "clusterIP": "10.96.0.20",
                "clusterIPs": ["10.96.0.20"],
                "ports": [{"name": "http", "port": 80, "targetPort": "web", "nodePort": 30080}],
                "selector": {"app": "ha"},
                "externalTrafficPolicy": "Local",
                "sessionAffinity": "ClientIP",
            },
            status={"loadBalancer": {"ingress": [{"ip": "192.168.86.18", "ipMode": "VIP"}, {"hostname": "x"}]}},
        )
    )
    assert isinstance(parsed, Service)
    assert parsed.cluster_ips == (pack("10.96.0.20"),)
    assert parsed.load_balancer_ips == (pack("192.168.86.18"),)
    assert (parsed.ports[0].target_port, parsed.ports[0].node_port) == ("web", 30080)
    assert parsed.affinity_s == 10800 and parsed.external_local and not parsed.internal_local


@pytest.mark.parametrize("spec", [{"clusterIP": "None"}, {"clusterIPs": ["None"]}, {"type": "ExternalName"}])
def test_a_headless_service_has_no_address(spec: dict[str, Any]) -> None:
    assert service(**spec).cluster_ips == ()


def test_endpoints_default_to_ready() -> None:
    parsed = parse(
        obj(
            "EndpointSlice",
            "discovery.k8s.io/v1",
            addressType="IPv4",
            endpoints=[
                {"addresses": ["10.244.1.5"], "nodeName": "n1"},
                {"addresses": ["10.244.1.6"], "conditions": {"ready": False, "serving": True, "terminating": True}},
            ],
            ports=[{"name": "http", "port": 8080}],
        )
        | {"metadata": {"name": "x-1", "namespace": "ns", "labels": {"kubernetes.io/service-name": "x"}}}
    )
    assert isinstance(parsed, EndpointSlice) and parsed.service == "x"
    assert [(e.ready, e.serving, e.terminating) for e in parsed.endpoints] == [(True, True, False), (False, True, True)]
    assert parsed.ports == (("http", "TCP", 8080),)


def test_a_node_and_a_pod_are_read_leniently() -> None:
    node = parse(
        obj("Node", "v1", spec={"podCIDR": "10.244.1.0/24", "unheardOf": 1})
        | {
            "status": {
                "addresses": [{"type": "InternalIP", "address": "192.168.86.21"}, {"type": "Hostname", "address": "n1"}]
            }
        }
    )
    assert isinstance(node, Node) and node.meta.namespace == ""
    assert node.addresses == (pack("192.168.86.21"),) and node.pod_cidrs == (Prefix.parse("10.244.1.0/24"),)
    pod = parse(
        obj("Pod", "v1", spec={"nodeName": "n1", "containers": [{"ports": [{"name": "web", "containerPort": 80}]}]})
        | {"status": {"podIP": "10.244.1.5", "podIPs": [{"ip": "10.244.1.5"}], "phase": "Running"}}
    )
    assert isinstance(pod, Pod) and unpack(pod.addresses[0]) == "10.244.1.5" and pod.ports == (("web", "TCP", 80),)


def test_a_sidecars_ports_have_names_as_any_containers_and_those_of_what_only_begins_have_none() -> None:
    def container(name: str, number: int, **more: str) -> dict[str, Any]:
        return {"ports": [{"name": name, "containerPort": number}]} | more

    first = [container("setup", 1), container("metrics", 9100, restartPolicy="Always")]
    raw = obj("Pod", "v1", spec={"containers": [container("web", 80)], "initContainers": first})
    for pod in (parse(raw), parse(RESOURCES["Pod"].trim(raw))):
        assert isinstance(pod, Pod) and pod.ports == (("web", "TCP", 80), ("metrics", "TCP", 9100))


def test_an_ingress_is_read() -> None:
    backend = {"service": {"name": "ha", "port": {"number": 8123}}}
    parsed = parse(
        obj(
            "Ingress",
            "networking.k8s.io/v1",
            spec={
                "ingressClassName": "nginx",
                "rules": [
                    {
                        "host": "ha.home.lab",
                        "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]},
                    }
                ],
                "tls": [{"hosts": ["ha.home.lab"], "secretName": "ha-tls"}],
            },
        )
    )
    assert isinstance(parsed, Ingress)
    assert (parsed.rules[0].paths[0].service, parsed.rules[0].paths[0].port) == ("ha", 8123)
    assert parsed.tls[0].secret == "ha-tls"


def test_a_policy_is_passed_on_whatever_it_holds() -> None:
    parsed = parse(obj("CiliumNetworkPolicy", "cilium.io/v2", spec={"endpointSelector": 3}, specs=["x"]))
    assert isinstance(parsed, Policy) and parsed.specs == ({"endpointSelector": 3}, {"": "x"})


def test_a_secret_is_decoded() -> None:
    parsed = parse(obj("Secret", "v1", data={"tls.crt": base64.b64encode(b"pem").decode()}, type="kubernetes.io/tls"))
    assert isinstance(parsed, Secret) and parsed.data == {"tls.crt": b"pem"}


def test_the_seed_pool_is_read() -> None:
    parsed = parse(
        obj("IPAddressPool", "metallb.io/v1beta1", "first-pool", spec={"addresses": ["192.168.86.5-192.168.86.19"]})
    )
    assert isinstance(parsed, IPAddressPool) and len(parsed.ranges[0]) == 15 and parsed.auto_assign


def test_foreign_kinds_and_groups_are_left_alone() -> None:
    assert parse(obj("Deployment", "apps/v1")) is None
    assert parse(obj("Ingress", "extensions.example/v1")) is None


PATHS = {"http": {"paths": [{"path": "x", "pathType": "Prefix", "backend": {}}]}}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "must be a mapping"),
        ({"metadata": {"name": "x"}}, "kind: is required"),
        ({"kind": "Service"}, "Service .*metadata: is required"),
        ({"kind": "Service", "metadata": {}}, "metadata.name: is required"),
        (obj("Service", "v2"), "apiVersion: v2 is not served; known: v1"),
        (obj("NetworkPolicy", "v1"), "apiVersion: v1 is not served; known: networking.k8s.io/v1"),
        (obj("NetworkPolicy", ""), "apiVersion: is required; known: networking.k8s.io/v1"),
        (obj("NetworkPolicy", "extensions/v1beta1"), "apiVersion: extensions/v1beta1 is not served"),
        (obj("Service", "v1", spec={"port": []}), "Service ns/x: spec.port: unknown field"),
        (obj("Service", "v1", spec={"ports": [{"port": 0}]}), r"spec.ports\[0\].port: must be from 1 to 65535"),
        (obj("Service", "v1", spec={"clusterIP": "ten"}), "spec.clusterIP: 'ten'"),
        (obj("Service", "v1", spec={"ports": [{"port": 80, "targetPort": 0}]}), "targetPort: must be from 1"),
        (obj("Secret", "v1", data={"k": "%"}), "data.k: is not base64"),
        (obj("Secret", "v1", data={"k": "ä"}), "data.k: is not base64"),
        (obj("Ingress", "networking.k8s.io/v1", spec={"rules": [PATHS]}), r"paths\[0\].path: must begin with /"),
        (obj("IPAddressPool", "metallb.io/v1beta1", spec={}), "spec.addresses: is required"),
        (
            obj("IPAddressPool", "metallb.io/v1beta1", spec={"addresses": ["10.0.0.9-10.0.0.1"]}),
            r"IPAddressPool ns/x: spec.addresses\[0\]: .*upside down",
        ),
        (
            obj("IPAddressPool", "metallb.io/v1beta1", spec={"addresses": ["10.0.0.0/24", "10.0.0.9-10.0.0.10"]}),
            r"addresses\[1\]: 10.0.0.9-10.0.0.10 overlaps 10.0.0.0-10.0.0.255 of the same pool",
        ),
    ],
)
def test_a_wrong_object_names_field_and_reason(document: Any, message: str) -> None:
    with pytest.raises(BadObject, match=message):
        parse(document)
