"""The kernel as files, where `tests/setup.sh kernels` has put them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lab.image import cache

from . import tree


class NotPrepared(Exception):
    """What the lane needs is not on this machine; the text says what, and how to get it."""


@dataclass(frozen=True, slots=True)
class Kernel:
    release: str  # "6.1.0-56-amd64"
    folder: Path  # boot/ and lib/modules/, as in Debian's package

    @property
    def image(self) -> Path:
        return self.folder / "boot" / f"vmlinuz-{self.release}"

    @property
    def modules(self) -> Path:
        return self.folder / "lib" / "modules" / self.release

    def closure(self, names: Iterable[str]) -> list[Path]:
        """The files of these modules and of all that they need, each after what it needs. KeyError: no such module
        (or one that is built in)."""
        needs: dict[str, list[str]] = {}  # path -> paths; modules.dep(5) lists the last to be loaded first
        for line in (self.modules / "modules.dep").read_text(encoding="utf-8").splitlines():
            path, _, rest = line.partition(":")
            needs[path] = rest.split()
        by_name = {Path(path).stem.replace("-", "_"): path for path in needs}
        order: dict[str, None] = {}
        for name in names:
            wanted = by_name[name]
            order |= dict.fromkeys([*reversed(needs[wanted]), wanted])
        return [self.modules / path for path in order]


def _newest(folders: Iterable[Path]) -> Path | None:
    return max(folders, key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)], default=None)


def find(architecture: str = "amd64") -> Kernel:
    """The newest one that is there. NotPrepared if none is."""
    if architecture == "arm64":
        image = _newest((tree.tree() / "boot").glob("vmlinuz-6.1.*"))
        found = image and Kernel(image.name.removeprefix("vmlinuz-"), tree.tree())
    else:
        folder = _newest(path for path in cache().glob("kernel-6.1.*") if not path.name.endswith(".new"))
        found = folder and Kernel(folder.name.removeprefix("kernel-"), folder)
    if found is None:
        raise NotPrepared(f"no kernel 6.1 for {architecture} in {cache()}: run tests/setup.sh kernels")
    return found
