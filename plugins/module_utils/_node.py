# Copyright (c) 2026, The netstack developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask a node about itself, through the command line of the release that it runs.

The command is asked, not the sockets: it knows what each daemon should say, and says why when one is silent. Only who
waits for the agent asks that itself, many times.
"""

from __future__ import annotations

import json
import os
import socket

RUN = "/run/netstack"
PATIENCE_S = 5.0

EMPTY: dict[str, object] = {
    "node": None,
    "daemons": {},
    "programs": [],
    "maps": {},
    "addresses": [],
    "policies": [],
    "unmanaged": [],
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


class Silent(Exception):
    """The node does not say what it was asked for; the text says why."""


def command(root: str) -> str:
    """The path of the command line. Raises Silent."""
    path = os.path.join(root, "current", "bin", "netstack")
    if not os.path.exists(path):
        raise Silent(f"netstack is not installed: {path} does not exist")
    return path


def parse_answer(words: str, code: int, out: str, err: str) -> object:
    """What `netstack WORDS --json` said; exit status 2 means that it could not. Raises Silent."""
    if code not in (0, 1):
        said = (err.strip() or out.strip() or "no output").splitlines()[-1]
        raise Silent(f"netstack {words} ended with {code}: {said}")
    try:
        return json.loads(out)
    except ValueError:
        raise Silent(f"netstack {words} --json: no JSON") from None


def ask(daemon: str, request: dict[str, object]) -> object:
    """A daemon's answer to one control request. Raises Silent."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(PATIENCE_S)
            sock.connect(os.path.join(RUN, f"{daemon}.sock"))
            sock.sendall(json.dumps(request).encode() + b"\n")
            with sock.makefile("rb") as answers:
                answer = json.loads(answers.readline() or b"null")
    except (OSError, ValueError) as wrong:
        raise Silent(f"netstack-{daemon} does not answer: {wrong}") from wrong
    if not isinstance(answer, dict) or "ok" not in answer:
        raise Silent(f"netstack-{daemon} does not answer: {(answer or {}).get('error', 'it hung up')}")
    return answer["ok"]
