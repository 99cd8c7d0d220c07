"""`python -m lab.controlplane`: build the control plane's programs, if they are missing, and say where they are."""

from __future__ import annotations

import sys

from .binaries import Unavailable, found, programs, skip_reason, version


def main() -> None:
    try:
        why_not = skip_reason()
        if why_not is None and not found():
            sys.stdout.write(f"building Kubernetes {version()} and etcd, once: some minutes\n")
            sys.stdout.flush()
        sys.stdout.write(f"{why_not or programs()}\n")
    except Unavailable as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
