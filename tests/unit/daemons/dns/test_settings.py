from __future__ import annotations

from pathlib import Path

import pytest

from netstack.core.errors import BadConfig
from netstack.core.settings import load, parse
from netstack.dns.message import Rcode
from netstack.dns.settings import DnsSettings


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "dns.yaml").write_text("")
    settings = load(DnsSettings, tmp_path / "dns.yaml")
    assert settings == DnsSettings()
    assert settings.refusal is Rcode.REFUSED


def test_the_refusal_is_chosen_by_name() -> None:
    assert parse(DnsSettings, {"refuse_with": "NXDOMAIN"}).refusal is Rcode.NXDOMAIN


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"refuse_with": "SERVFAIL"}, "refuse_with is REFUSED or NXDOMAIN, not 'SERVFAIL'"),
        ({"min_ttl_s": 90000}, "min_ttl_s 90000 is not between 0 and max_ttl_s 86400"),
        ({"min_ttl_s": -1}, "min_ttl_s -1 is not between"),
        ({"min_ttl_s": "1h"}, "min_ttl_s: must be a int, not the str '1h'"),
        ({"upstream_timeout_s": 0}, "upstream_timeout_s must be above 0"),
        ({"tcp_idle_timeout_s": 5.0}, "must be above upstream_timeout_s"),
        ({"gone_after_s": -1}, "gone_after_s cannot be negative: -1"),
        ({"max_in_flight": 0}, "max_in_flight must be at least 1, not 0"),
        ({"max_addresses_per_name": 0}, "max_addresses_per_name must be at least 1"),
        ({"never_open": ["10.0.0.1/8"]}, "never_open: 10.0.0.1/8 has host bits set"),
        ({"lan": ["10.0.0.1/8"]}, "lan: 10.0.0.1/8 has host bits set"),
        ({"upstream": "1.1.1.1"}, "upstream: unknown field"),
    ],
)
def test_a_bad_value_is_named(data: dict[str, object], reason: str) -> None:
    with pytest.raises(BadConfig, match=reason):
        parse(DnsSettings, data)
