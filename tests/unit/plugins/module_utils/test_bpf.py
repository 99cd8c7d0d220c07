from __future__ import annotations

import errno
import struct

import pytest
from ansible_collections.kubelab.netstack.plugins.module_utils import _bpf


def refuse(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def bpf(command: int, attributes: bytes) -> int:
        raise OSError(code, "refused")

    monkeypatch.setattr(_bpf, "_bpf", bpf)


@pytest.mark.parametrize(
    ("words", "known"),
    [
        (None, True),  # the program was taken
        ("0: (85) call bpf_redirect#23\nR1 !read_ok\n", True),  # only the arguments are wrong
        ("0: (85) call unknown#9999\ninvalid func unknown#9999\n", False),
        ("0: (85) call bpf_sk_assign#124\nunknown func bpf_sk_assign#124\n", False),
        ("program of this type cannot use helper bpf_sk_assign#124\n", False),
        ("", False),  # the program type itself was refused
    ],
)
def test_the_verifiers_words_tell_whether_it_knows_a_helper(words: str | None, known: bool) -> None:
    assert _bpf.knows_helper(words) is known


def test_a_closed_bpf_is_told_apart_from_an_old_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, errno.EPERM)
    assert _bpf.probe() == {"allowed": False, "map_types": {}, "prog_types": {}, "helpers": {}}


def test_a_kernel_that_knows_nothing_says_no_to_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, errno.EINVAL)
    seen = _bpf.probe()
    assert seen["allowed"] is True
    for family in ("map_types", "prog_types", "helpers"):
        answers = seen[family]
        assert isinstance(answers, dict) and answers and not any(answers.values())


def test_instructions_are_eight_bytes_as_the_abi_has_them() -> None:
    # struct bpf_insn: code, registers, offset, immediate
    assert struct.unpack("<BBhi", _bpf.call(124)) == (0x85, 0, 0, 124)
    assert len(_bpf.MOV_R0_1 + _bpf.EXIT) == 16


def test_every_helper_is_asked_for_in_a_program_type_that_is_probed() -> None:
    assert {prog_type for _number, prog_type in _bpf.HELPERS.values()} <= set(_bpf.PROG_TYPES)
