from __future__ import annotations

from typing import Any

from netstack.cli.learned import refusals, render, rows

PODS = {12: {"pod": "shop/cart", "address": "10.244.1.5"}, 13: {"pod": "home/ha", "address": "10.244.1.6"}}


def entry(endpoint: int, address: str, name: str, rule: str | None = "matchName: x.io", for_s: int = 50) -> Any:
    return {
        "endpoint": endpoint,
        "pod": [],
        "address": address,
        "names": [name],
        "from": {name: "10.96.0.10"},
        "selectors": [{"selector": 3, "rule": rule, "for_s": for_s}],
    }


NAMES = [
    entry(12, "192.0.2.1", "x.io."),
    entry(13, "192.0.2.9", "y.io.", None),
    entry(14, "192.0.2.3", "z.io."),
]
REFUSED = {
    "pod": "10.244.1.5",
    "endpoint": 12,
    "name": "evil.example.",
    "reason": "name not allowed",
    "times": 4,
    "ago_s": 3,
}
STATUS = {"refused": [REFUSED]}


def test_each_address_of_each_pod_with_who_said_so_and_why_it_is_open() -> None:
    found = rows(NAMES, PODS)
    assert [(row["pod"], row["address"], row["open"], row["for_s"]) for row in found] == [
        ("endpoint 14, gone", "192.0.2.3", False, 50),
        ("home/ha", "192.0.2.9", False, 0),
        ("shop/cart", "192.0.2.1", True, 50),
    ]
    assert found[2]["names"] == [{"name": "x.io", "from": "10.96.0.10"}]
    assert found[2]["rules"] == ["matchName: x.io"]


def test_one_pod_or_a_namespace() -> None:
    assert [row["pod"] for row in rows(NAMES, PODS, "shop/")] == ["shop/cart"]
    assert refusals(STATUS, PODS, "home/") == []
    assert refusals(STATUS, PODS)[0]["pod"] == "shop/cart"


def test_a_refusal_is_not_blamed_on_who_has_the_address_by_now() -> None:
    reused = {14: PODS[12] | {"pod": "shop/next"}}
    assert refusals(STATUS, reused)[0]["pod"] == "10.244.1.5, gone"
    unknown = {"refused": [REFUSED | {"endpoint": 0}]}
    assert refusals(unknown, PODS)[0]["pod"] == "10.244.1.5"


def test_for_people() -> None:
    assert render(rows(NAMES[:2], PODS), refusals(STATUS, PODS)).splitlines() == [
        "home/ha",
        "  192.0.2.9        y.io (said 10.96.0.10); closed: no rule in force",
        "shop/cart",
        "  192.0.2.1        x.io (said 10.96.0.10); open for 50 s by matchName: x.io",
        "refused of late",
        "  shop/cart: evil.example: name not allowed (4 times, last 3 s ago)",
    ]
    heard = entry(12, "192.0.2.1", "x.io.") | {"selectors": [], "heard": True}
    assert render(rows([heard], PODS), []).splitlines()[-1] == (
        "  192.0.2.1        x.io (said 10.96.0.10); heard; no name opens it"
    )
    tried = entry(12, "192.0.2.1", "x.io.")
    tried["selectors"][0]["on_trial"] = True
    assert render(rows([tried], PODS), []).splitlines()[-1] == (
        "  192.0.2.1        x.io (said 10.96.0.10); noted for policies on trial: matchName: x.io"
    )
    closed = REFUSED | {"pod": "shop/cart", "name": "x.io", "address": "10.0.0.1", "times": 1}
    assert render([], [closed]).splitlines()[-1] == "  shop/cart: x.io at 10.0.0.1: name not allowed (3 s ago)"
    assert render([], [closed | {"on_trial": True}]).splitlines()[-1] == (
        "  shop/cart: x.io at 10.0.0.1: name not allowed; on trial, so it passed (3 s ago)"
    )
    assert render([], []) == "no pod has learned an address\n"
