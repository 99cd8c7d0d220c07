from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.kubelab.netstack.plugins.module_utils import _files
from ansible_collections.kubelab.netstack.plugins.module_utils._files import ABSENT, FILE, FOLDER, LINK, Entry


def entry(kind: str, path: Path, **facts: object) -> Entry:
    return Entry(kind, str(path), **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [FILE, FOLDER, LINK])
def test_what_is_made_does_not_differ_and_what_is_removed_is_gone(tmp_path: Path, kind: str) -> None:
    mode = None if kind == LINK else 0o600
    wanted = entry(
        kind, tmp_path / "one", content=b"x" if kind == FILE else b"", target="to" * (kind == LINK), mode=mode
    )
    assert _files.differs(wanted, _files.look(wanted.path))
    _files.make(wanted)
    assert not _files.differs(wanted, _files.look(wanted.path))
    gone = entry(ABSENT, tmp_path / "one")
    assert _files.differs(gone, _files.look(gone.path))
    _files.make(gone)
    assert os.listdir(tmp_path) == []


def test_mode_and_content_each_make_a_difference(tmp_path: Path) -> None:
    path = tmp_path / "one"
    path.write_text("x")
    path.chmod(0o644)
    seen = _files.look(str(path))
    assert not _files.differs(entry(FILE, path, content=b"x", mode=0o644), seen)
    assert _files.differs(entry(FILE, path, content=b"x", mode=0o600), seen)
    assert _files.differs(entry(FILE, path, content=b"y", mode=0o644), seen)


def test_an_owner_or_group_that_does_not_exist_differs(tmp_path: Path) -> None:
    seen = _files.look(str(tmp_path))
    assert _files.differs(entry(FOLDER, tmp_path, owner="nobody-of-that-name"), seen)
    assert _files.differs(entry(FOLDER, tmp_path, group="nobody-of-that-name"), seen)
    with pytest.raises(KeyError, match="nobody-of-that-name"):
        _files.make(entry(FOLDER, tmp_path, group="nobody-of-that-name"))


def test_a_link_to_a_folder_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to("real")
    assert not _files.differs(entry(FOLDER, tmp_path / "link", mode=0o755), _files.look(str(tmp_path / "link")))
    assert not _files.differs(entry(LINK, tmp_path / "link", target="real"), _files.look(str(tmp_path / "link")))


def test_a_link_takes_the_place_of_a_file_and_of_another_link(tmp_path: Path) -> None:
    path = tmp_path / "one"
    path.write_text("x")
    for target in ("a", "b"):
        _files.make(entry(LINK, path, target=target))
        assert os.readlink(path) == target
    assert os.listdir(tmp_path) == ["one"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "one"
    path.write_text("old")
    with pytest.raises(KeyError):
        _files.make(entry(FILE, path, content=b"new", owner="nobody-of-that-name"))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["one"]


def test_removing_a_link_to_a_folder_leaves_the_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    _files.make(entry(ABSENT, tmp_path / "link"))
    assert os.listdir(tmp_path) == ["real"]


def test_the_difference_shows_content_but_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "one"
    path.write_text("old")
    path.chmod(0o644)
    seen = _files.look(str(path))
    shown = _files.shown(entry(FILE, path, content=b"new", mode=0o644), seen)
    assert (shown["before"], shown["after"]) == ("mode 0644\nold", "mode 0644\nnew")
    shown = _files.shown(entry(FILE, path, content=b"new", mode=0o600, secret=True), seen)
    assert (shown["before"], shown["after"]) == ("mode 0644\n(secret)\n", "mode 0600\n(secret)\n")
