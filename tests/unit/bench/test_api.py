"""What the API figures are made of: objects that the product reads, and the server's own count."""

from __future__ import annotations

from bench import api
from netstack.core.address import unpack
from netstack.source.models import EndpointSlice, Node, Pod, Service
from netstack.source.parse import parse


class Metrics:
    """Stands for the API server."""

    def request(self, method: str, path: str, accept: str = "") -> str:
        assert (method, path) == ("GET", "/metrics")
        return (
            'apiserver_flowcontrol_dispatched_requests_total{flow_schema="probes",priority_level="exempt"} 700\n'
            'apiserver_flowcontrol_dispatched_requests_total{flow_schema="netstack-nodes",priority_level="a"} 12\n'
            'apiserver_flowcontrol_dispatched_requests_total{flow_schema="netstack-nodes",priority_level="b"} 1e+02\n'
        )


def test_the_server_counts_the_nodes_requests_only() -> None:
    assert api.dispatched(Metrics()) == 112  # type: ignore[arg-type]


def test_every_object_is_one_that_the_daemons_read() -> None:
    made = [api.node(0), api.pod(7), api.service(3), api.endpoint_slice(3, 50), api.probe(), api.probe_slice(1)]
    models = [type(parse(one)) for one in made]
    assert models == [Node, Pod, Service, EndpointSlice, Service, EndpointSlice]


def test_the_large_clusters_addresses_stay_in_their_ranges() -> None:
    services, pods = api.LARGE
    addresses = {api.service(number)["spec"]["clusterIP"] for number in range(services)}
    assert len(addresses) == services and api.PROBE_IP not in addresses
    assert len({api.pod(number)["status"]["podIP"] for number in range(pods)}) == pods
    assert api.pod(pods - 1)["status"]["podIP"].startswith("10.244.")


def test_each_change_moves_the_probe_to_another_backend() -> None:
    parsed = [parse(api.probe_slice(number)) for number in range(3)]
    found = [unpack(one.endpoints[0].addresses[0]) for one in parsed if isinstance(one, EndpointSlice)]
    assert len(set(found)) == 3
