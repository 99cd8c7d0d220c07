"""bpf(2) itself: maps of every kind, programs, and the errors that they give."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from netstack.kernel import layout as l
from netstack.kernel.bpf import SCHED_CLS, BpfError, Map, MapDefinition, Program, SoloMap, possible_cpus

pytestmark = pytest.mark.root
MOVE_ONE, EXIT = bytes.fromhex("b700000001000000"), bytes.fromhex("9500000000000000")


def number(value: int) -> bytes:
    return l.Number(value).pack()


@pytest.fixture(params=[l.HASH, l.LRU_HASH], ids=["hash", "lru"])
def table(request: pytest.FixtureRequest) -> Map:
    return Map.create("table", MapDefinition(request.param, 4, 4, 10_000))


def test_put_get_delete(table: Map) -> None:
    assert table.get(number(1)) is None
    table.put(number(1), number(10))
    assert table.get(number(1)) == number(10)
    assert table.delete(number(1)) is True
    assert table.delete(number(1)) is False


def test_batches_larger_than_one_call(table: Map) -> None:
    entries = {number(i): number(i * 2) for i in range(9000)}
    table.put_batch(entries)
    assert dict(table.items()) == entries
    table.delete_batch([*list(entries)[:8990], number(99_999)])
    assert len(dict(table.items())) == 10


def test_an_empty_map_has_no_items(table: Map) -> None:
    assert list(table.items()) == []


def test_a_full_map_says_so() -> None:
    full = Map.create("full", MapDefinition(l.HASH, 4, 4, 2))
    with pytest.raises(BpfError) as refusal:
        full.put_batch({number(i): number(i) for i in range(3)})
    assert refusal.value.errno == errno.E2BIG
    assert str(refusal.value) == "write to full: Argument list too long (errno 7)"


def test_a_longest_prefix_table() -> None:
    trie = Map.create("trie", MapDefinition(l.LPM_TRIE, 20, 24, 100, l.NO_PREALLOC))
    wide, narrow = l.PrefixKey(96, bytes(16)), l.PrefixKey(120, bytes(16))
    trie.put(wide.pack(), l.Identity(1).pack())
    trie.put(narrow.pack(), l.Identity(2).pack())
    found = trie.get(l.PrefixKey(128, bytes(15) + b"\x09").pack())
    assert found is not None and l.Identity.unpack(found).identity == 2
    assert len(dict(trie.items())) == 2


def test_a_per_cpu_value_is_one_number_a_cpu() -> None:
    counters = Map.create("counters", MapDefinition(l.PERCPU_ARRAY, 4, 8, 3))
    values = b"".join(l.Instant(i).pack() for i in range(possible_cpus()))
    counters.put(number(1), values)
    assert counters.get(number(1)) == values
    assert [len(value) for _, value in counters.items()] == [8 * possible_cpus()] * 3
    assert counters.sums() == {0: 0, 1: sum(range(possible_cpus())), 2: 0}


def test_wrong_sizes_are_refused_before_the_kernel_reads_beyond_them(table: Map) -> None:
    for broken in (
        lambda: table.get(b"abc"),
        lambda: table.put(b"abc", number(1)),
        lambda: table.put(number(1), b"abc"),
        lambda: table.put_batch({number(1): b"abc"}),
        lambda: table.delete(b"abcde"),
    ):
        with pytest.raises(ValueError, match=r"table: a (key|value) has 4 bytes"):
            broken()


def test_what_is_not_pinned_cannot_be_opened(tmp_path: Path) -> None:
    for kind in (Map, Program):
        with pytest.raises(BpfError) as refusal:
            kind.open(tmp_path / "gone")
        assert (refusal.value.errno, refusal.value.operation) == (errno.ENOENT, "open")


def test_a_pin_needs_a_bpffs(table: Map, tmp_path: Path) -> None:
    with pytest.raises(BpfError, match=f"pin {tmp_path}/x: "):
        table.pin(tmp_path / "x")


def test_a_program_runs_and_says_what_it_returned() -> None:
    with Program.load("one", SCHED_CLS, MOVE_ONE + EXIT) as program:
        returned, packet, _, duration = program.test_run(bytes(64), repeat=10)
        assert (returned, packet) == (1, bytes(64)) and duration >= 0
        assert program.map_ids() == frozenset()


def test_a_refused_program_comes_with_the_verifiers_words() -> None:
    with pytest.raises(BpfError) as refusal:
        Program.load("endless", SCHED_CLS, EXIT)
    assert (refusal.value.operation, refusal.value.name) == ("load program", "endless")
    assert "R0 !read_ok" in refusal.value.log and "R0 !read_ok" in str(refusal.value)


def test_closing_twice_is_once(table: Map) -> None:
    table.close()
    table.close()
    assert table.fd == -1


def test_a_map_of_one_thread_answers_as_any_other(table: Map) -> None:
    with SoloMap(os.dup(table.fd), "table") as solo:
        table.put(number(1), number(10))
        assert (solo.get(number(1)), solo.get(number(2))) == (number(10), None)
        table.put(number(2), number(20))
        assert (solo.get(number(2)), solo.get(number(1))) == (number(20), number(10))
        with pytest.raises(ValueError, match="a key has 4 bytes"):
            solo.get(b"x")
        solo.put(number(3), number(30))
        solo.put(number(1), number(11))
        assert dict(table.items()) == {number(1): number(11), number(2): number(20), number(3): number(30)}
        assert (solo.get(number(2)), solo.get(number(3))) == (number(20), number(30))
        with pytest.raises(ValueError, match="a value has 4 bytes"):
            solo.put(number(1), b"x")


def test_a_map_of_one_thread_that_is_full_says_so() -> None:
    with SoloMap.create("table", MapDefinition(l.HASH, 4, 4, 1)) as solo:
        solo.put(number(1), number(10))
        with pytest.raises(BpfError, match="write to table") as refusal:
            solo.put(number(2), number(20))
        assert refusal.value.errno == errno.E2BIG
        assert solo.get(number(1)) == number(10)
