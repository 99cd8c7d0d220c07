"""Knocks at an HTTP server on a new connection every few milliseconds and tells how long nobody answered.

    knock.py HOST PORT NAME SECONDS [INTERVAL_MS]      NAME: the Host header

Prints a line `knocking` when the first answer came; at the end one JSON object: answers (count), failures (count),
gap_ms (the longest time between two answers, from a client's point of view).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time

PATIENCE_S = 0.25
"""An attempt that takes longer is given up; others run meanwhile."""


async def knock(host: str, port: int, name: str, answers: list[float]) -> bool:
    """One new connection with one GET; notes the time of a 200."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(f"GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
            status = await reader.readline()
            writer.close()
    except (OSError, TimeoutError):
        return False
    if b" 200 " not in status:
        return False
    if not answers:
        print("knocking", flush=True)
    answers.append(time.monotonic())
    return True


async def main() -> None:
    host, port, name, seconds = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
    interval_s = float(sys.argv[5]) / 1000 if len(sys.argv) > 5 else 0.01
    answers: list[float] = []
    end = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        attempts = []
        while time.monotonic() < end:
            attempts.append(group.create_task(knock(host, port, name, answers)))
            await asyncio.sleep(interval_s)
    gaps = [later - earlier for earlier, later in itertools.pairwise(answers)]
    failures = sum(not attempt.result() for attempt in attempts)
    print(
        json.dumps(
            {"answers": len(answers), "failures": failures, "gap_ms": round(1000 * max(gaps, default=seconds), 1)}
        )
    )


if __name__ == "__main__":
    asyncio.run(main())
