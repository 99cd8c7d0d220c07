"""The election on a fake LAN. Every test also checks, by the instrument, that no two nodes ever answer for one
address."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instruments.depth import examples
from instruments.lan import KEY, Lan
from netstack.announcer.beat import Ack, Beat, Claim, Stage, decode, encode
from netstack.announcer.elect import Election
from netstack.announcer.events import Alive, Lost, Output, Owned, Send
from netstack.announcer.settings import Timing
from netstack.core.address import pack

VIP = "192.168.86.18"
TEN = [f"192.168.86.{host}" for host in range(5, 15)]
SEEDS = range(20)


def settled(count: int, **options: object) -> tuple[Lan, str]:
    lan = Lan(count, **options)  # type: ignore[arg-type]
    lan.settle(3)
    lan.forget_darkness()
    return lan, lan.owner(VIP)


def others(lan: Lan, name: str) -> list[str]:
    return [node for node in lan.nodes if node != name]


# ---- start ----


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_after_a_cold_start_one_node_answers_once_all_have_listened(count: int) -> None:
    lan, owner = settled(count)
    ((time, name, event),) = lan.history
    assert (name, event.reason) == (owner, "nobody held it")
    assert 1.1 < time < 1.3  # listens three takeover times


def test_without_a_witness_a_lone_node_of_three_stays_silent() -> None:
    lan = Lan(3, witness=False, start=False)
    lan.start("n1")
    lan.run(5)
    assert lan.owners(VIP) == []


def test_with_a_witness_a_lone_node_of_four_answers() -> None:
    lan = Lan(4, start=False)
    lan.start("n2")
    lan.settle(5)
    assert lan.owner(VIP) == "n2"


def test_a_lone_node_that_does_not_hear_the_witness_stays_silent() -> None:
    lan = Lan(4, start=False)
    lan.start("n2")
    lan.cut(("gateway", "n2"))
    lan.run(5)
    assert lan.owners(VIP) == []


def test_ten_addresses_spread_over_the_nodes() -> None:
    lan = Lan(4, TEN)
    lan.settle()
    assert sorted(Counter(lan.owner(address) for address in TEN).values()) == [2, 2, 3, 3]


# ---- an owner fails ----


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("count", [2, 3, 4])
def test_power_cut_of_the_owner(count: int, seed: int) -> None:
    lan, owner = settled(count, seed=seed)
    lan.run(seed * 0.007)
    lan.power_cut(owner)
    lan.settle(3)
    assert lan.longest_dark(VIP) < 0.42
    (_, heir, event) = lan.history[-1]
    assert heir == lan.owner(VIP) != owner
    assert isinstance(event, Owned) and event.term == 2 and event.reason.startswith(f"{owner} was silent for 0.4")
    assert event.dark_s == pytest.approx(0.405, abs=0.01)


def test_addresses_of_a_dead_owner_spread_over_the_rest() -> None:
    lan = Lan(4, TEN)
    lan.settle()
    lan.forget_darkness()
    lan.power_cut(lan.owner(TEN[0]))
    lan.settle(3)
    assert max(lan.longest_dark(address) for address in TEN) < 0.42
    assert sorted(Counter(lan.owner(address) for address in TEN).values()) == [3, 3, 4]


@pytest.mark.parametrize("fault", [Lan.kill, Lan.stall])
def test_a_killed_or_frozen_process_is_fenced_by_its_kernel(fault: Callable[[Lan, str], None]) -> None:
    lan, owner = settled(3)
    fault(lan, owner)
    lan.settle(3)
    assert lan.owner(VIP) != owner
    assert lan.longest_dark(VIP) < 0.15  # the kernel goes on answering until the fence


def test_a_thawed_owner_finds_its_address_gone_and_leaves_it() -> None:
    lan, owner = settled(3)
    lan.stall(owner)
    lan.run(2)
    heir = lan.owner(VIP)
    lan.resume(owner)
    lan.settle(3)
    assert lan.owner(VIP) == heir
    assert [type(event) for _, name, event in lan.history if name == owner] == [Owned, Lost]


def test_a_short_freeze_moves_nothing() -> None:
    lan, owner = settled(3)
    lan.stall(owner)
    lan.run(0.2)
    lan.resume(owner)
    lan.settle(3)
    assert (lan.owner(VIP), lan.longest_dark(VIP)) == (owner, 0)


def test_a_slow_loop_does_not_take_its_peers_for_dead() -> None:
    lan, owner = settled(4, witness=False)
    for name in others(lan, owner):
        lan.stall(name)
        lan.run(5)
        lan.resume(name)
        lan.run(1)
        assert (lan.owner(VIP), lan.longest_dark(VIP)) == (owner, 0)


def test_cable_pull_of_the_owner() -> None:
    lan, owner = settled(3)
    lan.carrier(owner, False)
    assert lan.owners(VIP) == []
    assert lan.history[-1][2].reason == "the interface lost its carrier"
    lan.settle(3)
    assert lan.owner(VIP) != owner and lan.longest_dark(VIP) < 0.42
    lan.carrier(owner, True)
    lan.settle(5)


def test_all_stopped_falls_silent_within_the_fence() -> None:
    lan, _ = settled(3)
    for name in lan.nodes:
        lan.kill(name)
    lan.run(0.36)
    assert lan.owners(VIP) == []


# ---- the others fail ----


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_owner_does_not_blink_when_its_peers_die_one_after_the_other(count: int, seed: int) -> None:
    lan, owner = settled(count, seed=seed)
    for name in others(lan, owner):
        lan.power_cut(name)
        lan.settle(1 + seed * 0.007)
        assert (lan.owner(VIP), lan.longest_dark(VIP)) == (owner, 0)


def test_nor_when_they_all_die_at_once() -> None:
    lan, owner = settled(4)
    for name in others(lan, owner):
        lan.power_cut(name)
    lan.settle(3)
    assert (lan.owner(VIP), lan.longest_dark(VIP)) == (owner, 0)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_nothing_moves_when_nodes_come_back(count: int) -> None:
    lan, owner = settled(count)
    for name in others(lan, owner):
        lan.power_cut(name)
        lan.run(1)
        lan.start(name)
        lan.settle(3)
    for name in others(lan, owner):
        lan.power_cut(name)
    lan.run(20)
    for name in others(lan, owner):  # forgotten by now, and called by broadcast
        lan.start(name)
    lan.settle(5)
    assert (lan.owner(VIP), lan.longest_dark(VIP)) == (owner, 0)
    assert len(lan.history) == 1


def test_the_gateway_may_reboot() -> None:
    lan, owner = settled(3)
    lan.cut(*(("gateway", name) for name in lan.nodes))
    lan.settle(60)
    assert (lan.owner(VIP), lan.longest_dark(VIP)) == (owner, 0)


# ---- bad links ----


@pytest.mark.parametrize("direction", ["to", "from", "both"])
def test_one_bad_link_between_the_owner_and_a_peer_moves_nothing(direction: str) -> None:
    lan, owner = settled(3)
    peer = others(lan, owner)[0]
    lan.cut(*{"to": [(owner, peer)], "from": [(peer, owner)], "both": [(owner, peer), (peer, owner)]}[direction])
    lan.settle(30)
    assert (lan.owner(VIP), lan.longest_dark(VIP)) == (owner, 0)
    assert len(lan.history) == 1


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("witness", [True, False])
def test_an_owner_that_no_longer_hears_is_replaced(count: int, witness: bool) -> None:
    """Its own frames still arrive: only acknowledgements show it that it is deaf."""
    lan, owner = settled(count, witness=witness)
    lan.cut(("gateway", owner), *((name, owner) for name in others(lan, owner)))
    lan.run(3)
    if count > 2 or witness:
        assert lan.owner(VIP) != owner
        assert lan.longest_dark(VIP) < 0.6
    lan.heal()
    lan.settle(5)


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("witness", [True, False])
def test_an_owner_that_is_no_longer_heard_is_replaced(count: int, witness: bool) -> None:
    """It hears all its peers: a mere heartbeat would have it go on."""
    lan, owner = settled(count, witness=witness)
    lan.cut((owner, "gateway"), *((owner, name) for name in others(lan, owner)))
    lan.run(3)
    if count > 2 or witness:
        assert lan.owner(VIP) != owner
        assert lan.longest_dark(VIP) < 0.45
    lan.heal()
    lan.settle(5)


@pytest.mark.parametrize("seed", SEEDS)
def test_loss_of_two_percent_moves_nothing(seed: int) -> None:
    lan, owner = settled(3, seed=seed, loss=0.02, witness=False)
    lan.settle(20)
    assert (lan.owner(VIP), lan.longest_dark(VIP)) == (owner, 0)


def test_a_partition_leaves_the_address_with_the_majority() -> None:
    lan, owner = settled(5, witness=False)
    friends = others(lan, owner)
    lan.partition([owner, friends[0]], [*friends[1:], "gateway"])
    lan.run(3)
    assert lan.owner(VIP) in friends[1:]
    lan.heal()
    heir = lan.owner(VIP)
    lan.settle(5)
    assert lan.owner(VIP) == heir


def test_a_torn_lan_with_the_gateway_on_the_small_side_is_mended_by_the_first_beat() -> None:
    """The price of the witness, as the theory says: outside its assumption an owner on either side, then one yields."""
    lan, owner = settled(3)
    small = others(lan, owner)[0]
    lan.partition([small, "gateway"], [owner, others(lan, owner)[1]])
    lan.torn = True
    lan.run(3)
    assert lan.owners(VIP) == sorted([owner, small])
    lan.heal()
    lan.run(0.15)
    assert len(lan.owners(VIP)) == 1
    assert lan.history[-1][2].reason.endswith("holds it with term 2")


# ---- moves on purpose ----


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_node_that_leaves_hands_over_within_milliseconds(count: int, seed: int) -> None:
    lan, owner = settled(count, seed=seed)
    lan.leave(owner)
    lan.run(0.8)
    assert not lan.nodes[owner].election.holdings  # type: ignore[union-attr]
    lan.kill(owner)
    lan.settle(3)
    assert lan.owner(VIP) != owner
    assert lan.longest_dark(VIP) < 0.008
    assert f"handed over to {lan.owner(VIP)}" in lan.story() and f"{owner} hands it over" in lan.story()


def test_all_addresses_of_a_leaving_node_are_handed_over() -> None:
    lan = Lan(3, TEN)
    lan.settle()
    lan.forget_darkness()
    lan.leave("n1")
    lan.run(0.8)
    lan.kill("n1")
    lan.settle(3)
    assert max(lan.longest_dark(address) for address in TEN) < 0.01


def test_the_last_node_that_leaves_falls_silent_at_once() -> None:
    lan, owner = settled(1)
    lan.leave(owner)
    lan.run(0.003)
    assert lan.owners(VIP) == []
    assert lan.history[-1][2].reason == "this node leaves, and no other takes it"


def test_all_leave_at_once() -> None:
    lan, _ = settled(3)
    for name in lan.nodes:
        lan.leave(name)
    lan.run(1)
    assert lan.owners(VIP) == []


def test_a_node_that_may_no_longer_announce_hands_over() -> None:
    lan, owner = settled(3)
    heir = others(lan, owner)[1]
    lan.want({VIP: [heir]})
    lan.settle(1)
    assert lan.owner(VIP) == heir
    assert lan.longest_dark(VIP) < 0.008


def test_an_address_that_nobody_may_announce_is_given_up() -> None:
    lan, _ = settled(3)
    lan.want({VIP: []})
    lan.settle(1)
    assert lan.history[-1][2].reason == "this node may no longer announce it, and no other takes it"


def test_an_address_that_is_released_is_given_up_at_once() -> None:
    lan, _ = settled(3)
    lan.want({})
    assert lan.owners(VIP) == []
    assert lan.history[-1][2].reason == "no longer to be announced"


def test_a_new_address_is_taken_at_once() -> None:
    lan, _ = settled(3)
    lan.want({VIP: lan.nodes, "192.168.86.19": lan.nodes})
    lan.run(0.01)
    assert len(lan.owners("192.168.86.19")) == 1


def test_a_new_address_of_which_the_best_node_has_not_heard_goes_to_the_next() -> None:
    lan, _ = settled(3)
    new = pack("192.168.86.19")
    for name, node in lan.nodes.items():
        eligible = {pack(VIP): frozenset(lan.nodes)} | ({new: frozenset(lan.nodes)} if name == "n3" else {})
        node.election.want(eligible, node.clock(lan.time))  # type: ignore[union-attr]
    lan.run(1)
    assert lan.owner("192.168.86.19") == "n3"


# ---- node_alive ----


def test_a_dead_node_is_believed_alive_for_half_a_second_and_no_longer() -> None:
    lan, _ = settled(3)
    lan.power_cut("n3")
    lan.run(1)
    watcher = lan.nodes["n1"]
    age = watcher.clock(lan.time) - watcher.alive["n3"]
    assert 1 - 0.5 - 0.001 < age < 1 - 0.5 + 0.12
    assert watcher.alive["n2"] > watcher.clock(lan.time)
    assert watcher.alive["n1"] > watcher.clock(lan.time)


def test_a_node_that_reaches_nobody_does_not_judge_others() -> None:
    lan, _ = settled(3)
    lan.partition(["n1"], ["n2", "n3", "gateway"])
    lan.run(2)
    watcher = lan.nodes["n1"]
    assert watcher.alive["n1"] < watcher.clock(lan.time)


# ---- what is not believed ----


def lone(now: float = 10.0) -> Election:
    election = Election("n1", ["n2", "n3"], KEY, 7, Timing(), witness=False, now=0.0)
    election.want({pack(VIP): frozenset(["n1", "n2", "n3"])}, 0.0)
    election.tick(now)
    return election


def beat(sequence: int, *, node: str = "n2", boot: int = 5, stage: Stage | None = Stage.OWNER) -> bytes:
    claims = (Claim(pack(VIP), 3, stage),) if stage else ()
    return encode(Beat(node, boot, sequence, claims=claims), KEY)


MAC = bytes(6)


def believed(outputs: list[Output]) -> bool:
    """Whether a beat was taken for its sender's sign of life and acknowledged."""
    alive = [output for output in outputs if isinstance(output, Alive) and output.node == "n2"]
    acks = [o for o in outputs if isinstance(o, Send) and isinstance(decode(o.payload, KEY), Ack)]
    assert len(alive) == len(acks)
    return bool(alive)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"noise", "malformed or not sealed by this cluster's key"),
        (encode(Beat("n2", 5, 1), b"another cluster's key"), "malformed or not sealed by this cluster's key"),
        (beat(1, node="n9"), "from an unknown node"),
        (beat(1, node="n1"), "from this node's own name"),
        (encode(Ack("n2", 8, 1, 5), KEY), "acknowledges what was not sent"),
        (encode(Ack("n2", 7, 10**6, 5), KEY), "acknowledges what was not sent"),
    ],
)
def test_what_is_not_believed_is_counted_and_changes_nothing(payload: bytes, reason: str) -> None:
    election = lone()
    assert not [output for output in election.receive(MAC, payload, 10.0) if isinstance(output, Alive)]
    assert election.dropped == {reason: 1}


