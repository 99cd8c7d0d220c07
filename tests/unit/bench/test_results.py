"""The file and the table."""

from __future__ import annotations

import json

from bench.__main__ import FIGURES, FILE
from bench.estimate import Estimate, counts
from bench.figures import Figure
from bench.results import Run, dump, load, merged, result, table

OLD, NEW = Run("2026-01-01T00:00:00Z", "a board", "aaaa"), Run("2026-02-01T00:00:00Z", "a board", "bbbb")
FAST = Figure("lb.tcp_new.10", "1/s", "connections", "direct")
SMALL = Figure("pss.agent", "MB", "memory")
SURE = Estimate(19123.456, 0.93, 30, 19123.456, 21000.0, 0.01)
UNSURE = Estimate(19123.456, 0.99, 30, 19123.456, 21000.0, 0.01)
PLAIN = Estimate(31.25, None, 20, 31.25, 31.5, 0.1)


def test_a_result_has_the_form_that_readers_rely_on() -> None:
    assert result(FAST, SURE, NEW) == {
        "figure": "lb.tcp_new.10",
        "value": 19123.0,
        "unit": "1/s",
        "against": "direct",
        "ratio": 0.93,
        "n": 30,
        "median": 19123.0,
        "p95": 21000.0,
        "half_width": 0.01,
        "counts": True,
        "commit": "bbbb",
        "date": "2026-02-01T00:00:00Z",
    }


def test_a_result_says_whether_its_ratio_counts() -> None:
    few = Estimate(19123.456, 0.5, 2, 19123.456, 21000.0, None)
    promised = Figure("lb.tcp_new.10", "1/s", "connections", "direct", target=0.95)
    assert [result(FAST, found, NEW)["counts"] for found in (SURE, UNSURE, few)] == [True, False, False]
    assert result(promised, SURE, NEW)["counts"] is False, "too near to what it is held against"
    assert result(SMALL, PLAIN, NEW)["counts"] is None


def test_the_committed_results_say_so_by_what_is_promised_today() -> None:
    for one in load(FILE)["results"]:
        ratio, target = one["ratio"], FIGURES[one["figure"]].target
        assert one["counts"] is (None if ratio is None else counts(ratio, one["half_width"], target)), one["figure"]


def test_a_run_replaces_its_own_figures_only_and_each_keeps_its_commit() -> None:
    known = ["lb.tcp_new.10", "pss.agent"]
    first = merged({}, OLD, [result(SMALL, PLAIN, OLD), result(FAST, SURE, OLD)], known)
    second = merged(first, NEW, [result(FAST, UNSURE, NEW)], known)
    assert (second["commit"], second["date"]) == ("bbbb", NEW.date)
    assert [(one["figure"], one["commit"]) for one in second["results"]] == [
        ("lb.tcp_new.10", "bbbb"),
        ("pss.agent", "aaaa"),
    ]


def test_what_is_no_figure_any_more_goes() -> None:
    first = merged({}, OLD, [result(SMALL, PLAIN, OLD)], ["pss.agent"])
    assert merged(first, NEW, [], ["lb.tcp_new.10"])["results"] == []


def test_the_file_is_json_with_a_line_a_result() -> None:
    data = merged({}, OLD, [result(SMALL, PLAIN, OLD), result(FAST, SURE, OLD)], ["lb.tcp_new.10", "pss.agent"])
    text = dump(data)
    assert json.loads(text) == data
    assert sum("figure" in line for line in text.splitlines()) == 2


def test_the_table_marks_what_does_not_count() -> None:
    figures = {FAST.name: FAST, SMALL.name: SMALL}
    lines = table([result(FAST, SURE, NEW), result(SMALL, PLAIN, NEW)], figures).splitlines()
    assert lines[0].split() == ["figure", "value", "unit", "ratio", "+/-", "n", "median", "p95", "against"]
    assert "does not count" not in lines[1]
    assert lines[2].split() == ["pss.agent", "31.25", "MB", "-", "0.1", "20", "31.25", "31.5"]
    assert "does not count: half-width" in table([result(FAST, UNSURE, NEW)], figures)
    few = Estimate(19123.456, 0.5, 2, 19123.456, 21000.0, None)
    assert "does not count: too few rounds" in table([result(FAST, few, NEW)], figures)
