"""Objects are cut off where they are nested too deep. Pure.

Where a definition lets a field hold anything, the API server takes 10,000 lists in one another. Python reads, compares
and writes nothing that is deeper than about 1,000 of its own calls: one such object kept a node from everything else of
its kind. What stands in its place is text, and no reader takes text for a mapping or list.
"""

from __future__ import annotations

import json
import re
from typing import Any

DEPTH = 64
"""Levels that are kept. A policy has ten."""
TOO_DEEP = "(nested too deep)"
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]')


def load(data: bytes) -> Any:
    """JSON. ValueError if it is none."""
    try:
        return json.loads(data)
    except RecursionError:
        return json.loads(_cut(data))


def shallow(value: Any, levels: int = DEPTH) -> Any:
    """The same, with nothing that is deeper."""
    if not isinstance(value, dict | list):
        return value
    if not levels:
        return TOO_DEEP
    if isinstance(value, dict):
        return {key: shallow(item, levels - 1) for key, item in value.items()}
    return [shallow(item, levels - 1) for item in value]


def _cut(data: bytes) -> bytes:
    """JSON text with nothing deeper than twice DEPTH, so that what is listed or told has all of its own levels."""
    kept, start, depth = bytearray(), 0, 0
    for token in _TOKEN.finditer(data):
        if token[0] in b"[{":
            depth += 1
            if depth == 2 * DEPTH + 1:
                kept += data[start : token.start()] + json.dumps(TOO_DEEP).encode()
        elif token[0] in b"]}":
            if depth == 2 * DEPTH + 1:
                start = token.end()
            depth -= 1
    return bytes(kept + data[start:])
