"""verdict.h and core/verdict.py are one list."""

from __future__ import annotations

import re
from pathlib import Path

from netstack.core.verdict import Verdict

HEADER = Path(__file__).parents[2] / "files" / "bpf" / "lib" / "verdict.h"


def test_the_programs_and_python_number_verdicts_alike() -> None:
    defined = {name: int(number) for name, number in re.findall(r"#define VERDICT_(\w+)\s+(\d+)", HEADER.read_text())}
    assert defined.pop("DROPS") == 128
    assert defined == {verdict.name: verdict.value for verdict in Verdict}


def test_a_drop_is_a_number_from_128_up() -> None:
    assert {verdict.name for verdict in Verdict if verdict.dropped} == {v.name for v in Verdict if v.value >= 128}
