"""One rule of 6.1's verifier that 6.18's no longer has, so that it is seen without a guest.

A loop may be closed by a jump only (kernel/bpf/verifier.c of 6.1, check_cfg: `loop_ok`). Where the compiler lays the
last instruction of a body right before the loop's head, the program is refused: "back-edge from insn 1431 to 1432".
Whether an edge closes a loop depends on the order of the walk, so the walk is the kernel's: depth first, the next
instruction before the jump's target.
"""

from __future__ import annotations

from collections.abc import Iterator

from netstack.kernel.programs import INSTRUCTION

JMP, JMP32 = 5, 6  # instruction classes
JA, CALL, EXIT = 0x00, 0x80, 0x90  # operations of JMP


def _edges(code: int, jump: int, at: int) -> list[tuple[int, bool]]:
    """(instruction that may follow the one at `at`, whether a loop may be closed this way), in the kernel's order."""
    operation = code & 0xF0
    if code & 0x07 not in (JMP, JMP32) or operation == CALL:
        return [(at + 1, False)]
    if operation == EXIT:
        return []
    if operation == JA:
        return [(at + 1 + jump, True)]
    return [(at + 1, True), (at + 1 + jump, True)]


def refused_edges(instructions: bytes) -> Iterator[tuple[int, int]]:
    """(from, to) of every edge that closes a loop by falling through."""
    edges = [_edges(code, jump, at) for at, (code, _, jump, _) in enumerate(INSTRUCTION.iter_unpack(instructions))]
    path, walked = [0], {0}
    on_path, untried = {0}, [iter(found) for found in edges]
    while path:
        at = path[-1]
        edge = next(untried[at], None)
        if edge is None:
            on_path.remove(path.pop())
            continue
        to, may_close = edge
        if to in on_path and not may_close:
            yield at, to
        elif to not in walked:
            path.append(to)
            walked.add(to)
            on_path.add(to)
