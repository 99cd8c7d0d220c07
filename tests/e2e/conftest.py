"""One home for all tests of this folder: the demo is performed on it first, then the other tests go on with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from e2e import demo
from lab import Lab


@pytest.fixture(scope="session")
def performance() -> Iterator[tuple[demo.Home, list[str]]]:
    """The home after the demo, and the claims that failed."""
    with Lab("e2e") as lab:
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
