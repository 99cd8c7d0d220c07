"""The main job, whole: what `make demo` shows holds, on a lab of its own."""

from __future__ import annotations

import pytest

from e2e import demo
from lab import Lab

pytestmark = [pytest.mark.root, pytest.mark.lab]


def test_every_claim_of_the_demo_holds() -> None:
    with Lab("e2e") as lab:
        assert demo.perform(lab) == []
