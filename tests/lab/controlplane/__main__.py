"""`python -m lab.controlplane`: build the control plane's programs, if they are missing, and say where they are."""

from __future__ import annotations

import sys

from .binaries import Unavailable, programs, skip_reason


def main() -> None:
    try:
        why_not = skip_reason()
        sys.stdout.write(f"{why_not or programs()}\n")
    except Unavailable as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
