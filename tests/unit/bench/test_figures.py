"""Which figures a name selects, and that the registry is whole."""

from __future__ import annotations

import pytest

from bench.__main__ import FIGURES
from bench.estimate import STATISTICS
from bench.figures import BESIDE, Unknown, chosen

ISSUE = [
    *(
        f"lb.{load}.{count}{peer}"
        for load in ("tcp_new", "udp_rr", "throughput")
        for count in (10, 1000, 10000)
        for peer in ("", ".iptables", ".nftables")
    ),
    *("vip.gap.powercut.p50", "vip.gap.powercut.p95", "vip.gap.keepalived_1s", "vip.gap.keepalived_100ms"),
    *(f"{kind}.{daemon}" for kind in ("pss", "idle_cpu") for daemon in ("agent", "announcer", "ingress", "dns")),
    *("maps_mb.agent.10", "maps_mb.agent.10000", "demo.warm_seconds"),
    *("policy.throughput", "policy.tcp_new", "policy.apply_p99", "events.per_second_at_10pct"),
    *("dns.added_p50", "dns.added_p99", "dns.qps", "dns.qps.dnsdist", "dns.qps.unbound"),
    *("dns.first_connection_retransmits",),
    *("api.object_to_kernel_p50", "api.object_to_kernel_p99", "api.initial_sync_5000svc_10000pod"),
    *("pss.agent.api_10000pods", "api.requests_per_node_minute"),
]


def test_every_promised_figure_is_there() -> None:
    assert [name for name in ISSUE if name not in FIGURES] == []


def test_every_figure_is_against_something_that_exists() -> None:
    assert {figure.against for figure in FIGURES.values()} <= {"", *BESIDE, *FIGURES}
    assert {figure.statistic for figure in FIGURES.values()} <= STATISTICS.keys()


def test_a_prefix_ends_at_a_dot() -> None:
    figures = FIGURES.values()
    assert chosen(figures, "") == FIGURES.keys()
    assert chosen(figures, "demo") == {"demo.warm_seconds"}
    ten = chosen(figures, "lb.tcp_new.10")
    assert "lb.tcp_new.10.iptables" in ten
    assert "lb.tcp_new.1000" not in ten
    assert chosen(figures, "pss.dns,demo") == {"pss.dns", "demo.warm_seconds"}


def test_a_name_of_nothing_is_refused() -> None:
    with pytest.raises(Unknown, match=r"lb\.tcp: no figure"):
        chosen(FIGURES.values(), "demo,lb.tcp")