def test_a_replayed_beat_is_neither_acknowledged_nor_proof_of_life() -> None:
    election = lone()
    assert believed(election.receive(MAC, beat(4), 10.0))
    for sequence in (4, 3):
        assert not believed(election.receive(MAC, beat(sequence), 10.01))
    assert election.dropped == {"old or replayed": 2}


def test_a_recording_of_an_earlier_life_does_not_talk_over_a_living_peer() -> None:
    election = lone()
    assert believed(election.receive(MAC, beat(4), 10.0))
    assert not believed(election.receive(MAC, beat(900, boot=4), 10.1))
    assert believed(election.receive(MAC, beat(5), 10.1))
    assert believed(election.receive(MAC, beat(1, boot=6), 10.5))  # a real restart: silence came before
    assert not believed(election.receive(MAC, beat(6), 11.0))  # and the life before is over for good


def test_a_restarted_node_acknowledges_nothing_until_its_forgotten_promises_have_ended() -> None:
    election = Election("n1", ["n2", "n3"], KEY, 7, Timing(), witness=False, now=0.0)
    election.tick(0.0)
    early = [output for output in election.receive(MAC, beat(1), 0.05) if isinstance(output, Send)]
    assert early == []
    assert believed(election.receive(MAC, beat(2), 0.41))


