from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.kubelab.netstack.plugins.module_utils import _node


def test_a_node_that_serves_is_returned_as_it_speaks() -> None:
    node = _node.parse_status(0, '{"ready": true, "reasons": [], "release": "0.1.0-1", "broken": ["x"]}', "", "0.1.0-1")
    assert (node["ready"], node["broken"], node["policies"]) == (True, ["x"], [])


def test_a_node_that_is_not_ready_says_why_with_exit_status_1() -> None:
    node = _node.parse_status(1, '{"ready": false, "reasons": ["dns: no answer"]}', "", "0.1.0-1")
    assert (node["ready"], node["reasons"], node["release"]) == (False, ["dns: no answer"], "0.1.0-1")


@pytest.mark.parametrize(
    ("out", "err", "reason"),
    [
        ("", "Traceback\nValueError: boom\n", "netstack status ended with 1: ValueError: boom"),
        ("not json", "", "netstack status ended with 1: not json"),
        ("", "", "netstack status ended with 1: no output"),
        ("{}", "", "netstack status --json: 'ready' is missing"),
    ],
)
def test_an_answer_that_is_none_is_a_reason(out: str, err: str, reason: str) -> None:
    node = _node.parse_status(1, out, err, None)
    assert (node["ready"], node["reasons"]) == (False, [reason])


def test_the_release_is_read_where_the_switch_points(tmp_path: Path) -> None:
    assert _node.current_release(str(tmp_path)) is None
    (tmp_path / "releases/one").mkdir(parents=True)
    (tmp_path / "releases/one/release").write_text("one\n")
    (tmp_path / "current").symlink_to("releases/one")
    assert _node.current_release(str(tmp_path)) == "one"
