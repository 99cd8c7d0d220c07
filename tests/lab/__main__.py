"""`python -m lab`: the lab from a shell."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time
from pathlib import Path

from . import image
from .lab import SOURCES, InUse, Lab, labs

INVENTORY = Path(__file__).parents[2] / "inventory/lab/hosts.yml"
MEMBER_CALLS = ("powercut", "boot", "reboot", "unplug", "plug", "freeze", "thaw")


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def up(options: argparse.Namespace) -> None:
    start = time.monotonic()
    lab = Lab(options.prefix, options.nodes, source=options.source)
    lab.up(keep=True)
    lab.write_inventory(options.inventory)
    names = ", ".join(f"{node.name} {node.address}" for node in lab.nodes)
    say(f"lab {options.prefix!r} is up after {time.monotonic() - start:.1f} s: {names}; inventory {options.inventory}")


def down(options: argparse.Namespace) -> None:
    Lab(options.prefix).down()
    options.inventory.unlink(missing_ok=True)


def status(_: argparse.Namespace) -> None:
    for lab in labs():
        boots = ((node, node.boot_state()) for node in lab.nodes)
        states = (f"{node.name} {'off' if boot is None else f'boot {boot.count}'}" for node, boot in boots)
        say(f"{lab.names.prefix}: {', '.join(states)}")


def enter(options: argparse.Namespace) -> None:
    """Become a shell, or a command, in a member of the LAN or in a pod."""
    lab = Lab.open(options.prefix)
    namespace, _, pod = options.where.partition("/")
    where = lab.find_pod(namespace, pod) if pod else lab.member(namespace)
    argv = where.enter(options.command or ["bash"])
    os.execvp(argv[0], argv)


def act(options: argparse.Namespace) -> None:
    getattr(Lab.open(options.prefix), options.verb)(options.member)


def apply(options: argparse.Namespace) -> None:
    for manifest in options.manifests:
        Lab.open(options.prefix).apply(manifest)


def loss(options: argparse.Namespace) -> None:
    Lab.open(options.prefix).loss(options.member, options.percent)


def build_image(_: argparse.Namespace) -> None:
    say(str(image.build()))


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m lab", description="Nodes, a LAN and an internet, on this machine.")
    top.add_argument("--prefix", default="lab", help="which lab; labs of different prefixes run side by side")
    top.add_argument("--inventory", type=Path, default=INVENTORY, help="the Ansible inventory that up writes")
    verbs = top.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("up", help="boot a lab, and leave it running")
    verb.add_argument("--nodes", type=int, default=3)
    verb.add_argument("--source", choices=SOURCES, default=SOURCES[0], help="who keeps the cluster's objects")
    verb.set_defaults(do=up)
    verbs.add_parser("down", help="remove a lab, whatever its state").set_defaults(do=down)
    verbs.add_parser("status", help="the labs of this machine").set_defaults(do=status)
    verbs.add_parser("image", help="build the node image, if it is missing").set_defaults(do=build_image)
    verb = verbs.add_parser("enter", help="a shell, or a command, in n1 .., cli1, cli2, ctl, rtr or a pod")
    verb.add_argument("where", help="a member of the LAN, or namespace/pod")
    verb.add_argument("command", nargs=argparse.REMAINDER)
    verb.set_defaults(do=enter)
    for name in MEMBER_CALLS:
        verb = verbs.add_parser(name, help=" ".join((getattr(Lab, name).__doc__ or name).split()))
        verb.add_argument("member")
        verb.set_defaults(do=act)
    verb = verbs.add_parser("apply", help="create or replace the objects of manifest files")
    verb.add_argument("manifests", type=Path, nargs="+")
    verb.set_defaults(do=apply)
    verb = verbs.add_parser("loss", help="lose a share of the frames on a member's cable")
    verb.add_argument("member")
    verb.add_argument("percent", type=int)
    verb.set_defaults(do=loss)
    return top


def main() -> int:
    # A lab that is being made is unmade when we are told to stop.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    options = parser().parse_args()
    try:
        options.do(options)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except InUse as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except FileNotFoundError:
        if (Lab(options.prefix).names.run / "lab.json").exists():
            raise
        sys.stderr.write(f"no lab {options.prefix!r} is up: {shlex.join(['python', '-m', 'lab', 'up'])}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
