"""Why nothing allows a flow, from the tables of a node."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpf.home import Home
from bpf.populated import IDENTITY, REMOTE, A, populated
from netstack.cli.reasons import Reasons
from netstack.core.address import pack
from netstack.kernel import layout as l

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with populated(tmp_path_factory.mktemp("node")) as made:
        yield made


def flow(**fields: Any) -> dict[str, Any]:
    return {
        "verdict": "DEFAULT_DENY",
        "direction": "egress",
        "endpoint": 11,
        "source": {"address": A, "port": 4000},
        "destination": {"address": REMOTE, "port": 80},
        "identity": IDENTITY[REMOTE],
        "protocol": "TCP",
        "rule": "",
    } | fields


@pytest.fixture
def reasons(node: Home, tmp_path: Path) -> Reasons:
    return Reasons(Path(node.settings.pins) / "maps", tmp_path)  # nobody answers there: rules keep their numbers


def test_each_rule_says_why_not(reasons: Reasons) -> None:
    assert reasons.of(flow()) == ("rule 7 is for this peer, but for TCP 443",)
    assert reasons.of(flow(identity=l.IDENTITY_HOST)) == ("rule 7 is for other peers",)
    assert reasons.of(flow(direction="ingress")) == ()


def test_a_name_that_has_expired_is_none_that_the_pod_knows(node: Home, reasons: Reasons) -> None:
    """It may still be noted, for the connections that it allowed."""
    selector, to = (3 << 30) + 5, "203.0.113.77"
    key, rule = l.FqdnKey(11, pack(to)).pack(), l.PolicyKey(96, 11, selector, l.DIRECTION_EGRESS, 6, 8443)
    node.put("policy", rule, l.PolicyRule(9, l.ACTION_ALLOW))
    said = []
    try:
        for seconds in (60, -60):
            with node.map("fqdn") as learned:
                learned.put(key, l.Fqdn.packed({selector: int(time.monotonic()) + seconds}))
            denied = flow(destination={"address": to, "port": 8443}, identity=l.IDENTITY_WORLD)
            said.append(next(reason for reason in reasons.of(denied) if reason.startswith("rule 9 ")))
    finally:
        for name, raw in (("policy", rule.pack()), ("fqdn", key)):
            with node.map(name) as table:
                table.delete(raw)
    assert said == [
        "rule 9 is for this flow by now",
        f"rule 9 is for names; the pod has learned {to} for none of them lately",
    ]


@pytest.mark.parametrize(
    "fields",
    [{"verdict": "SPOOFED", "direction": ""}, {"verdict": "FORWARDED"}, {"rule": "P: spec"}, {"protocol": ""}],
)
def test_what_was_not_denied_for_want_of_a_rule_has_no_reasons(reasons: Reasons, fields: dict[str, Any]) -> None:
    assert reasons.of(flow(**fields)) == ()


def test_lost_events_have_none(reasons: Reasons) -> None:
    assert reasons.of({"lost": 3}) == ()
