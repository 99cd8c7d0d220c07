"""The vocabulary between an election and those who carry it out."""

from __future__ import annotations

import inspect
from typing import get_args

import pytest

from instruments.lan import Lan
from netstack.announcer import events
from netstack.announcer.apply import Segment


@pytest.mark.parametrize("carrier", [Segment._carry_out, Lan._carry_out])
def test_everything_an_election_can_say_is_carried_out_by_the_product_and_by_the_fake_lan(carrier: object) -> None:
    source = inspect.getsource(carrier)  # type: ignore[arg-type]
    assert [event.__name__ for event in get_args(events.Output) if f"{event.__name__}(" not in source] == []
