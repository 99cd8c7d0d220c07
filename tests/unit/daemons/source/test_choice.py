from pathlib import Path

import pytest

from netstack.source.choice import Choice, check, report
from netstack.source.directory import DirectorySource
from netstack.source.kubernetes import KubernetesSource
from netstack.source.resources import Want
from netstack.source.status import StatusFolder
from netstack.source.statusapi import StatusApi


def choice(tmp_path: Path, source: str) -> Choice:
    return Choice(source, str(tmp_path / "kubeconfig"), "n1", tmp_path / "m", tmp_path / "s", tmp_path / "keep")


def test_the_folder_is_ready_at_once(tmp_path: Path) -> None:
    source, statuses = choice(tmp_path, "directory").open([Want("Service")])
    assert isinstance(source, DirectorySource) and isinstance(statuses, StatusFolder)
    said = report(source, statuses)
    assert source.ready and said["kind"] == "directory" and not said["connected"]
    (problem,) = said["problems"]
    assert "cannot be read" in problem["reason"]


def test_the_api_is_not_until_it_has_been_heard(tmp_path: Path) -> None:
    source, statuses = choice(tmp_path, "kubernetes").open([Want("Service")])
    assert isinstance(source, KubernetesSource) and isinstance(statuses, StatusApi)
    said = report(source, statuses)
    assert not source.ready and said["kind"] == "kubernetes" and not said["connected"] and not said["ready"]


def test_there_are_two_sources() -> None:
    check("directory"), check("kubernetes")
    with pytest.raises(ValueError, match="source must be one of directory, kubernetes, not 'etcd'"):
        check("etcd")
