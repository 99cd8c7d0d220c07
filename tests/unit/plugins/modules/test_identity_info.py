from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.kubelab.netstack.plugins.modules import identity_info

Run = Callable[..., dict[str, Any]]
KNOWN = [
    {"identity": 1, "name": "host", "labels": {}, "addresses": ["192.168.86.21"], "endpoints": []},
    {
        "identity": 9,
        "name": "pods shop",
        "labels": {"app": "cart", "web": "true", "io.kubernetes.pod.namespace": "shop"},
        "addresses": ["10.244.1.3", "fd00::3"],
        "endpoints": ["shop/cart"],
    },
]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, [1, 9]),
        ({"namespace": "shop"}, [9]),
        ({"namespace": "other"}, []),
        ({"labels": {"app": "cart"}, "address": "fd00:0::3"}, [9]),
        ({"labels": {"app": "till"}}, []),
        ({"labels": {"web": True}}, [9]),
        ({"address": "192.168.86.21"}, [1]),
    ],
)
def test_filters(options: dict[str, Any], found: list[int], run: Run, tmp_path: Path) -> None:
    command = tmp_path / "current/bin/netstack"
    command.parent.mkdir(parents=True)
    command.write_text(f'#!/bin/sh\n[ "$*" = "identities --json" ] && echo \'{json.dumps(KNOWN)}\'\n')
    command.chmod(0o755)
    said = run(identity_info, root=str(tmp_path), **options)
    assert (said["changed"], [one["identity"] for one in said["identities"]]) == (False, found)


def test_what_cannot_be_answered_is_an_error(run: Run, tmp_path: Path) -> None:
    assert run(identity_info, root=str(tmp_path))["msg"].startswith("netstack is not installed")
    assert run(identity_info, root=str(tmp_path), address="here")["msg"].startswith("address: 'here' does not")