def test_a_promise_counts_from_when_it_was_said() -> None:
    """A node reads an owner's beat and is stopped before it answers: the owner counts on the answer from then."""
    election = Election("n1", ["n2", "n3"], KEY, 7, Timing(), witness=False, now=0.0)
    election.tick(0.0)
    assert believed(election.receive(MAC, beat(1), 10.0))
    election.carried_out(10.3)
    rival = encode(Beat("n3", 9, 1, claims=(Claim(pack(VIP), 4, Stage.CANDIDATE),)), KEY)
    assert [ack.refused for ack in acks(election.receive(MAC, rival, 10.69))] == [(pack(VIP),)]
    rival = encode(Beat("n3", 9, 2, claims=(Claim(pack(VIP), 4, Stage.CANDIDATE),)), KEY)
    assert [ack.refused for ack in acks(election.receive(MAC, rival, 10.71))][-1] == ()


def acks(outputs: list[Output]) -> list[Ack]:
    messages = (decode(output.payload, KEY) for output in outputs if isinstance(output, Send))
    return [message for message in messages if isinstance(message, Ack)]


def test_half_way_through_what_piled_up_no_peer_counts_as_silent() -> None:
    """A node stalls as its listening ends; the gateway's answer lies in its socket before a new owner's beat."""
    election = Election("n1", ["n2", "n3"], KEY, 7, Timing(), witness=True, now=0.0)
    election.want({pack(VIP): frozenset(["n1", "n2", "n3"])}, 0.0)
    for step in range(10):
        election.tick(step / 10)
        election.gateway_answered(step / 10 + 0.001)
    outputs = [
        *election.gateway_answered(1.22),
        *election.receive(MAC, beat(1), 1.22),
        *election.tick(1.22),
    ]
    assert not any(isinstance(output, Owned) for output in outputs)
    assert election.holder(pack(VIP), 1.22) == "n2"


