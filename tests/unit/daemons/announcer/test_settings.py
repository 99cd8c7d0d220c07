"""Settings that cannot work are refused with the field's name."""

from __future__ import annotations

from typing import Any

import pytest

from netstack.announcer.settings import AnnouncerSettings, Timing
from netstack.core.errors import BadConfig
from netstack.core.settings import parse

GOOD: dict[str, Any] = {
    "node": "n1",
    "node_address": "192.168.86.21",
    "peers": {"n2": "192.168.86.22", "n3": "192.168.86.23"},
    "gateway": "192.168.86.1",
    "key_file": "/etc/netstack/announcer.key",
}


def test_defaults() -> None:
    settings = parse(AnnouncerSettings, GOOD)
    assert settings.interfaces == ("eth0",)
    assert settings.timing == Timing(0.1, 0.35, 0.4, 0.5)
    assert settings.timing.silence_s == pytest.approx(0.23)
    assert settings.timing.listen_s == pytest.approx(1.2)


def test_a_cluster_of_one_needs_neither_peers_nor_gateway() -> None:
    parse(AnnouncerSettings, {key: GOOD[key] for key in ("node", "node_address", "key_file")})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peers": {"n1": "192.168.86.21"}}, "peers: n1 is this node itself"),
        ({"peers": {"n2": "192.168.86.300"}}, "peers.n2: '192.168.86.300' does not appear to be"),
        ({"node_address": ""}, "node_address: '' does not appear to be"),
        ({"gateway": "router"}, "gateway: 'router' does not appear to be"),
        ({"witness": "dns"}, "witness must be gateway or none, not 'dns'"),
        ({"interfaces": []}, "interfaces: at least one must announce"),
        ({"refresh_s": -1}, "refresh_s must not be negative: -1.0"),
        ({"timing": {"takeover_s": 0.35}}, "timing: takeover_s 0.35 must be above fence_s 0.35 by 5 % or more"),
        ({"timing": {"fence_s": 0.2}}, "timing: fence_s 0.2 must be at least 3.3 beats of 0.1"),
        ({"timing": {"beat_s": 5}}, "timing: beat_s must be from 0.01 to 1, not 5.0"),
        ({"timing": {"alive_s": 0.3}}, "timing: alive_s 0.3 must not be under fence_s 0.35"),
        ({"peers": {"x" * 200 + str(i): "10.0.0.1" for i in range(9)}}, "peers: the nodes' names are 1821 bytes"),
        ({"fence": 1}, "fence: unknown field"),
    ],
)  # fmt: skip
def test_refusals_name_the_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadConfig) as refusal:
        parse(AnnouncerSettings, GOOD | change)
    assert message in str(refusal.value)
