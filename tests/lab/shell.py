"""Running commands: one way to run, one error that shows what the command said, one way to wait."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


class CommandFailed(Exception):
    """A command ended with another exit code than 0; the message holds both of its outputs."""

    def __init__(self, argv: Sequence[str], result: subprocess.CompletedProcess[str]) -> None:
        said = "\n".join(text.strip() for text in (result.stdout, result.stderr) if text and text.strip())
        super().__init__(f"exit {result.returncode}: {' '.join(argv)}\n{said}")
        self.result = result


class TimedOut(TimeoutError):
    """A condition that was waited for did not come true in time."""


def run(
    argv: Sequence[str],
    *,
    stdin: str | None = None,
    check: bool = True,
    timeout_s: float = 30.0,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run to the end, outputs as text. Raises CommandFailed (if check) and subprocess.TimeoutExpired."""
    result = subprocess.run(
        argv,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout_s,
        env=env,
        check=False,
    )
    if check and result.returncode != 0:
        raise CommandFailed(argv, result)
    return result


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 10.0, step_s: float = 0.02) -> None:
    """Poll until the condition is true; TimedOut names `what` was waited for."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimedOut(f"{what}: not within {timeout_s:g} s")
        time.sleep(step_s)


def alive(pid: int) -> bool:
    """Whether the process runs; one that ended and was not waited for does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"
