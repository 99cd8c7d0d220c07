from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from instruments.dns_talk import POD, endpoint, rules_text
from netstack.core.files import write_atomic
from netstack.dns.rulesfile import RulesFile


def write(path: Path, generation: int) -> None:
    write_atomic(path, rules_text(endpoint(12, POD, {3: "x.io"}), generation=generation))


def rules_file(folder: Path) -> RulesFile:
    return RulesFile(folder / "rules.json", folder / "state" / "rules.json")


def test_a_new_version_is_in_force_when_asked_for(tmp_path: Path) -> None:
    file = rules_file(tmp_path)
    assert not file.refresh()
    assert not file.loaded
    assert file.error and "No such file" in file.error
    write(tmp_path / "rules.json", 1)
    assert file.refresh()
    assert (file.rules.generation, file.loaded, file.error) == (1, True, None)
    assert not file.refresh()
    write(tmp_path / "rules.json", 2)
    assert file.refresh()
    assert file.rules.generation == 2


@pytest.mark.parametrize("broken", ["", "{", '{"generation": 3, "endpoints": [{}]}', "\udcff"])
def test_a_broken_version_leaves_its_predecessor_in_force(
    tmp_path: Path, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = rules_file(tmp_path)
    write(tmp_path / "rules.json", 1)
    assert file.refresh()
    (tmp_path / "rules.json").write_bytes(broken.encode(errors="surrogateescape"))
    with caplog.at_level(logging.WARNING):
        assert not file.refresh()
        assert not file.refresh()
    assert file.rules.generation == 1
    (line,) = caplog.messages
    assert line.startswith(str(tmp_path / "rules.json"))
    assert line.endswith("generation 1 stays in force")
    write(tmp_path / "rules.json", 4)
    assert file.refresh()
    assert file.error is None


def test_a_file_that_went_changes_nothing(tmp_path: Path) -> None:
    file = rules_file(tmp_path)
    write(tmp_path / "rules.json", 1)
    assert file.refresh()
    os.unlink(tmp_path / "rules.json")
    assert not file.refresh()
    assert file.rules.generation == 1


def test_the_last_whole_version_outlives_the_daemon(tmp_path: Path) -> None:
    file = rules_file(tmp_path)
    write(tmp_path / "rules.json", 5)
    file.refresh()
    file.save()
    (tmp_path / "rules.json").write_text("")
    again = rules_file(tmp_path)
    assert not again.refresh()
    assert (again.rules.generation, again.loaded) == (5, True)
    assert again.error and "is not JSON" in again.error
