from hypothesis import given
from hypothesis import strategies as st

from netstack.core.table import Op, Table, diff, replay

entries = st.dictionaries(st.binary(min_size=1, max_size=2), st.binary(max_size=1), max_size=8)


@given(entries, entries)
def test_replaying_the_difference_gives_the_new_table(old: dict[bytes, bytes], new: dict[bytes, bytes]) -> None:
    changes = diff(Table("t", old), Table("t", new))
    assert replay(Table("t", old), changes) == Table("t", new)
    assert diff(Table("t", new), Table("t", new)) == []


@given(entries, entries)
def test_what_both_tables_hold_is_never_missing(old: dict[bytes, bytes], new: dict[bytes, bytes]) -> None:
    table = Table("t", old)
    for change in diff(table, Table("t", new)):
        table = replay(table, [change])
        assert old.keys() & new.keys() <= table.entries.keys()


def test_puts_come_before_deletes() -> None:
    changes = diff(Table("t", {b"a": b"1"}), Table("t", {b"b": b"2"}))
    assert [(c.op, c.key) for c in changes] == [(Op.PUT, b"b"), (Op.DELETE, b"a")]
