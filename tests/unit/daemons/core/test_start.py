import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from netstack.core.start import start
from netstack.core.unit import Unit


@dataclass(frozen=True)
class Sample:
    keep: int


async def never(chosen: Sample, unit: Unit) -> None:
    raise AssertionError(chosen)


@pytest.mark.parametrize(
    ("text", "said"),
    [("keep: many", "keep: must be a int, not the str 'many'"), (None, "No such file or directory")],
)
def test_a_wrong_file_of_settings_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, said: str
) -> None:
    path = tmp_path / "sample.yaml"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(sys, "argv", ["netstack-sample", "--config", str(path)])
    with pytest.raises(SystemExit) as left:
        start("sample", "", Sample, never)
    assert str(left.value).startswith(f"{path}: ") and said in str(left.value)
