"""The command `netstack`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from netstack.cli.status import DAEMONS
from netstack.core.errors import BadConfig
from netstack.core.protocol import PROTOCOLS

RETRY_S = 0.2
"""Between two attempts to reach a daemon that is being restarted."""


class Silent(Exception):
    """A daemon that is asked does not answer."""

    def __init__(self, daemon: str, error: Exception) -> None:
        absent = isinstance(error, FileNotFoundError | ConnectionRefusedError)
        super().__init__(f"netstack-{daemon} is not running" if absent else f"netstack-{daemon}: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="netstack", description="What netstack does on this node.")
    commands = parser.add_subparsers(dest="command", required=True)
    status = commands.add_parser("status", help="daemons, programs, tables, addresses, policies, broken objects")
    status.add_argument("--json", action="store_true", help="for programs; the form that node_info returns")
    explain = commands.add_parser("explain", help="what the programs decide about a flow, and which rule makes them")
    explain.add_argument("source", help="pod/NAME or pod/NAMESPACE/NAME, or an address")
    explain.add_argument("--to", required=True, metavar="DESTINATION[:PORT]", help="the same, or a DNS name")
    explain.add_argument("--protocol", choices=PROTOCOLS, default="TCP")
    explain.add_argument("-n", "--namespace", default="default", help="of pods without one")
    explain.add_argument("--json", action="store_true", help="for programs")
    observe = commands.add_parser("observe", help="what became of packets: every drop, every first packet of a flow")
    observe.add_argument("-f", "--follow", action="store_true", help="go on with what is to come")
    observe.add_argument("--last", type=int, default=20, help="how many of those that were (default: 20)")
    observe.add_argument("--since", type=float, metavar="SECONDS", help="none that is older")
    observe.add_argument("--pod", action="append", help="NAMESPACE/NAME, or how it begins, at either end")
    observe.add_argument("--from-pod", action="append", help="the same at the source")
    observe.add_argument("--to-pod", action="append", help="the same at the destination")
    observe.add_argument("-n", "--namespace", action="append", help="of either end")
    observe.add_argument("--ip", action="append", metavar="ADDRESS[/BITS]", help="either end")
    observe.add_argument("--name", action="append", metavar="PATTERN", help="a DNS name of either end, with *")
    observe.add_argument("--port", action="append", type=int, help="of either end")
    observe.add_argument("--protocol", action="append", help="TCP, UDP, ICMP, ICMPv6, SCTP")
    observe.add_argument("--verdict", action="append", help="allowed, dropped, audited, or one that `status` counts")
    observe.add_argument("--json", action="store_true", help="an object a line, for programs")
    dns = commands.add_parser("dns", help="which addresses pods have learned for which names, and what was refused")
    dns.add_argument("pod", nargs="?", default="", help="NAMESPACE/NAME, or how it begins")
    dns.add_argument("--json", action="store_true", help="for programs")
    effect = commands.add_parser("effect", help="what a policy would open and deny here, without applying it")
    effect.add_argument("file", type=Path, help="the policy; - is standard input")
    effect.add_argument("--absent", action="store_true", help="what taking it away would")
    effect.add_argument("--json", action="store_true", help="for programs; the form that network_policy returns")
    identities = commands.add_parser("identities", help="who is who: numbers, labels, addresses, pods of this node")
    identities.add_argument("--json", action="store_true", help="for programs; the form that identity_info returns")
    check = commands.add_parser("check", help="what the daemons would say of a folder of manifests")
    check.add_argument("folder", type=Path)
    config = commands.add_parser("check-config", help="whether a daemon would start with a configuration file")
    config.add_argument("daemon", choices=DAEMONS)
    config.add_argument("file", type=Path)
    config.add_argument("--no-credentials", action="store_true", help="there or not, those for the API server")
    return parser


def main() -> None:
    """Exit code 0: ready, allowed, or nothing wrong. 1: not. 2: the question or the command line is wrong."""
    arguments = _parser().parse_args()
    run: dict[str, Callable[[argparse.Namespace], int]] = {
        "status": _status,
        "explain": _explain,
        "observe": _observe,
        "dns": _dns,
        "effect": _effect,
        "identities": _identities,
        "check": _check,
        "check-config": _check_config,
    }
    try:
        code = run[arguments.command](arguments)
        sys.stdout.flush()
    except BadConfig as error:  # of the agent, whose settings say where things are
        print(f"/etc/netstack/agent.yaml: {error}", file=sys.stderr)
        code = 2
    except BrokenPipeError:  # whoever reads has enough, as `head` has; nothing is to be written at the exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except (Silent, OSError) as error:  # the kernel's: who is not root may not look
        print(error, file=sys.stderr)
        code = 2
    sys.exit(code)


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
    from netstack.core.address import is_v4
    from netstack.kernel.loader import LoaderError, load_settings

    try:
        to, port = parse_destination(arguments.to)
        with Inquiry(load_settings(CONFIG / "agent.yaml")) as inquiry:
            found = inquiry.explain(arguments.source, to, port, arguments.protocol, arguments.namespace)
    except (Unanswerable, LoaderError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.json:
        sys.stdout.write(json.dumps([explain.report(item) for item in found]) + "\n")
    else:
        sys.stdout.write("\n".join(map(explain.render, found)))
    if not all(item.allowed for item in found):
        return 1
    if all(item.asked for item in found):
        family = "IPv4" if is_v4(found[0].source.address) else "IPv6"
        sys.stdout.flush()
        print(
            f"{arguments.source} has learned no {family} address of {to} yet: look it up in the pod, and ask again",
            file=sys.stderr,
        )
        return 2
    return 0


def _observe(arguments: argparse.Namespace) -> int:
    from netstack.cli import observe
    from netstack.cli.collect import CONFIG
    from netstack.cli.reasons import Reasons
    from netstack.kernel.loader import load_settings

    fields = ("pod", "from_pod", "to_pod", "namespace", "ip", "name", "port", "protocol", "verdict")
    wanted = {field: values for field in fields if (values := getattr(arguments, field))}
    request = {"command": "flows", "filter": wanted, "last": arguments.last, "follow": arguments.follow}
    if arguments.since is not None:
        request["since_s"] = arguments.since
    reasons = Reasons(Path(load_settings(CONFIG / "agent.yaml").pins) / "maps")
    if arguments.follow:  # Python looks at a key only between two waits, and one that just begins may be long
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        for flow in _told(request):
            why = reasons.of(flow)
            text = json.dumps({**flow, "why": why}) if arguments.json else observe.line(flow, why)
            print(text, flush=True)
    except BrokenPipeError:
        raise
    except (RuntimeError, OSError) as error:
        raise Silent("observer", error) from error
    return 0


def _told(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What netstack-observer tells. Who follows goes on with its successor, which knows of nothing older but what its
    predecessor had not read."""
    from netstack.core.unit import listen

    try:
        yield from listen("observer", request)
    except ConnectionResetError:  # it ended while it spoke
        if not request["follow"]:
            raise
    while request["follow"]:
        print("... netstack-observer has ended, waiting for the next ...", file=sys.stderr)
        while True:
            try:
                yield from listen("observer", request | {"last": sys.maxsize})
                break
            except (FileNotFoundError, ConnectionError):
                time.sleep(RETRY_S)


