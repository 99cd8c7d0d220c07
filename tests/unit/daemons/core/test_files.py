import os
from pathlib import Path

import pytest

from netstack.core.files import STEM_MAX, stem, write_atomic


def test_only_a_new_text_is_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    assert write_atomic(path, "one", mode=0o600)
    before = path.stat()
    assert not write_atomic(path, "one")
    assert path.stat().st_ino == before.st_ino  # reading it may change its atime
    assert before.st_mode & 0o777 == 0o600
    assert write_atomic(path, "two") and path.read_text() == "two"


def test_a_failed_write_leaves_the_old_text_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    write_atomic(path, "old")

    def full(_fd: int) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_stem_fits_a_file_name_and_is_one_texts_own() -> None:
    assert stem("short.name") == "short.name" and stem("x" * STEM_MAX) == "x" * STEM_MAX
    long = {stem("x" * 300 + end) for end in "ab"}
    assert len(long) == 2 and {len(name) for name in long} == {STEM_MAX}
