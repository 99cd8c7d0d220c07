"""Name-selectors."""

from __future__ import annotations

import pytest

from netstack.agent.policy.names import key, read_name
from netstack.agent.policy.rules import Name
from netstack.core.errors import BadObject
from netstack.core.ref import Ref
from netstack.source.fields import Fields

REF = Ref("CiliumNetworkPolicy", "default", "p")


def read(data: dict[str, str]) -> Name:
    return read_name(Fields(REF, data, "spec.egress[0].toFQDNs[0]"))


def test_names_are_lower_case_without_the_last_dot() -> None:
    assert read({"matchName": "API.Anthropic.com."}) == Name("api.anthropic.com", False)


@pytest.mark.parametrize("pattern", ["*", "*.x.io", "api-*.x.io", "**.x.io", "a*b*.x.io"])
def test_patterns(pattern: str) -> None:
    assert read({"matchPattern": pattern}) == Name(pattern, True)


@pytest.mark.parametrize(
    "data",
    [
        {"matchName": "*.x.io"},
        {"matchName": "a..b"},
        {"matchPattern": "a b"},
        {"matchName": "a" * 64},
        {},
        {"name": "x"},
    ],
)
def test_what_is_no_name(data: dict[str, str]) -> None:
    with pytest.raises(BadObject, match=r"spec.egress\[0\].toFQDNs\[0\]"):
        read(data)


def test_a_name_a_pattern_and_a_name_of_the_lan_of_one_text_are_three_selectors() -> None:
    names = [Name("x.io", False), Name("x.io", True), Name("x.io", False, lan=True), Name("x.io", True, lan=True)]
    assert len({key(name) for name in names}) == 4