def _ask(daemon: str, command: str) -> Any:
    """Silent if it does not answer."""
    from netstack.core.unit import ask

    try:
        return ask(daemon, {"command": command})
    except (RuntimeError, OSError) as error:
        raise Silent(daemon, error) from error


def _dns(arguments: argparse.Namespace) -> int:
    from netstack.cli import learned

    names, status = (_ask("dns", command) for command in ("names", "status"))
    pods = {view["id"]: view for view in _ask("agent", "status")["endpoints"]}
    rows, refused = learned.rows(names, pods, arguments.pod), learned.refusals(status, pods, arguments.pod)
    if arguments.json:
        sys.stdout.write(json.dumps({"learned": rows, "refused": refused}) + "\n")
    else:
        sys.stdout.write(learned.render(rows, refused))
    return 0


def _effect(arguments: argparse.Namespace) -> int:
    import yaml

    from netstack.agent.settings import AgentSettings
    from netstack.cli import effect
    from netstack.cli.collect import CONFIG
    from netstack.cli.proposal import Unanswerable, propose
    from netstack.core import settings
    from netstack.core.documents import load_all

    file: Path = arguments.file
    try:
        text = sys.stdin.read() if file == Path("-") else file.read_text(encoding="utf-8")
        documents = load_all(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        print(f"{file}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if len(documents) != 1:
        print(f"{file}: must hold one object, not {len(documents)}", file=sys.stderr)
        return 2
    try:
        (document,) = documents
        told = propose(document, settings.load(AgentSettings, CONFIG / "agent.yaml"), absent=arguments.absent)
    except (Unanswerable, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    sys.stdout.write(json.dumps(effect.report(told)) + "\n" if arguments.json else effect.render(told))
    return 1 if told.problems else 0


def _identities(arguments: argparse.Namespace) -> int:
    from netstack.cli import identities

    known, endpoints = (_ask("agent", command) for command in ("identities", "status"))
    found = identities.joined(known or [], endpoints["endpoints"])
    sys.stdout.write(json.dumps(found) + "\n" if arguments.json else identities.render(found))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from netstack.cli.check import problems, range_effects

    found = problems(arguments.folder)
    for line in [*found, *range_effects(arguments.folder)]:
        print(line)
    print(f"{len(found)} problems" if found else "nothing wrong")
    return 1 if found else 0


def _check_config(arguments: argparse.Namespace) -> int:
    from netstack.cli.check import config_problem

    problem = config_problem(arguments.daemon, arguments.file, credentials=not arguments.no_credentials)
    if problem is not None:
        print(problem, file=sys.stderr)
    return 0 if problem is None else 1


if __name__ == "__main__":
    main()
