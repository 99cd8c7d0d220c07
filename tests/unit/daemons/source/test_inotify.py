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


def test_a_new_file_wakes_it_when_it_is_closed_and_a_link_soon(tmp_path: Path) -> None:
    async def main() -> None:
        inotify = Inotify((tmp_path,))
        inotify.watch_tree()
        async with asyncio.timeout(5):
            with (tmp_path / "a").open("w") as file:
                file.write("half")
                file.flush()
                await asyncio.sleep(0)
                assert not inotify.changed.is_set()
                await inotify.changed.wait()  # who never closes it is heard all the same
                inotify.changed.clear()
            await inotify.changed.wait()
            inotify.changed.clear()
            (tmp_path / "b").symlink_to("a")
            await inotify.changed.wait()
        inotify.close()

    asyncio.run(main())
