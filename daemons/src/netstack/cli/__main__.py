"""The command `netstack`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def main() -> None:
    """Exit code 0: ready, allowed, or nothing wrong. 1: not. 2: the question or the command line is wrong."""
    parser = argparse.ArgumentParser(prog="netstack", description="What netstack does on this node.")
    commands = parser.add_subparsers(dest="command", required=True)
    status = commands.add_parser("status", help="daemons, programs, tables, addresses, policies, broken objects")
    status.add_argument("--json", action="store_true", help="for programs; the form that node_info returns")
    explain = commands.add_parser("explain", help="what the programs decide about a flow, and which rule makes them")
    explain.add_argument("source", help="pod/NAME or pod/NAMESPACE/NAME of this node, or an address")
    explain.add_argument("--to", required=True, metavar="DESTINATION[:PORT]", help="the same, or a DNS name")
    explain.add_argument("--protocol", choices=("TCP", "UDP", "ICMP", "ICMPv6"), default="TCP")
    explain.add_argument("-n", "--namespace", default="default", help="of pods without one")
    explain.add_argument("--json", action="store_true", help="for programs")
    check = commands.add_parser("check", help="what the daemons would say of a folder of manifests")
    check.add_argument("folder", type=Path)
    config = commands.add_parser("check-config", help="whether a daemon would start with a configuration file")
    config.add_argument("daemon", choices=("agent", "announcer", "dns", "ingress"))
    config.add_argument("file", type=Path)
    arguments = parser.parse_args()
    run = {"status": _status, "explain": _explain, "check": _check, "check-config": _check_config}
    sys.exit(run[arguments.command](arguments))


def _status(arguments: argparse.Namespace) -> int:
    from netstack.cli import status
    from netstack.cli.collect import collect

    facts = collect()
    sys.stdout.write(json.dumps(status.report(facts)) + "\n" if arguments.json else status.render(facts))
    return 1 if status.reasons(facts) else 0


def _explain(arguments: argparse.Namespace) -> int:
    from netstack.cli import explain
    from netstack.cli.collect import CONFIG
    from netstack.cli.inquire import Inquiry, Unanswerable, parse_destination
    from netstack.core.errors import BadConfig
    from netstack.kernel.loader import LoaderError, load_settings

    try:
        to, port = parse_destination(arguments.to)
        with Inquiry(load_settings(CONFIG / "agent.yaml")) as inquiry:
            found = inquiry.explain(arguments.source, to, port, arguments.protocol, arguments.namespace)
    except (Unanswerable, LoaderError, BadConfig, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.json:
        sys.stdout.write(json.dumps([explain.report(item) for item in found]) + "\n")
    else:
        sys.stdout.write("\n".join(map(explain.render, found)))
    return 0 if all(item.allowed for item in found) else 1


def _check(arguments: argparse.Namespace) -> int:
    from netstack.cli.check import problems, range_effects

    found = problems(arguments.folder)
    for line in [*found, *range_effects(arguments.folder)]:
        print(line)
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
