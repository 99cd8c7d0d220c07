from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from pathlib import Path

import pytest

from netstack.dns.copies import Copy


class Number:
    """Something to keep."""

    def __init__(self, value: int = 0) -> None:
        self.value, self.changed = value, bool(value)
        self.dumped_by: set[threading.Thread] = set()

    def dump(self) -> str:
        self.changed = False
        self.dumped_by.add(threading.current_thread())
        return str(self.value)

    def load(self, text: str) -> None:
        self.value = int(text)


def copy(kept: Number, folder: Path) -> Copy:
    return Copy(kept, folder / "copy", "nothing is known")


def test_the_next_daemon_knows_it(tmp_path: Path) -> None:
    copy(Number(7), tmp_path).save()
    copy(again := Number(), tmp_path).load()
    assert again.value == 7


def test_without_changes_nothing_is_written(tmp_path: Path) -> None:
    copy(number := Number(7), tmp_path).save()
    before = os.stat(tmp_path / "copy")
    number.value = 8
    copy(number, tmp_path).save()
    assert os.stat(tmp_path / "copy").st_ino == before.st_ino


@pytest.mark.parametrize("content", [b"", b"half", b"\xff"])
def test_a_copy_that_cannot_be_read_is_said(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    copy(number := Number(7), tmp_path).load()
    assert caplog.text == ""
    (tmp_path / "copy").write_bytes(content)
    copy(number, tmp_path).load()
    assert str(tmp_path / "copy") in caplog.text and "; nothing is known" in caplog.text
    assert number.value == 7


def test_a_copy_that_cannot_be_written_is_tried_again_off_the_loop(tmp_path: Path) -> None:
    async def kept() -> None:
        upkeep = asyncio.Task(copy(number, tmp_path).upkeep(0.001))
        await asyncio.sleep(0.05)
        (tmp_path / "copy").rmdir()
        while number.changed or not (tmp_path / "copy").exists():
            await asyncio.sleep(0.001)
        upkeep.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await upkeep

    (tmp_path / "copy").mkdir()
    number = Number(7)
    asyncio.run(asyncio.wait_for(kept(), 5))
    assert (tmp_path / "copy").read_text() == "7"
    assert threading.main_thread() not in number.dumped_by
