"""Every field of the policy APIs is either served or refuses the whole policy: none is accepted and ignored."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from netstack.agent.policy.accept import read_policy
from netstack.agent.policy.rules import Spec
from netstack.core.errors import BadObject
from netstack.core.ref import Ref

Raw = dict[str, Any]
TABLE: dict[str, Raw] = yaml.safe_load((Path(__file__).parents[1] / "instruments/policy_fields.yaml").read_text())
REFS = {
    "CiliumClusterwideNetworkPolicy": Ref("CiliumClusterwideNetworkPolicy", "", "p"),
    "CiliumClusterwideNetworkPolicy of nodes": Ref("CiliumClusterwideNetworkPolicy", "", "p"),
    "NetworkPolicy": Ref("NetworkPolicy", "one", "p"),
}


def rows(outcome: str) -> list[Any]:
    return [pytest.param(kind, row, id=f"{row[0]}: {row[1]}") for kind in TABLE for row in TABLE[kind].get(outcome, ())]


def placed(kind: str, path: str, value: Any, instead_of: Any = ()) -> Raw:
    """The base with the value at its path, without the fields of the same mapping that it replaces."""
    spec: Raw = copy.deepcopy(TABLE[kind]["base"])
    at: Any = spec
    *way, last = path.split(".")
    for step in way:
        at = at[int(step)] if step.isdigit() else at.setdefault(step, {})
    if last.isdigit():
        at.append(value)
    else:
        at[last] = value
        for name in instead_of:
            del at[name]
    return spec


def read(kind: str, spec: Raw) -> list[Spec]:
    return read_policy(REFS[kind], (spec,))


@pytest.mark.parametrize("kind", TABLE)
def test_the_base_is_served(kind: str) -> None:
    (spec,) = read(kind, TABLE[kind]["base"])
    assert spec.rules


@pytest.mark.parametrize(("kind", "row"), rows("served"))
def test_a_field_that_is_served_means_something(kind: str, row: list[Any]) -> None:
    assert read(kind, placed(kind, *row)) != read(kind, TABLE[kind]["base"])


@pytest.mark.parametrize(("kind", "row"), rows("refused"))
def test_a_field_that_is_not_served_refuses_the_policy_by_name(kind: str, row: list[Any]) -> None:
    with pytest.raises(BadObject) as refused:
        read(kind, placed(kind, *row))
    path = row[0].split(".")
    where = "spec." + "".join(f"[{step}]" if step.isdigit() else f".{step}" for step in path).lstrip(".")
    assert refused.value.field.startswith(where), str(refused.value)
    assert refused.value.reason


@pytest.mark.parametrize(("kind", "row"), rows("said"))
def test_words_for_people_mean_nothing(kind: str, row: list[Any]) -> None:
    assert read(kind, placed(kind, *row)) == read(kind, TABLE[kind]["base"])


@pytest.mark.parametrize("kind", TABLE)
@pytest.mark.parametrize("path", ["", "ingress.0", "egress.0"])
def test_a_field_that_no_version_knows_refuses_the_policy(kind: str, path: str) -> None:
    with pytest.raises(BadObject) as refused:
        read(kind, placed(kind, f"{path}.serviceAccounts".lstrip("."), [{}]))
    assert refused.value.field.endswith("serviceAccounts") and "unknown field" in refused.value.reason
