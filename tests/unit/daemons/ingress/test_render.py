"""Golden texts: `GOLDEN=write pytest tests/unit/daemons/ingress/test_render.py` writes them anew, for review."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from instruments.ingress_objects import DEFAULT_PAIR, Cluster, endpoints, ingress, key_pair, secret, service
from netstack.ingress import render
from netstack.ingress.settings import IngressSettings

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


def settings(**fields: Any) -> IngressSettings:
    return IngressSettings(node="n1", **fields)


CLUSTER = Cluster(
    service("ha", 8123),
    endpoints("ha", "192.168.86.21:8123", "192.168.86.22:8123"),
    service("v6", 80),
    endpoints("v6", "fd00::5:80"),
    ingress(
        "home",
        ("ha.home.lab", "/", "ha:8123"),
        ("ha.home.lab", "/api", "Exact", "v6"),
        ("*.apps.lab", "/", "gone"),
        annotations={"proxy-read-timeout": "3600", "proxy-body-size": "0"},
        tls=[{"hosts": ["ha.home.lab"], "secretName": "cert"}],
    ),
    secret("cert", *key_pair("ha.home.lab")),
)


def test_haproxy_cfg() -> None:
    golden("haproxy.cfg", render.haproxy_cfg(settings()))


def test_haproxy_cfg_with_other_settings() -> None:
    other = settings(access_log=False, hsts_s=0, addresses=("0.0.0.0", "::"), http_port=8080, https_port=8443)
    golden("haproxy-other.cfg", render.haproxy_cfg(other))


def test_routes_map() -> None:
    golden("routes.map", render.routes_map(CLUSTER.wanted.state.routes))


def test_pools_cfg() -> None:
    golden("pools.cfg", render.pools_cfg(CLUSTER.wanted.state.pools))


def test_crt_list() -> None:
    ((path, hosts),) = CLUSTER.wanted.state.certificates.items()
    assert render.crt_list({path: hosts}) == f"{path} ha.home.lab\n"
    assert path.startswith("/var/lib/netstack/ingress/certs/default_cert-")
    assert CLUSTER.wanted.pems[path].startswith("-----BEGIN CERTIFICATE-----\n")


def test_the_default_certificate_is_part_of_the_state() -> None:
    assert CLUSTER.wanted.default_pem == DEFAULT_PAIR.pem
    assert CLUSTER.wanted.state.default_certificate == DEFAULT_PAIR.fingerprint


def test_the_process_shows_which_configuration_it_runs() -> None:
    digest = render.config_hash(settings())
    assert f"    description netstack {digest}\n" in render.haproxy_cfg(settings())
    assert render.config_hash(settings(threads=8)) != digest
    assert render.config_hash(settings(ingress_class="web")) == digest  # nothing in haproxy.cfg depends on it


@pytest.mark.parametrize("evil", ["a b", "a\nb", "a\\b", '"', "<id>", "%[src]"])
def test_no_word_of_a_user_reaches_a_file_unchecked(evil: str) -> None:
    cluster = Cluster(
        service("ha", 80),
        endpoints("ha", "10.0.0.1:80"),
        ingress("site", (f"h{evil}.lab", "/", "ha"), ("a.lab", f"/{evil}", "ha"), annotations={"auth-url": evil}),
    )
    fields = [problem.field for problem in cluster.problems("site")]
    assert fields[1:] == ["spec.rules[0].host", "spec.rules[1].http.paths[0].path"]
    texts = render.pools_cfg(cluster.wanted.state.pools), *cluster.wanted.state.routes.values()
    assert not any(evil in text for text in texts)
