# Copyright (c) 2026, The netstack developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask a node about itself, through the command line of the release that it runs.

The command is asked, not the sockets: it knows what each daemon should say, and says why when one is silent.
"""

from __future__ import annotations

import json
import os

EMPTY: dict[str, object] = {
    "node": None,
    "daemons": {},
    "programs": [],
    "maps": {},
    "addresses": [],
    "policies": [],
    "verdicts": {},
    "broken": [],
}


def not_ready(reason: str, release: str | None = None) -> dict[str, object]:
    """A node that cannot say anything, in the form of one that can."""
    return {**EMPTY, "ready": False, "reasons": [reason], "release": release}


def current_release(root: str) -> str | None:
    """The id of the release that the node is switched to."""
    try:
        with open(os.path.join(root, "current", "release")) as note:
            return note.read().strip()
    except OSError:
        return None


def parse_status(code: int, out: str, err: str, release: str | None) -> dict[str, object]:
    """What `netstack status --json` said: one object; exit status 1 means "not ready" and still says why."""
    try:
        status = json.loads(out)
    except ValueError:
        words = (err.strip() or out.strip() or "no output").splitlines()[-1]
        return not_ready(f"netstack status ended with {code}: {words}", release)
    if not isinstance(status, dict) or not isinstance(status.get("ready"), bool):
        return not_ready("netstack status --json: 'ready' is missing", release)
    return {**EMPTY, "reasons": [], "release": release, **status}
