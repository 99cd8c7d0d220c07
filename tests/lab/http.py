"""HTTP as seen by somebody in the lab: curl, and all that a test wants to know of its answer."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

CURL = ("curl", "--silent", "--show-error", "--write-out", r"\n%{header_json}\n%{json}")

# Runs a command somewhere in the lab; its exit code is not checked.
Runner = Callable[[list[str]], subprocess.CompletedProcess[str]]


@dataclass(frozen=True, slots=True)
class Response:
    """What became of a request. Nothing is raised: a refused or dropped request is often what a test is about."""

    status: int  # 0 = no answer at all, see error
    body: str
    headers: Mapping[str, str]  # names in lower case; of a repeated one, the first
    remote: str  # address that was connected to; empty if none
    seconds: float
    error: str  # curl's words; empty if there was an answer

    def json(self) -> Any:
        """The body of share/answer.py: name, client, server, host, sni, path, headers ..."""
        return json.loads(self.body)


def get(
    runner: Runner,
    url: str,
    *,
    resolve: str | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 3.0,
    options: tuple[str, ...] = (),
) -> Response:
    """GET. `resolve` is the address to connect to instead of asking DNS for the URL's name; `options` go to curl."""
    argv = [*CURL, "--max-time", f"{timeout_s:g}"]
    if resolve:
        argv += ["--connect-to", f"::{resolve}:"]
    for name, value in (headers or {}).items():
        argv += ["--header", f"{name}: {value}"]
    said = runner([*argv, *options, url]).stdout
    body, facts, received = _split(said)
    return Response(
        status=int(facts["http_code"]),
        body=body,
        headers={name.lower(): values[0] for name, values in received.items()},
        remote=facts["remote_ip"],
        seconds=float(facts["time_total"]),
        error=facts["errormsg"] or "",
    )


def _split(said: str) -> tuple[str, dict[str, Any], dict[str, list[str]]]:
    """Body, curl's facts and the headers from: body, newline, headers as (many lines of) JSON, newline, facts."""
    text, _, facts = said.rstrip("\n").rpartition("\n")
    start = text.rfind("\n{")
    return text[:start], json.loads(facts), json.loads(text[start + 1 :])