# ---- chaos ----

NODES = ["n1", "n2", "n3", "n4"]
node = st.sampled_from(NODES)
link = st.tuples(node, node)


def step(name: str, *arguments: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[object, ...]]:
    return st.tuples(st.just(name), *arguments, st.floats(0.0, 1.5))


crashes = st.one_of(*(step(name, node) for name in ("kill", "power_cut", "start", "stall", "resume", "leave")))
lags = step("lag", node, st.floats(0.01, 0.6))
breaks = st.one_of(lags, step("cut", link), step("heal"), step("partition", st.lists(node, unique=True)), crashes)


def play(lan: Lan, steps: list[tuple[object, ...]]) -> None:
    for name, *arguments, pause in steps:
        if name == "partition":
            (group,) = arguments
            rest = [other for other in [*lan.nodes, "gateway"] if other not in group]  # type: ignore[operator]
            lan.partition(group, rest)  # type: ignore[arg-type]
        else:
            getattr(lan, str(name))(*arguments)
        lan.run(float(str(pause)))
    lan.loss = 0.0
    lan.heal()
    for name, board in lan.nodes.items():
        if board.stalled:
            lan.resume(name)
        if board.election is None or board.election.holdings is None or name in _left(steps):
            lan.start(name)
    lan.settle(8)


def _left(steps: list[tuple[object, ...]]) -> set[object]:
    return {arguments[0] for name, *arguments, _ in steps if name == "leave"}


@settings(max_examples=examples(8), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.sampled_from([3, 4, 5]), st.floats(0, 0.4), st.lists(breaks, max_size=25))
def test_by_majority_no_fault_at_all_makes_two_owners(
    seed: int, count: int, loss: float, steps: list[tuple[object, ...]]
) -> None:
    lan = Lan(count, [VIP, "192.168.86.19"], seed=seed, witness=False, loss=loss)
    lan.run(1.5)
    play(lan, [step for step in steps if count > 3 or ("n4" not in step and ("n4" not in _flat(step)))])


def _flat(step: tuple[object, ...]) -> list[object]:
    return [item for part in step if isinstance(part, tuple | list) for item in part]


@settings(max_examples=examples(8), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.lists(crashes, max_size=25))
def test_with_a_witness_no_crash_stall_or_restart_makes_two_owners(seed: int, steps: list[tuple[object, ...]]) -> None:
    lan = Lan(4, [VIP, "192.168.86.19"], seed=seed)
    lan.run(1.5)
    play(lan, steps)
