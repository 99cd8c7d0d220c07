from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netstack.core.address import pack
from netstack.ingress.changes import (
    PAYLOAD,
    AddCertificate,
    Change,
    DropCertificate,
    Reload,
    ReplaceDefault,
    ReplaceRoutes,
    SetSlot,
    changes,
    chunks,
    slot_commands,
)
from netstack.ingress.render import State, Wanted
from netstack.ingress.routes import Target

A, B = Target(pack("10.0.0.1"), 80), Target(pack("fd00::2"), 8080)
OLD = State("hash", ((A, None), (None, None)), {"a.lab/": "p0|x"}, {"/c/old.pem": ("a.lab",)}, "AA")
PEMS = {"/c/old.pem": "old", "/c/new.pem": "new"}


def plan(new: State, old: State = OLD) -> list[Change]:
    return changes(old, Wanted(new, PEMS, "default"))


def applied(state: State, steps: list[Change]) -> State:
    """What HAProxy holds after the steps: the model of `haproxy.py`."""
    pools = [list(pool) for pool in state.pools]
    certificates = dict(state.certificates)
    for step in steps:
        if isinstance(step, SetSlot):
            pools[step.pool][step.slot] = step.target
        elif isinstance(step, AddCertificate):
            certificates[step.path] = step.hosts
        elif isinstance(step, DropCertificate):
            del certificates[step.path]
        elif isinstance(step, ReplaceRoutes):
            state = replace(state, routes=step.entries)
        elif isinstance(step, ReplaceDefault):
            state = replace(state, default_certificate="BB")
    return replace(state, pools=tuple(map(tuple, pools)), certificates=certificates)


def test_equal_states_need_nothing() -> None:
    assert plan(OLD) == []


def test_what_routes_lead_to_comes_first_and_goes_last() -> None:
    new = State("hash", ((None, None), (B, None)), {"b.lab/": "p1|x"}, {"/c/new.pem": ("b.lab",)}, "BB")
    assert plan(new) == [
        SetSlot(1, 0, B),
        AddCertificate("/c/new.pem", "new", ("b.lab",)),
        ReplaceDefault("default"),
        ReplaceRoutes({"b.lab/": "p1|x"}),
        DropCertificate("/c/old.pem"),
        SetSlot(0, 0, None),
    ]


def test_another_configuration_or_shape_needs_a_reload_alone() -> None:
    assert plan(replace(OLD, config="other")) == [Reload("haproxy.cfg is another one")]
    grown = replace(OLD, pools=((A, None, B, None), (None, None)), routes={})
    assert plan(grown) == [Reload("2 pools with 6 slots are needed")]


def test_a_certificate_over_the_payload_needs_a_reload() -> None:
    wanted = Wanted(replace(OLD, certificates={"/c/big.pem": ("a.lab",)}), {"/c/big.pem": "x" * (PAYLOAD + 1)}, "")
    assert changes(OLD, wanted) == [Reload("/c/big.pem is too long for the runtime socket")]
    hosts = tuple(f"host-{number}.a-long-domain.lab" for number in range(1000))
    wanted = Wanted(replace(OLD, certificates={"/c/new.pem": hosts}), PEMS, "")
    assert changes(OLD, wanted) == [Reload("/c/new.pem is too long for the runtime socket")]


def test_a_slot_is_in_maintenance_while_it_changes() -> None:
    assert list(slot_commands(SetSlot(3, 1, B))) == [
        "set server p3/s1 state maint",
        "set server p3/s1 addr fd00::2 port 8080",
        "set server p3/s1 state ready",
    ]
    assert list(slot_commands(SetSlot(3, 1, None))) == ["set server p3/s1 state maint"]


@given(
    st.dictionaries(st.text("abc./", min_size=1, max_size=20), st.text("p0|x", min_size=1, max_size=3000), max_size=30)
)
def test_chunks_fit_and_lose_nothing(entries: dict[str, str]) -> None:
    made = list(chunks(entries))
    assert all(0 < len(chunk) <= PAYLOAD for chunk in made)
    assert dict(line.split(" ", 1) for chunk in made for line in chunk.splitlines()) == entries


SLOTS = st.lists(st.sampled_from([None, A, B]), min_size=2, max_size=2).map(tuple)
STATES = st.builds(
    State,
    config=st.just("hash"),
    pools=st.tuples(SLOTS, SLOTS),
    routes=st.dictionaries(st.sampled_from(["a/", "b/"]), st.sampled_from(["p0|x", "p1|x"])),
    certificates=st.dictionaries(st.sampled_from(["/c/old.pem", "/c/new.pem"]), st.just(("a.lab",))),
    default_certificate=st.just("BB"),
)


@given(STATES, STATES)
def test_any_state_becomes_any_other_and_no_route_leads_to_a_slot_not_yet_set(old: State, new: State) -> None:
    steps = plan(new, old)
    assert applied(old, steps) == new
    switched = next((index for index, step in enumerate(steps) if isinstance(step, ReplaceRoutes)), len(steps))
    between = applied(old, steps[: switched + 1])
    for pool, slots in enumerate(new.pools):
        assert all(between.pools[pool][slot] == wanted for slot, wanted in enumerate(slots) if wanted)
    assert new.certificates.keys() <= between.certificates.keys()


@pytest.mark.parametrize("old", [replace(OLD, default_certificate="")])
def test_a_default_that_is_missing_is_set(old: State) -> None:
    assert plan(OLD, old) == [ReplaceDefault("default")]
