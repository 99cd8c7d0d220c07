"""One home for the tests of this folder that look at it after the demo's first minutes: netstack installed, manifests
applied, pods running."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from e2e.demo import Home, site
from lab import Lab


@pytest.fixture(scope="session")
def home() -> Iterator[Home]:
    with Lab("home") as lab:
        site(lab)
        yield Home.furnish(lab)
