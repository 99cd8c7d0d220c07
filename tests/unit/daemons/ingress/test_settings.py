from typing import Any

import pytest

from netstack.core.errors import BadConfig
from netstack.core.settings import parse
from netstack.ingress.settings import IngressSettings


def test_a_node_name_is_enough() -> None:
    settings = parse(IngressSettings, {"node": "n1"})
    assert settings.service_key == ("ingress-nginx", "ingress-nginx-controller")
    assert (settings.http_port, settings.https_port, settings.body_size) == (80, 443, 1 << 20)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("node", "N1 x", "node: is no node name"),
        ("service", "ingress-nginx", "service: must be namespace/name"),
        ("default_backend", "a/b", "default_backend: must be namespace/service:port"),
        ("default_certificate", "b", "default_certificate: must be namespace/name"),
        ("secrets", ["web", "A/b"], "secrets: 'A/b' is neither a namespace nor namespace/name"),
        ("connect_timeout_s", 0, "connect_timeout_s: must be from 0.001 to 86400, not 0"),
        ("https_port", 70000, "https_port: must be from 1 to 65535, not 70000"),
        ("threads", 0, "threads: must be from 1 to 64, not 0"),
        ("body_size", -1, "body_size: must not be negative: -1"),
        ("state", "/var/lib/a b", "state: must be a plain absolute path"),
        ("socket", "/run/x\n", "socket: must be a plain absolute path"),
        ("addresses", ["0.0.0.0 user root"], "addresses: '0.0.0.0 user root' is no address"),
    ],
)
def test_what_would_not_work_is_refused_by_name(field: str, value: Any, message: str) -> None:
    with pytest.raises(BadConfig) as refused:
        parse(IngressSettings, {"node": "n1", field: value})
    assert message in str(refused.value)


@pytest.mark.parametrize("secrets", [[], ["web"], ["home", "web/tls"]])
def test_the_default_certificate_is_among_the_secrets_that_are_asked_for(secrets: list[str]) -> None:
    chosen = {"node": "n1", "default_certificate": "web/tls"}
    assert parse(IngressSettings, {**chosen, "secrets": secrets}).secrets == tuple(secrets)
    with pytest.raises(BadConfig, match="default_certificate: is not in secrets"):
        parse(IngressSettings, {**chosen, "secrets": ["home", "web/other"]})
