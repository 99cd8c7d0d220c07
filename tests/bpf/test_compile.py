"""The compiled set: what bcc made of the sources, and what its process says when it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bpf.packet import ROOT
from netstack.kernel import layout as l
from netstack.kernel.programs import INSTRUCTION, PROGRAMS, Compiled

pytestmark = pytest.mark.root


def test_every_program_and_every_shared_map_is_there(compiled: Compiled) -> None:
    assert set(compiled.programs) == set(PROGRAMS)
    assert set(compiled.maps) == {*l.MAPS, *l.INNER, "scratch", "hearing", "telling"}


def test_each_map_is_used_by_some_program(compiled: Compiled) -> None:
    used = {name for program in compiled.programs.values() for name in program.maps}
    assert used == set(compiled.maps) - set(l.INNER)


def test_socket_programs_share_no_scratch(compiled: Compiled) -> None:
    """They run in process context, where another process may interrupt them."""
    for spec in PROGRAMS.values():
        if spec.source == "sock.c":
            assert "scratch" not in compiled.programs[spec.name].maps


def test_programs_stay_small(compiled: Compiled) -> None:
    """Instructions before verification; the verifier's own limit is a million steps."""
    for name, program in compiled.programs.items():
        assert len(program.instructions) // 8 < 8192, name


def test_the_programs_know_no_clock_that_somebody_sets(compiled: Compiled) -> None:
    """So a clock that jumps moves no deadline (test_clock.py)."""
    call, monotonic, others = 0x85, 5, {118, 125, 160, 208}  # enum bpf_func_id: jiffies64, ktime_get boot, coarse, tai
    asked = {
        helper
        for program in compiled.programs.values()
        for code, registers, _, helper in INSTRUCTION.iter_unpack(program.instructions)
        if (code, registers >> 4) == (call, 0)
    }
    assert asked & {monotonic, *others} == {monotonic}


def test_the_compiler_says_what_it_dislikes(tmp_path: Path) -> None:
    for spec in PROGRAMS.values():
        (tmp_path / spec.source).write_text("int broken = ;\n")
    result = subprocess.run(
        [sys.executable, "-m", "netstack.kernel.compile", str(tmp_path), str(tmp_path / "out.json")],
        env={**os.environ, "PYTHONPATH": str(ROOT / "daemons" / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "expected expression" in result.stderr
    assert not (tmp_path / "out.json").exists()
