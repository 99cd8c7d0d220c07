"""Beats and acknowledgements: nothing that was not sealed whole is ever believed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netstack.announcer.beat import CLAIMS_MAX, NAMES_MAX, Ack, Beat, Claim, Flag, Stage, decode, encode
from netstack.announcer.frames import FrameError

KEY = b"sixteen bytes ok"

names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=60)
addresses = st.binary(min_size=16, max_size=16)
u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)
flags = st.sampled_from([Flag(0), Flag.LISTENING, Flag.DRAINING | Flag.GATEWAY])
claims = st.builds(Claim, addresses, u32, st.sampled_from(Stage))
beats = st.builds(
    Beat, names, u64, u32, flags,
    st.lists(names, max_size=4).map(tuple), st.lists(claims, max_size=CLAIMS_MAX).map(tuple),
)  # fmt: skip
acks = st.builds(Ack, names, u64, u32, u64, st.lists(addresses, max_size=CLAIMS_MAX).map(tuple))


@given(beats | acks)
def test_round_trip(message: Beat | Ack) -> None:
    assert decode(encode(message, KEY), KEY) == message


@given(beats | acks, st.binary(max_size=40))
def test_padding_behind_a_short_frame_is_ignored(message: Beat | Ack, padding: bytes) -> None:
    assert decode(encode(message, KEY) + padding, KEY) == message


@given(beats | acks, st.data())
def test_a_changed_or_cut_frame_is_refused(message: Beat | Ack, data: st.DataObject) -> None:
    payload = bytearray(encode(message, KEY))
    at = data.draw(st.integers(0, len(payload) - 1))
    cut = data.draw(st.booleans())
    if cut:
        del payload[at:]
    else:
        payload[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(FrameError):
        decode(bytes(payload), KEY)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(payload: bytes) -> None:
    with pytest.raises(FrameError):
        decode(payload, KEY)


def test_another_cluster_is_not_heard() -> None:
    with pytest.raises(FrameError, match="not sealed by this cluster's key"):
        decode(encode(Beat("n1", 1, 1), b"another cluster's key"), KEY)


def test_another_version_says_so() -> None:
    with pytest.raises(FrameError, match="version 2, kind 1 is not spoken here"):
        decode(b"\x02" + encode(Beat("n1", 1, 1), KEY)[1:], KEY)


def test_a_full_beat_fits_an_ethernet_frame() -> None:
    name, peers = "n" * 52, tuple(chr(97 + i) * 52 for i in range(13))
    assert len(name) + 1 + sum(len(peer) + 1 for peer in peers) <= NAMES_MAX
    full = tuple(Claim(bytes([i]) * 16, 1, Stage.OWNER) for i in range(CLAIMS_MAX))
    assert len(encode(Beat(name, 1, 1, Flag(0), peers, full), KEY)) <= 1500
