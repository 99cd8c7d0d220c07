"""A peer's session: what is new is heard, what is old, doubled or replayed is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netstack.announcer.beat import NO_FLAGS, Beat, Flag
from netstack.announcer.peers import FORMER, Peer

SILENCE_S = 0.23
MAC = bytes.fromhex("020000000002")


def hear(peer: Peer, boot: int, sequence: int, now: float) -> bool:
    return peer.hear(Beat("n2", boot, sequence), MAC, now, SILENCE_S)


def test_a_first_beat_is_heard_and_gives_the_mac() -> None:
    peer = Peer("n2")
    assert hear(peer, 5, 10, 1.0)
    assert (peer.mac, peer.heard_at, peer.boot, peer.sequence) == (MAC, 1.0, 5, 10)


@given(st.lists(st.integers(0, 30), max_size=40))
def test_only_rising_sequences_are_heard(sequences: list[int]) -> None:
    peer, highest = Peer("n2"), 0
    for now, sequence in enumerate(sequences):
        assert hear(peer, 5, sequence, 0.01 * now) == (sequence > highest or now == 0)
        highest = max(highest, sequence)


def test_a_new_life_is_believed_after_silence_and_the_old_one_never_again() -> None:
    peer = Peer("n2")
    assert hear(peer, 5, 10, 1.0)
    assert not hear(peer, 6, 1, 1.2)
    assert hear(peer, 6, 1, 1.3)
    assert not hear(peer, 5, 11, 9.0)
    assert hear(peer, 6, 2, 9.0)


def test_a_life_in_doubt_counts_though_it_is_not_believed() -> None:
    """Beats of two lives may lie in one socket after a stall; the second must not look like silence."""
    peer = Peer("n2")
    assert hear(peer, 5, 10, 1.0)
    assert not hear(peer, 6, 1, 1.2)
    assert peer.counts(1.4, SILENCE_S)
    assert not peer.counts(1.5, SILENCE_S)
    assert hear(peer, 6, 2, 1.5)
    assert not hear(peer, 5, 11, 1.6)
    assert not Peer("n2").counts(1.0, SILENCE_S)


def test_the_memory_of_former_lives_is_bounded() -> None:
    peer = Peer("n2")
    for boot in range(1, 100):
        assert hear(peer, boot, 1, float(boot))
    assert len(peer.former) == FORMER


@pytest.mark.parametrize(
    ("flags", "heard", "takes_part"),
    [
        (NO_FLAGS, ("n1",), True),
        (Flag.GATEWAY, (), True),
        (NO_FLAGS, (), False),  # deaf: can neither acknowledge nor hold
        (Flag.MUTE | Flag.GATEWAY, ("n1",), False),
        (Flag.LISTENING, ("n1",), True),
        (Flag.DRAINING, ("n1",), True),
    ],
)
def test_who_takes_part(flags: Flag, heard: tuple[str, ...], takes_part: bool) -> None:
    assert Peer("n2", beat=Beat("n2", 5, 1, flags, heard)).takes_part is takes_part


def test_who_was_never_heard_does_not_take_part() -> None:
    assert not Peer("n2").takes_part
    assert Peer("n2").flags == NO_FLAGS
