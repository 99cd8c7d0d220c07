"""One home for all tests of this folder: the demo is performed on it first, then the other tests go on with it.

All of it is done with each source of objects: the folder of manifests, and a real API server (which is skipped where
no control plane can be had). NETSTACK_SOURCE chooses one; NETSTACK_E2E_LAB names another lab, for a second run beside.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from e2e import demo
from lab import Lab
from lab.controlplane import skip_reason
from lab.lab import SOURCES

CHOSEN = os.environ.get("NETSTACK_SOURCE")


@pytest.fixture(scope="session", params=[CHOSEN] if CHOSEN else SOURCES)
def performance(request: pytest.FixtureRequest) -> Iterator[tuple[demo.Home, list[str]]]:
    """The home after the demo, and the claims that failed."""
    why_not = skip_reason() if request.param == "kubernetes" else None
    if why_not is not None:
        pytest.skip(why_not)
    with Lab(os.environ.get("NETSTACK_E2E_LAB") or "e2e", source=request.param) as lab:
        yield demo.perform(lab)


@pytest.fixture(scope="session")
def home(performance: tuple[demo.Home, list[str]]) -> demo.Home:
    """The home with every node on and ready."""
    home, _ = performance
    for node in home.lab.nodes:
        if node.boot_state() is None:
            home.lab.boot(node.name)
        demo.wait_ready(node)
    return home
