from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ansible_collections.kubelab.netstack.plugins.modules import kernel_facts

Run = Callable[..., dict[str, Any]]


def test_facts_of_this_machine_and_nothing_else(run: Run) -> None:
    said = run(kernel_facts, modules=["no_such_module"], sysctls=["net.ipv4.ip_forward", "no.such.key"])
    assert said["changed"] is False
    assert set(said["ansible_facts"]) == {"netstack_kernel"}
    facts = said["ansible_facts"]["netstack_kernel"]
    assert facts["release"] == os.uname().release
    assert facts["modules"] == {"no_such_module": "absent"}
    assert facts["sysctls"]["no.such.key"] == {"value": None, "writable": False}
    assert facts["sysctls"]["net.ipv4.ip_forward"]["value"] in ("0", "1")
    assert all(need["feature"] and need["reason"] and need["remedy"] for need in facts["missing"])
