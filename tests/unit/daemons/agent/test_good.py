from __future__ import annotations

from pathlib import Path

import pytest

from netstack.agent.good import GoodPolicies
from netstack.core.ref import Ref

P, Q = Ref("CiliumNetworkPolicy", "one", "p"), Ref("CiliumNetworkPolicy", "one", "q")


def test_what_is_written_is_read_by_the_next_agent(tmp_path: Path) -> None:
    assert GoodPolicies(tmp_path / "good").read() == {}
    GoodPolicies(tmp_path / "good").write({P: ({"endpointSelector": {}},), Q: ({}, {"ingress": [{}]})})
    assert GoodPolicies(tmp_path / "good").read() == {P: ({"endpointSelector": {}},), Q: ({}, {"ingress": [{}]})}


def test_an_edit_writes_one_file_and_a_deletion_removes_one(tmp_path: Path) -> None:
    good = GoodPolicies(tmp_path)
    good.write({P: ({},), Q: ({},)})
    before = {path: path.stat().st_ino for path in tmp_path.iterdir()}
    good.write({P: ({},), Q: ({"ingress": [{}]},)})
    changed = [path for path in tmp_path.iterdir() if before.get(path) != path.stat().st_ino]
    assert len(before) == 2 and len(changed) == 1
    good.write({P: ({},)})
    assert GoodPolicies(tmp_path).read() == {P: ({},)}


def test_nobody_else_reads_them(tmp_path: Path) -> None:
    GoodPolicies(tmp_path).write({P: ({},)})
    assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o600]


def test_a_disk_that_refuses_is_asked_again(tmp_path: Path) -> None:
    obstacle = tmp_path / "good"
    good = GoodPolicies(obstacle)
    obstacle.write_text("a file in the way")
    with pytest.raises(OSError, match=r"exists|directory"):
        good.write({P: ({},)})
    obstacle.unlink()
    good.write({P: ({},)})
    assert GoodPolicies(obstacle).read() == {P: ({},)}


def test_what_a_power_cut_left_of_a_file_is_no_version(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    GoodPolicies(tmp_path).write({P: ({},), Q: ({},)})
    first, second = sorted(tmp_path.iterdir())
    for left in ("", "{", "[]", '{"ref": ["a"], "specs": []}'):
        first.write_text(left)
        assert len(GoodPolicies(tmp_path).read()) == 1
        assert str(first) in caplog.text and str(second) not in caplog.text
    good = GoodPolicies(tmp_path)
    good.write({P: ({},), Q: ({},)})
    assert GoodPolicies(tmp_path).read() == {P: ({},), Q: ({},)}


def test_the_disk_is_waited_for_once_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settled: list[Path] = []
    monkeypatch.setattr("netstack.agent.good.settle", settled.append)
    good = GoodPolicies(tmp_path)
    good.write({P: ({},), Q: ({},)})
    assert settled == []
    good.settle()
    assert settled == sorted(tmp_path.iterdir())
    good.settle()
    assert len(settled) == 2
