# Copyright (c) 2026, The netstack developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Name and build a release of netstack, on the controller.

    build_release.py --source DIR --constraints FILE --cache DIR [--target ARCH-PYTHON]...

The id is the version and eight hex digits of a hash over everything that ends up in a release: daemons/src,
daemons/pyproject.toml, files/bpf and the constraints. The same sources have the same id on every controller.

For each target, CACHE/ID/TARGET.tar.gz (wheels/ and bpf/) is written unless it is there. The wheels of the dependencies
are fetched for the target, not for this machine: a controller of any architecture builds for any board. Without a
target nothing is built or written. One line of JSON says what came of it:
{"id": ID, "archives": {TARGET: path}, "built": [TARGET]}
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

INPUTS = ("daemons/src", "daemons/pyproject.toml", "files/bpf")
# A wheel's timestamps come from here, so that two builds of the same tree are the same bytes. The oldest date of a zip.
EPOCH = "315532800"
# The C libraries of Debian 12 (2.36) and newer accept all of these; pip does not widen a --platform by itself.
PLATFORMS = ("manylinux2014", "manylinux_2_28", "manylinux_2_34")


def files_of(source: Path) -> Iterator[Path]:
    """Every file that goes into a release, in one order on all machines."""
    for top in INPUTS:
        path = source / top
        found = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        for file in sorted(found, key=lambda file: file.relative_to(source).as_posix()):
            inside = file.relative_to(source).parts
            if not any(part == "__pycache__" or part.startswith(".") or part.endswith(".egg-info") for part in inside):
                yield file


def release_id(source: Path, constraints: Path) -> str:
    """version-hash8, for example 0.1.0-5f0c2a91."""
    version = str(tomllib.loads((source / "daemons/pyproject.toml").read_text())["project"]["version"])
    digest = hashlib.sha256()
    named = [(file.relative_to(source).as_posix(), file) for file in files_of(source)] + [("constraints", constraints)]
    for name, file in named:
        body = file.read_bytes()
        digest.update(f"{name}\0{len(body)}\0".encode() + body)
    return f"{version}-{digest.hexdigest()[:8]}"


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, stdout=sys.stderr, env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH})


def build_wheel(source: Path, wheels: Path) -> Path:
    """The wheel of netstack itself."""
    pip("wheel", "--no-deps", "--wheel-dir", str(wheels), str(source / "daemons"))
    return next(wheels.glob("netstack-*.whl"))


def fetch_wheels(wheel: Path, constraints: Path, target: str, wheels: Path) -> None:
    """What the wheel depends on, and pip itself, as binary wheels for `target` (x86_64-3.11, aarch64-3.12 ...)."""
    arch, python = target.rsplit("-", 1)
    platforms = [word for platform in PLATFORMS for word in ("--platform", f"{platform}_{arch}")]
    pip("download", "--dest", str(wheels), "--only-binary=:all:", "--implementation", "cp", "--python-version", python,
        *platforms, "--constraint", str(constraints), str(wheel), "pip")  # fmt: skip


def pack(wheels: Path, bpf: Path, archive: Path) -> None:
    """Write the archive under another name and rename it: what is in the cache is whole."""
    fresh = archive.with_suffix(".new")
    with tarfile.open(fresh, "w:gz", compresslevel=1) as parcel:  # wheels are compressed already
        parcel.add(wheels, "wheels")
        parcel.add(bpf, "bpf")
    fresh.rename(archive)


def snapshot(source: Path, work: Path) -> Path:
    """A copy of what goes into a release: an edit during the build cannot put one tree's bytes under another's id."""
    copy = work / "source"
    for file in files_of(source):
        place = copy / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, place)
    return copy


def build(source: Path, constraints: Path, cache: Path, targets: list[str]) -> dict[str, object]:
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        work = Path(folder)
        copy = snapshot(source, work)
        name = release_id(copy, constraints)
        archives = {target: cache / name / f"{target}.tar.gz" for target in targets}
        wanted = [target for target, archive in archives.items() if not archive.exists()]
        wheel = build_wheel(copy, work) if wanted else Path()
        for target in wanted:
            wheels = work / target
            fetch_wheels(wheel, constraints, target, wheels)
            archives[target].parent.mkdir(exist_ok=True)
            pack(wheels, copy / "files/bpf", archives[target])
    return {"id": name, "archives": {target: str(path) for target, path in archives.items()}, "built": wanted}


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Name and build a release of netstack.")
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--constraints", type=Path, required=True)
    parser.add_argument("--cache", type=lambda word: Path(word).expanduser(), required=True)
    parser.add_argument("--target", action="append", default=[])
    asked = parser.parse_args(words)
    for target in asked.target:
        if not re.fullmatch(r"\w+-3\.\d+", target):
            parser.error(f"--target {target}: not ARCH-PYTHON, for example aarch64-3.11")
    return asked


def main() -> None:
    asked = arguments(sys.argv[1:])
    if not asked.target:
        result: dict[str, object] = {"id": release_id(asked.source, asked.constraints), "archives": {}, "built": []}
    else:
        try:
            result = build(asked.source, asked.constraints, asked.cache, asked.target)
        except subprocess.CalledProcessError as failed:
            sys.exit(f"{' '.join(failed.cmd)} ended with {failed.returncode}")
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
