"""What the CNI plugin is told and what is understood of its answers. Real namespaces: tests/integration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from netstack.ingress import endpoint
from netstack.ingress.settings import IngressSettings

CONFLIST = {
    "cniVersion": "1.0.0",
    "name": "netstack",
    "plugins": [{"type": "netstack", "mtu": 1500}, {"type": "portmap"}],
}


def test_the_plugin_gets_its_part_of_the_conflist() -> None:
    binary, config = endpoint.request(json.dumps(CONFLIST))
    assert binary == "netstack"
    assert json.loads(config) == {"type": "netstack", "mtu": 1500, "name": "netstack", "cniVersion": "1.0.0"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"plugins": []}', '{"plugins": [{"type": "x"}]}'])
def test_another_file_is_no_conflist(text: str) -> None:
    with pytest.raises(endpoint.EndpointError, match="is no CNI network configuration list"):
        endpoint.request(text)


def test_the_endpoint_is_a_pod_of_the_services_namespace() -> None:
    environment = endpoint.environment("ADD", IngressSettings(node="n1"))
    assert environment == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "netstack-ingress",
        "CNI_NETNS": "/run/netns/netstack-ingress",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=ingress-nginx;K8S_POD_NAME=netstack-ingress",
        "CNI_PATH": "/opt/cni/bin",
    }


def test_the_address_of_a_result() -> None:
    assert endpoint.read_address('{"ips": [{"address": "10.244.1.2/32"}, {"address": "fd00::2/128"}]}') == "10.244.1.2"


@pytest.mark.parametrize("text", ["", "{}", '{"ips": []}', '{"ips": [{"address": "x"}]}', '{"ips": [7]}'])
def test_a_result_without_an_address_is_refused(text: str) -> None:
    with pytest.raises(endpoint.EndpointError, match="is no CNI result with an address"):
        endpoint.read_address(text)


def test_no_record_no_address(tmp_path: Path) -> None:
    settings = IngressSettings(node="n1", endpoint=tmp_path / "endpoint.json")
    assert endpoint.address_of(settings) == ""
    settings.endpoint.write_text("{}")
    assert endpoint.address_of(settings) == ""
    settings.endpoint.write_text('{"ips": [{"address": "10.244.1.2/32"}]}')
    assert endpoint.address_of(settings) == "10.244.1.2"
