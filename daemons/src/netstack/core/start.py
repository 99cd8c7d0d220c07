"""What the `main` of a daemon does: its command line, its settings, then its life (unit.py)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from netstack.core.errors import BadConfig
from netstack.core.settings import load
from netstack.core.unit import Unit, run

S = TypeVar("S")


def start(name: str, description: str, settings: type[S], serve: Callable[[S, Unit], Awaitable[None]]) -> None:
    """Live as the daemon `name`; exit code 1 if a file of settings is wrong, with file, field and reason."""
    parser = argparse.ArgumentParser(prog=f"netstack-{name}", description=description)
    parser.add_argument("--config", type=Path, default=Path(f"/etc/netstack/{name}.yaml"))
    path = parser.parse_args().config
    try:
        chosen = load(settings, path)
    except BadConfig as error:
        sys.exit(f"{path}: {error}")
    except OSError as error:
        sys.exit(f"{path}: {error.strerror}")
    run(name, lambda unit: serve(chosen, unit))
