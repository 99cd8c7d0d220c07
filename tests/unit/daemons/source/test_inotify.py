import asyncio
from pathlib import Path

import pytest

from netstack.source.inotify import WRITING_S, Inotify


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


def test_another_folder_in_the_place_of_the_root_is_looked_at_whole(tmp_path: Path) -> None:
    """Whoever moves it away says nothing about a name in it."""

    async def main() -> None:
        root, other = tmp_path / "root", tmp_path / "other"
        root.mkdir()
        other.mkdir()
        inotify = Inotify((root,))
        inotify.watch_tree()
        inotify.take()
        root.rename(tmp_path / "away")
        other.rename(root)
        await asyncio.wait_for(inotify.changed.wait(), 5)
        inotify.changed.clear()
        assert inotify.take() is None
        inotify.watch_tree()
        (root / "a").write_text("x")
        await asyncio.wait_for(inotify.changed.wait(), 5)
        assert inotify.take() == {f"{root}/a"}
        inotify.close()

    asyncio.run(main())


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


def test_it_names_files_and_says_where_names_do_not_suffice(tmp_path: Path) -> None:
    async def main() -> None:
        inotify = Inotify((tmp_path,))
        inotify.watch_tree()

        async def told() -> set[str] | None:
            await asyncio.wait_for(inotify.changed.wait(), 5)
            inotify.changed.clear()
            return inotify.take()

        assert inotify.take() is None  # nobody has looked yet
        (tmp_path / ".a").write_text("x")
        (tmp_path / ".a").rename(tmp_path / "a")
        assert await told() == {f"{tmp_path}/a"}
        (tmp_path / ".b").write_text("x")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2 * WRITING_S):
                await inotify.changed.wait()
        (tmp_path / "link").symlink_to("a")
        assert await told() == {f"{tmp_path}/link"}
        (tmp_path / "link").rename(tmp_path / "..data")
        assert await told() is None
        (tmp_path / "sub").mkdir()
        assert await told() is None
        inotify.watch_tree()
        (tmp_path / "sub" / "b").write_text("x")
        assert await told() == {f"{tmp_path}/sub/b"}
        (tmp_path / "sub" / "b").unlink()
        (tmp_path / "sub").rmdir()
        (tmp_path / "a").unlink()
        assert await told() is None
        inotify.close()

    asyncio.run(main())
