"""Port ranges as prefixes. Reading is tested with the policies that hold ports."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from netstack.agent.policy.ports import prefixes


@given(st.integers(0, 65535), st.integers(0, 65535))
def test_prefixes_cover_a_range_exactly(a: int, b: int) -> None:
    first, last = min(a, b), max(a, b)
    blocks = list(prefixes(first, last))
    covered = [(port, port + (1 << (16 - bits)) - 1) for port, bits in blocks]
    assert covered[0][0] == first and covered[-1][1] == last
    assert all(left[1] + 1 == right[0] for left, right in pairwise(covered))
    assert all(port % (1 << (16 - bits)) == 0 for port, bits in blocks)
    assert len(blocks) <= 30


def test_few_prefixes_are_used() -> None:
    assert list(prefixes(80, 80)) == [(80, 16)]
    assert list(prefixes(0, 65535)) == [(0, 0)]
    assert list(prefixes(8000, 8999)) == [(8000, 10), (8064, 9), (8192, 7), (8704, 8), (8960, 11), (8992, 13)]
