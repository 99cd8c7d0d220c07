from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[4] / "roles/release/files/build_release.py"


@pytest.fixture
def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_release", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for path, text in {
        "daemons/pyproject.toml": '[project]\nname = "netstack"\nversion = "1.2.3"\n',
        "daemons/src/netstack/__init__.py": "",
        "daemons/src/netstack/a.py": "A = 1\n",
        "files/bpf/sock.c": "int main;\n",
        "constraints.txt": "pip==26\n",
    }.items():
        file = tmp_path / "source" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "source"


def identify(builder: ModuleType, source: Path) -> str:
    return str(builder.release_id(source, source / "constraints.txt"))


def test_the_id_is_the_version_and_a_hash(builder: ModuleType, source: Path) -> None:
    assert re.fullmatch(r"1\.2\.3-[0-9a-f]{8}", identify(builder, source))
    assert identify(builder, source) == identify(builder, source)


@pytest.mark.parametrize(
    "path", ["daemons/src/netstack/a.py", "files/bpf/sock.c", "constraints.txt", "files/bpf/new.h"]
)
def test_every_input_changes_the_id(builder: ModuleType, source: Path, path: str) -> None:
    before = identify(builder, source)
    with (source / path).open("a") as file:
        file.write("// more\n")
    assert identify(builder, source) != before


@pytest.mark.parametrize("path", ["daemons/src/netstack/__pycache__/a.pyc", "files/bpf/.a.swp", "README.md"])
def test_what_is_left_behind_by_tools_does_not(builder: ModuleType, source: Path, path: str) -> None:
    before = identify(builder, source)
    (source / path).parent.mkdir(exist_ok=True)
    (source / path).write_text("x")
    assert identify(builder, source) == before


def test_a_moved_file_is_another_release(builder: ModuleType, source: Path) -> None:
    before = identify(builder, source)
    (source / "files/bpf/sock.c").rename(source / "files/bpf/pod.c")
    assert identify(builder, source) != before


def test_a_release_is_built_once(
    builder: ModuleType, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pip(*words: str) -> None:
        folder = Path(words[words.index("--wheel-dir" if words[0] == "wheel" else "--dest") + 1])
        folder.mkdir(exist_ok=True)
        (folder / "netstack-1.2.3-py3-none-any.whl").write_text(" ".join(words[:1]))

    monkeypatch.setattr(builder, "pip", pip)
    cache = tmp_path / "cache"
    first = builder.build(source, source / "constraints.txt", cache, ["aarch64-3.11"])
    again = builder.build(source, source / "constraints.txt", cache, ["aarch64-3.11"])
    assert (first["built"], again["built"]) == (["aarch64-3.11"], [])
    assert first["archives"] == again["archives"]
    with tarfile.open(first["archives"]["aarch64-3.11"]) as archive:
        assert {"wheels/netstack-1.2.3-py3-none-any.whl", "bpf/sock.c"} <= set(archive.getnames())
    assert [path.name for path in cache.iterdir()] == [first["id"]]


def test_without_a_target_only_the_id_is_told(source: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--source", str(source), "--constraints", str(source / "constraints.txt")]
    done = subprocess.run([*command, "--cache", str(tmp_path / "cache")], capture_output=True, text=True, check=True)
    assert re.fullmatch(r'\{"id": "1\.2\.3-[0-9a-f]{8}", "archives": \{\}, "built": \[\]\}\n', done.stdout)
    assert not (tmp_path / "cache").exists()


def test_a_target_that_is_none_is_refused(source: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--source", ".", "--constraints", "x", "--cache", "y", "--target", "arm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--target arm: not ARCH-PYTHON, for example aarch64-3.11" in done.stderr
