from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible_collections.kubelab.netstack.plugins.modules import release_info

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
Run = Callable[..., dict[str, Any]]


def test_a_bare_node_has_no_release_but_a_target(run: Run, tmp_path: Path) -> None:
    said = run(release_info, root=str(tmp_path), python=sys.executable)
    assert said["release"] == {
        "target": f"{platform.machine()}-{VERSION}",
        "current": None,
        "previous": None,
        "releases": [],
    }


def test_whole_releases_are_told_and_halves_are_not(run: Run, tmp_path: Path) -> None:
    for name in ("1-a", "1-b", "half"):
        (tmp_path / "releases" / name / f"lib/python{VERSION}").mkdir(parents=True)
    for name in ("1-b", "1-a"):
        (tmp_path / "releases" / name / "release").write_text(f"{name}\n")
    (tmp_path / "current").symlink_to("releases/1-b")
    said = run(release_info, root=str(tmp_path), python=sys.executable)
    assert (said["release"]["releases"], said["release"]["current"]) == (["1-a", "1-b"], "1-b")
