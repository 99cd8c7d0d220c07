from __future__ import annotations

from netstack.cli.identities import joined, render

KNOWN = [
    {"identity": 1, "name": "host", "labels": {}, "addresses": ["192.168.86.21"]},
    {"identity": 1 << 30, "name": "pods shop", "labels": {"app": "cart"}, "addresses": ["10.244.1.3", "10.244.2.3"]},
]
ENDPOINTS = [{"identity": 1 << 30, "pod": "shop/cart-2"}, {"identity": 1 << 30, "pod": "shop/cart-1"}]


def test_each_identity_has_the_pods_of_this_node() -> None:
    assert [item["endpoints"] for item in joined(KNOWN, ENDPOINTS)] == [[], ["shop/cart-1", "shop/cart-2"]]


def test_for_people() -> None:
    assert render(joined(KNOWN, ENDPOINTS)) == (
        "1           host                     192.168.86.21\n"
        "1073741824  pods shop                10.244.1.3 10.244.2.3\n"
        "    app=cart\n"
        "    here: shop/cart-1, shop/cart-2\n"
    )
