"""The command `netstack`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def main() -> None:
    """Exit code 0: ready, or nothing wrong. 1: not ready, or something is. 2: the command line is wrong."""
    parser = argparse.ArgumentParser(prog="netstack", description="What netstack does on this node.")
    commands = parser.add_subparsers(dest="command", required=True)
    status = commands.add_parser("status", help="daemons, programs, tables, addresses, policies, broken objects")
    status.add_argument("--json", action="store_true", help="for programs; the form that node_info returns")
    check = commands.add_parser("check", help="what the daemons would say of a folder of manifests")
    check.add_argument("folder", type=Path)
    config = commands.add_parser("check-config", help="whether a daemon would start with a configuration file")
    config.add_argument("daemon", choices=("agent", "announcer", "dns", "ingress"))
    config.add_argument("file", type=Path)
    arguments = parser.parse_args()
    sys.exit({"status": _status, "check": _check, "check-config": _check_config}[arguments.command](arguments))


def _status(arguments: argparse.Namespace) -> int:
    from netstack.cli import status
    from netstack.cli.collect import collect

    facts = collect()
    sys.stdout.write(json.dumps(status.report(facts)) + "\n" if arguments.json else status.render(facts))
    return 1 if status.reasons(facts) else 0


def _check(arguments: argparse.Namespace) -> int:
    from netstack.cli.check import problems

    found = problems(arguments.folder)
    for problem in found:
        print(problem)
    print(f"{len(found)} problems" if found else "nothing wrong")
    return 1 if found else 0


def _check_config(arguments: argparse.Namespace) -> int:
    from netstack.cli.check import config_problem

    problem = config_problem(arguments.daemon, arguments.file)
    if problem is not None:
        print(problem, file=sys.stderr)
    return 0 if problem is None else 1


if __name__ == "__main__":
    main()
