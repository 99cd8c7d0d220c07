from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.kubelab.netstack.plugins.module_utils import _policy

POLICY, FILE = "NetworkPolicy one/p", "/etc/netstack/manifests/networkpolicy.one.p.yaml"
FOLDER = {"policy": POLICY, "source": "directory", "file": FILE, "elsewhere": [], "beside": []}
API = {"policy": POLICY, "source": "kubernetes"}
VIEW = {"policy": POLICY, "state": "enforced", "digest": "d1", "selects": 1, "not_enforced": []}


@pytest.mark.parametrize(
    ("told", "kubeconfig", "reason"),
    [
        (FOLDER, None, ""),
        (API, "/kubeconfig", ""),
        (API, None, "this node takes its objects from the API server: kubeconfig is required"),
        (FOLDER, "/kubeconfig", "this node takes its objects from a folder"),
        (FOLDER | {"elsewhere": ["/m/mine.yaml"]}, None, f"{POLICY} is defined in /m/mine.yaml already"),
        (FOLDER | {"beside": ["NetworkPolicy one/q"]}, None, f"{FILE} holds NetworkPolicy one/q too"),
    ],
)
def test_what_is_in_the_way(told: dict[str, Any], kubeconfig: str | None, reason: str) -> None:
    said = _policy.hindrance(told, kubeconfig)
    assert said.startswith(reason) and bool(said) == bool(reason)


@pytest.mark.parametrize(
    ("digest", "answer", "reason"),
    [
        ("d1", {"policy": VIEW}, ""),
        ("d1", {"policy": VIEW | {"state": "on trial"}}, ""),
        ("d2", {"policy": VIEW}, "enforced, but another version of it"),
        ("d1", {"policy": VIEW | {"digest": "", "state": "not in force yet"}}, "not in force yet"),
        ("d1", {"policy": VIEW | {"state": "refused, last good version enforced", "reason": "spec: bad"}},
         "refused, last good version enforced: spec: bad"),
        ("d1", {"policy": None}, "the agent does not have it"),
        ("d1", {"policy": VIEW, "unready": ["a map is full"]}, "a map is full"),
        ("", {"policy": None}, ""),
        ("", {"policy": None, "generation": 0}, "nothing is in force yet"),
        ("", {"policy": VIEW}, "it is still there: enforced"),
    ],
)  # fmt: skip
def test_what_is_lacking(digest: str, answer: dict[str, Any], reason: str) -> None:
    assert _policy.lacking({"generation": 3, "unready": [], **answer}, digest) == reason


def test_the_difference_has_the_effect_below_the_manifest() -> None:
    told = {"lines": ["pods and nodes:", "  denies a -> b: everything"], "notes": ["there is no X"]}
    assert _policy.diff(POLICY, "", "kind: NetworkPolicy\n", told)["after"] == (
        "kind: NetworkPolicy\n# pods and nodes:\n#   denies a -> b: everything\n# there is no X\n"
    )
    assert _policy.diff(POLICY, "same\n", "same\n", told)["after"] == "same\n"
