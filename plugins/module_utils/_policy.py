# Copyright (c) 2026, The netstack developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node says of a policy: whether it may be written here, whether it is in force, and the difference it makes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EFFECT = ("selects", "flows", "pairs", "trial_flows", "trial_pairs", "notes", "lines")
"""Of `netstack effect --json`: what a user is told."""


def hindrance(told: Mapping[str, Any], kubeconfig: str | None) -> str:
    """Why the object is not to be written as asked for; "" if nothing is in the way."""
    policy, beside = told["policy"], told.get("beside")
    if told["source"] != "directory" and not kubeconfig:
        return f"this node takes its objects from the API server: kubeconfig is required to change {policy} there"
    if told["source"] == "directory" and kubeconfig:
        return "this node takes its objects from a folder, and nothing from the API server that kubeconfig is for"
    if told.get("elsewhere"):
        return f"{policy} is defined in {', '.join(told['elsewhere'])} already: change it there, or take it away there"
    if beside:
        return f"{told['file']} holds {', '.join(beside)} too: a file of this module holds one object"
    return ""


def lacking(answer: Mapping[str, Any], digest: str) -> str:
    """Why what is wanted is not in force, by the agent's answer to `policy`; "" if it is.

    `digest`: of the version that shall be; "" if none shall.
    """
    view = answer["policy"]
    if answer["unready"] or not answer["generation"]:
        return "; ".join(answer["unready"]) or "nothing is in force yet"
    if not digest:
        return f"it is still there: {view['state']}" if view else ""
    if view is None:
        return "the agent does not have it"
    if view.get("reason"):
        return f"{view['state']}: {view['reason']}"
    if view["digest"] != digest:
        return f"{view['state']}, but another version of it" if view["digest"] else view["state"]
    return ""


def effect(told: Mapping[str, Any]) -> dict[str, Any]:
    return {name: told[name] for name in EFFECT}


def diff(policy: str, before: str, after: str, told: Mapping[str, Any]) -> dict[str, str]:
    """For --diff: the manifests, and below the new one what it does."""
    said = "".join(f"# {line}\n" for line in (*told["lines"], *told["notes"])) if before != after else ""
    return {"before_header": policy, "before": before, "after_header": policy, "after": after + said}
