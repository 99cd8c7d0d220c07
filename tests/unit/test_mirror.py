"""Every source file of the daemons has its test file at the same path, and no test file has lost its source."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "daemons/src/netstack"

# What only touches the kernel, a device or HAProxy is tested there, under the same name.
ELSEWHERE = ("tests/unit/daemons", "tests/bpf", "tests/integration")


def mirrors(source: Path) -> list[Path]:
    relative = source.relative_to(SOURCE)
    mirrored = ROOT / ELSEWHERE[0] / relative.parent / f"test_{source.stem}.py"
    elsewhere = [ROOT / folder / f"test_{relative.parent.name}_{source.stem}.py" for folder in ELSEWHERE[1:]]
    return [mirrored, *elsewhere, *(ROOT / folder / f"test_{source.stem}.py" for folder in ELSEWHERE[1:])]


def test_every_source_file_has_a_test_file() -> None:
    sources = [path for path in SOURCE.rglob("*.py") if not path.name.startswith("__")]
    assert len(sources) > 10
    missing = [str(s.relative_to(SOURCE)) for s in sources if not any(path.exists() for path in mirrors(s))]
    assert missing == []


def test_every_unit_test_file_has_a_source_file() -> None:
    tests = (ROOT / ELSEWHERE[0]).rglob("test_*.py")
    orphans = [t for t in tests if not (SOURCE / t.relative_to(ROOT / ELSEWHERE[0]).parent / t.name[5:]).exists()]
    assert orphans == []
