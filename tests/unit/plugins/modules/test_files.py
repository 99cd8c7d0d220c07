from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.kubelab.netstack.plugins.modules import files

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def steps(tmp_path: Path) -> dict[str, dict[str, Any]]:
    conf, key = str(tmp_path / "etc/one.yaml"), str(tmp_path / "etc/key")
    link = str(tmp_path / "etc/link")

    def laid(content: str) -> dict[str, Any]:
        return {
            "folders": [{"path": str(tmp_path / "etc")}],
            "files": [{"path": conf, "content": content}, {"path": key, "secret": f"{content}-secret", "mode": "0600"}],
            "links": [{"path": link, "target": conf}],
        }

    return {"create": laid("a"), "modify": laid("b"), "delete": {"absent": [link, str(tmp_path / "etc")]}}


def test_the_twelve_steps(run: Run, steps: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    for step, options in steps.items():
        said = [
            run(files, **options, _ansible_check_mode=True),
            run(files, **options),
            run(files, **options, _ansible_check_mode=True),
            run(files, **options),
        ]
        assert [one["changed"] for one in said] == [True, True, False, False], step
        assert (said[0]["diff"], said[0]["paths"]) == (said[1]["diff"], said[1]["paths"])
        assert said[3]["diff"] == []
    assert os.listdir(tmp_path) == []


def test_a_secret_is_shown_nowhere(run: Run, steps: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    said = run(files, **steps["create"])
    assert "a-secret" not in str(said)
    assert (tmp_path / "etc/key").read_text() == "a-secret"


def test_a_refused_content_leaves_everything_as_it_is(run: Run, tmp_path: Path) -> None:
    judge = tmp_path / "judge"
    judge.write_text('#!/bin/sh\ngrep -q right "$1" && exit 0\necho "$1: field: wrong" >&2; exit 1\n')
    judge.chmod(0o755)
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"

    def file(path: Path, content: str) -> dict[str, str]:
        return {"path": str(path), "content": content, "validate": f"{judge} %s"}

    said = run(files, files=[file(good, "right"), file(bad, "left")])
    assert said["msg"] == f"{bad} was refused, and nothing was written: {bad}: field: wrong"
    assert not good.exists()
    assert run(files, files=[file(good, "right"), file(bad, "also right")])["paths"] == [str(good), str(bad)]


def test_what_goes_with_its_folder_goes_once(run: Run, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/a").touch()
    paths = [str(tmp_path / name) for name in ("etc", "etc/a", "etc")]
    assert run(files, absent=paths)["changed"] is True
    assert os.listdir(tmp_path) == [] and run(files, absent=paths)["changed"] is False


def test_a_pipe_is_no_file_that_could_be_read(run: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a")
    assert run(files, files=[{"path": str(tmp_path / "a"), "content": "x"}])["changed"] is True
    assert (tmp_path / "a").read_text() == "x"


def test_check_mode_takes_a_command_that_is_not_there_as_installed_before(run: Run, tmp_path: Path) -> None:
    file = {"path": str(tmp_path / "a"), "content": "x", "validate": f"{tmp_path}/nothing %s"}
    assert run(files, files=[file], _ansible_check_mode=True)["changed"] is True
    assert run(files, files=[file])["failed"] is True


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"content": "x", "secret": "hushed"}, "parameters are mutually exclusive: content|secret found in files"),
        ({}, "one of the following is required: content, secret found in files"),
        ({"content": "x", "mode": "rw"}, "/nowhere/a: mode: 'rw' is not octal"),
        ({"content": "x", "validate": "true"}, "/nowhere/a: validate: there is no %s in 'true'"),
        ({"content": "x"}, "/nowhere/a: [Errno 2] No such file or directory: '/nowhere/.a."),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(run: Run, file: dict[str, str], message: str) -> None:
    said = run(files, files=[{"path": "/nowhere/a", **file}])
    assert said["failed"] is True
    assert said["msg"].startswith(message)


def test_what_nobody_put_in_force_stays_a_change(run: Run, tmp_path: Path) -> None:
    """As after a run that was broken off before its handlers."""
    one, other, note = str(tmp_path / "one"), str(tmp_path / "other"), tmp_path / "run/agent.pending"

    def laid(content: str, **more: Any) -> tuple[bool, list[str]]:
        wanted = [{"path": one, "content": "x"}, {"path": other, "content": content}]
        said = run(files, files=wanted, pending=str(note), **more)
        return said["changed"], said["paths"]

    assert laid("a", _ansible_check_mode=True) == (True, [one, other])
    assert not note.parent.exists()
    assert laid("a") == laid("a") == laid("a", _ansible_check_mode=True) == (True, [one, other])
    note.unlink()
    assert laid("a") == (False, [])
    assert laid("b") == laid("b") == (True, [other])


def test_what_will_be_changed_is_noted_before_it_is(run: Run, tmp_path: Path) -> None:
    note, missing = tmp_path / "pending", tmp_path / "nowhere/a"
    assert run(files, files=[{"path": str(missing), "content": "x"}], pending=str(note))["failed"]
    missing.parent.mkdir()
    missing.write_text("x")
    assert run(files, files=[{"path": str(missing), "content": "x"}], pending=str(note))["paths"] == [str(missing)]
