from __future__ import annotations

from dataclasses import replace
from typing import Any

from instruments.ingress_objects import Raw, service, snapshot
from netstack.core.address import pack
from netstack.ingress.publish import endpoint_slice, ingress_status
from netstack.ingress.routes import Problem
from netstack.ingress.settings import IngressSettings
from netstack.source.models import EndpointSlice, Service
from netstack.source.parse import parse

SETTINGS = IngressSettings(node="n1", http_port=8080, https_port=8443)
HTTP = {"name": "http", "port": 80, "targetPort": "http"}
HTTPS = {"name": "https", "port": 443, "targetPort": "https"}


def controller(*ports: Raw, **fields: Any) -> Service:
    raw = service("ingress-nginx-controller", *ports, namespace="ingress-nginx", type="LoadBalancer") | fields
    (found,) = snapshot(raw).all(Service)
    return found


def test_the_slice_of_a_node() -> None:
    document, missing = endpoint_slice(controller(HTTP, HTTPS), pack("10.244.1.2"), True, SETTINGS)
    assert missing == ()
    model = parse(document)
    assert isinstance(model, EndpointSlice)
    assert (model.meta.namespace, model.meta.name) == ("ingress-nginx", "ingress-nginx-controller-n1")
    assert model.service == "ingress-nginx-controller"
    assert model.meta.labels["endpointslice.kubernetes.io/managed-by"] == "netstack-ingress"
    assert model.ports == (("http", "TCP", 8080), ("https", "TCP", 8443))
    (endpoint,) = model.endpoints
    assert (endpoint.addresses, endpoint.ready, endpoint.node) == ((pack("10.244.1.2"),), True, "n1")
    assert document["metadata"]["name"] == "ingress-nginx-controller-n1"
    assert "ownerReferences" not in document["metadata"]


def test_in_a_cluster_the_slice_goes_with_its_service() -> None:
    owned = controller(HTTP)
    owned = replace(owned, meta=replace(owned.meta, uid="u1"))
    document, _ = endpoint_slice(owned, pack("10.244.1.2"), True, SETTINGS)
    (owner,) = document["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("Service", "ingress-nginx-controller", "u1")


def test_not_ready_is_not_serving() -> None:
    document, _ = endpoint_slice(controller(HTTP), pack("fd00::2"), False, SETTINGS)
    assert document["addressType"] == "IPv6"
    assert document["endpoints"][0]["conditions"] == {"ready": False, "serving": False, "terminating": False}


def test_ports_that_haproxy_does_not_have_are_named() -> None:
    metrics, udp = {"name": "metrics", "port": 10254}, {"name": "http", "port": 80, "protocol": "UDP"}
    document, missing = endpoint_slice(
        controller({"port": 80}, {"port": 443}, metrics, udp), pack("10.0.0.1"), True, SETTINGS
    )
    assert [port["port"] for port in document["ports"]] == [8080, 8443]
    assert missing == ("metrics", "http")


def test_a_whole_ingress_is_true_three_times() -> None:
    status = {"loadBalancer": {"ingress": [{"ip": "192.168.86.18"}]}}
    found = ingress_status(controller(HTTP, status=status), [])
    assert found["loadBalancer"] == {"ingress": [{"ip": "192.168.86.18"}]}
    assert [(item["type"], item["status"], item["reason"]) for item in found["conditions"]] == [
        ("Accepted", "True", "Accepted"),
        ("ResolvedRefs", "True", "ResolvedRefs"),
        ("Programmed", "True", "Programmed"),
    ]


def test_problems_stand_at_their_condition_with_field_and_reason() -> None:
    problems = [
        Problem("ResolvedRefs", "BackendNotFound", "spec.rules[0]", "Service a/b does not exist"),
        Problem("ResolvedRefs", "InvalidCertificateRef", "spec.tls[0]", "Secret a/c does not exist"),
    ]
    found = ingress_status(None, problems)
    assert "loadBalancer" not in found
    assert found["conditions"][1] == {
        "type": "ResolvedRefs",
        "status": "False",
        "reason": "BackendNotFound",
        "message": "spec.rules[0]: Service a/b does not exist; spec.tls[0]: Secret a/c does not exist",
    }
