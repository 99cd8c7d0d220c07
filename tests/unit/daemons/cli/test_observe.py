from __future__ import annotations

import re
from typing import Any

import pytest

from netstack.cli.observe import line


def end(address: str, port: int = 0, pod: str = "", node: str = "", names: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"address": address, "port": port, "pod": pod, "node": node, "names": list(names)}


FLOW: dict[str, Any] = {
    "time": 1_800_000_000.25,
    "verdict": "FORWARDED",
    "reason": "forwarded",
    "direction": "egress",
    "endpoint": 11,
    "pod": "shop/cart",
    "source": end("10.244.1.3", 4000, pod="shop/cart"),
    "destination": end("192.0.2.1", 443, names=("api.x.io",)),
    "identity": 2,
    "entity": "world",
    "protocol": "TCP",
    "rule": "CiliumNetworkPolicy shop/p: spec.egress[0]",
    "policies": [],
    "repeats": 0,
}


def shown(**fields: Any) -> str:
    text = line(FLOW | fields)
    assert re.match(r"\d\d:\d\d:\d\d\.250  ", text)
    return text[14:]


def test_an_allowed_flow() -> None:
    assert shown() == (
        "shop/cart 10.244.1.3:4000 -> api.x.io 192.0.2.1:443 (world)  TCP  FORWARDED  "
        "egress of shop/cart: CiliumNetworkPolicy shop/p: spec.egress[0]"
    )


@pytest.mark.parametrize(("direction", "entity"), [("egress", "world"), ("ingress", "host")])
def test_no_policy_restricts_it(direction: str, entity: str) -> None:
    """A node reaches its own pods, whatever selects them: kubelet's probes are not said to find no policy."""
    told = shown(rule="", direction=direction, entity=entity)
    assert told.endswith(f"FORWARDED  {direction} of shop/cart: no policy restricts it")


def test_no_rule_allows_it_and_why() -> None:
    flow = FLOW | {"verdict": "DEFAULT_DENY", "rule": "", "policies": ["P", "Q"], "repeats": 12}
    first, second = line(flow, ("P: spec.egress[0] is for other peers",)).splitlines()
    assert first.endswith("DEFAULT_DENY  egress of shop/cart: no rule of P, Q allows it  (and 12 more like it before)")
    assert second.strip() == "P: spec.egress[0] is for other peers"


def test_the_other_direction_names_the_source_by_what_it_is() -> None:
    text = shown(
        direction="ingress",
        source=end("fd00::21", 4000, node="n1"),
        destination=end("fd00:1::3", 80, pod="shop/cart"),
        entity="remote-node",
        rule="",
    )
    assert text.startswith("n1 [fd00::21]:4000 (remote-node) -> shop/cart [fd00:1::3]:80  TCP")


def test_a_frame_that_is_no_ip() -> None:
    text = shown(
        source=end(""), destination=end(""), direction="", protocol="", verdict="UNSUPPORTED", rule="", reason="why"
    )
    assert text == "a frame from shop/cart  UNSUPPORTED  why"


@pytest.mark.parametrize("lost", [1, 20000])
def test_what_came_too_fast_is_said(lost: int) -> None:
    assert line({"lost": lost}) == f"... {lost} events came too fast to be shown ..."
