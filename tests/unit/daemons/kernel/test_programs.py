from __future__ import annotations

import struct
from pathlib import Path

import pytest

from netstack.kernel.bpf import MapDefinition
from netstack.kernel.programs import INSTRUCTION, PROGRAMS, Compiled, CompiledProgram, flatten, key, unlinked

SOURCES = Path(__file__).parents[4] / "files" / "bpf"


def wide(immediate: int, source: int = 1) -> bytes:
    """r1 = 64-bit immediate: two instructions; source 1 makes it a map."""
    return INSTRUCTION.pack(0x18, source << 4 | 1, 0, immediate) + bytes(8)


EXIT = INSTRUCTION.pack(0x95, 0, 0, 0)


def test_map_descriptors_become_indices_and_come_back_as_others() -> None:
    compiled = unlinked(wide(3) + wide(9) + wide(3) + EXIT, {3: "services", 9: "nat"})
    assert compiled == CompiledProgram(wide(0) + wide(1) + wide(0) + EXIT, ("services", "nat"))
    assert compiled.linked({"services": 40, "nat": 41}) == wide(40) + wide(41) + wide(40) + EXIT


def test_a_number_that_is_no_map_stays() -> None:
    compiled = unlinked(wide(3, source=0) + EXIT, {3: "services"})
    assert compiled.maps == ()
    assert compiled.linked({}) == wide(3, source=0) + EXIT


def test_a_map_that_nobody_has_is_an_error() -> None:
    with pytest.raises(KeyError):
        CompiledProgram(wide(0), ("nat",)).linked({})


def test_the_kept_form_reads_back() -> None:
    compiled = Compiled(
        {"pod_ingress": CompiledProgram(wide(0) + EXIT, ("nat",))}, {"nat": MapDefinition(9, 40, 40, 1)}
    )
    assert Compiled.from_json(compiled.to_json()) == compiled


@pytest.mark.parametrize(
    "text", ["", "{}", '{"programs": {}}', '{"programs": {"a": {"instructions": "!", "maps": []}}}']
)
def test_a_damaged_file_is_refused(text: str) -> None:
    with pytest.raises((ValueError, KeyError)):
        Compiled.from_json(text)


def test_flatten_takes_each_header_once(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "a.h").write_text('#pragma once\n#include "b.h"\nint a;\n')
    (tmp_path / "lib" / "b.h").write_text("#pragma once\nint b;\n")
    (tmp_path / "x.c").write_text('#include "lib/a.h"\n#include "lib/b.h"\n#include <linux/bpf.h>\nint x;\n')
    assert flatten(tmp_path / "x.c").split("\n") == ["", "", "int b;", "int a;", "#include <linux/bpf.h>", "int x;", ""]


def test_flatten_names_a_missing_header(tmp_path: Path) -> None:
    (tmp_path / "x.c").write_text('#include "gone.h"\n')
    with pytest.raises(FileNotFoundError, match=r"gone\.h"):
        flatten(tmp_path / "x.c")


def test_the_key_is_source_kernel_and_compiler(tmp_path: Path) -> None:
    for spec in PROGRAMS.values():
        (tmp_path / spec.source).write_text("int x;\n")
    keys = {key(tmp_path, kernel, compiler) for kernel in ("6.1", "6.18") for compiler in ("0.26", "0.27")}
    (tmp_path / "sock.c").write_text("int y;\n")
    assert len(keys | {key(tmp_path, "6.1", "0.26")}) == 5


def test_every_program_is_a_function_of_its_source() -> None:
    for spec in PROGRAMS.values():
        assert f"\nint {spec.name}(" in (SOURCES / spec.source).read_text()
    assert {path.name for path in SOURCES.glob("*.c")} == {spec.source for spec in PROGRAMS.values()}


def test_an_instruction_is_eight_bytes() -> None:
    assert INSTRUCTION.size == struct.calcsize("=Q")
