import asyncio
from pathlib import Path

from netstack.source.inotify import Inotify


def test_a_write_a_move_and_a_removal_wake_it(tmp_path: Path) -> None:
    async def main() -> int:
        inotify, wakes = Inotify((tmp_path,)), 0
        inotify.watch_tree()
        (tmp_path / "sub").mkdir()
        for act in (
            lambda: None,
            lambda: (tmp_path / "a").write_text("x"),
            lambda: (tmp_path / "a").rename(tmp_path / "sub" / "b"),
            lambda: (tmp_path / "sub" / "b").unlink(),
        ):
            act()
            await asyncio.wait_for(inotify.changed.wait(), 5)
            inotify.changed.clear()
            inotify.watch_tree()
            wakes += 1
        inotify.close()
        return wakes

    assert asyncio.run(main()) == 4
