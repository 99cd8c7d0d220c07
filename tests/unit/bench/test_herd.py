"""What the herd's figures are made of: the samples of several processes."""

from __future__ import annotations

from bench.herd import Sample, length, peak

FIRST = [Sample(10.0, 0, 5), Sample(11.0, 1, 9), Sample(13.0, 2, 10)]
SECOND = [Sample(10.1, 0, 0), Sample(10.9, 0, 0), Sample(12.0, 2, 7)]


def test_the_return_lasts_from_the_first_that_is_back_to_the_last() -> None:
    assert length([FIRST, SECOND], 2) == 2.0


def test_the_busiest_second_counts_all_processes() -> None:
    assert peak([FIRST, SECOND]) == 7  # what was made by 11.0 is a second old
    assert peak([FIRST, [Sample(10.1, 0, 0), Sample(11.9, 2, 7)]]) == 11
