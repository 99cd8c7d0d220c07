"""`netstack status`: what is collected on a node, judged and shown. Pure: collecting is netstack.cli.collect's work.

A node is ready when every daemon that is configured on it answers and the kernel carries all programs. Broken or
refused objects do not make it unready (their last good versions are in force); they are listed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from netstack.core.verdict import Verdict

DAEMONS = ("agent", "announcer", "dns", "ingress", "observer")


@dataclass(frozen=True, slots=True)
class Daemon:
    """One configured daemon: its own status report, or why there is none."""

    report: dict[str, Any] | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Vip:
    """A LoadBalancer address as this node's kernel has it. `left_s`: seconds until it goes silent; <= 0 is silent."""

    address: str
    interface: str
    left_s: float
    ever: bool
    """False if this node never owned the address since the entry was made."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found on the node."""

    node: str
    release: str | None
    daemons: dict[str, Daemon]
    missing_programs: tuple[str, ...]
    """`program at hook` for every attachment that should be there and is not."""
    programs: tuple[str, ...]
    maps: dict[str, tuple[int, int]] = field(default_factory=dict)
    """name -> (entries, size)."""
    vips: tuple[Vip, ...] = ()
    counters: dict[int, int] = field(default_factory=dict)


def reasons(facts: Facts) -> list[str]:
    """Why the node is not ready; empty if it is."""
    found = []
    if facts.release is None:
        found.append("netstack is not installed: no release is active")
    if not facts.daemons:
        found.append("no daemon is configured")
    found += [f"{name}: {daemon.error}" for name, daemon in facts.daemons.items() if daemon.report is None]
    found += [f"not attached: {program}" for program in facts.missing_programs]
    found += [
        f"{name}: {reason}"
        for name, daemon in facts.daemons.items()
        for reason in (daemon.report or {}).get("unready", ())
    ]
    return found


def report(facts: Facts) -> dict[str, Any]:
    """The JSON form; `netstack.node_info` returns it as it is."""
    unready = reasons(facts)
    daemons = {
        name: {"running": daemon.report is not None}
        | ({"status": daemon.report} if daemon.report is not None else {"error": daemon.error})
        for name, daemon in facts.daemons.items()
    }
    return {
        "node": facts.node,
        "ready": not unready,
        "reasons": unready,
        "release": facts.release,
        "daemons": daemons,
        "programs": list(facts.programs),
        "maps": {name: {"entries": entries, "size": size} for name, (entries, size) in sorted(facts.maps.items())},
        "addresses": [
            {"address": vip.address, "interface": vip.interface, "announced": vip.left_s > 0, "note": _vip_note(vip)}
            for vip in facts.vips
        ],
        **{name: _of_agent(facts).get(name, []) for name in ("policies", "unmanaged")},
        "verdicts": {_verdict(number): count for number, count in sorted(facts.counters.items()) if count},
        "broken": sorted({text for d in facts.daemons.values() for text in (d.report or {}).get("broken", ())}),
    }


def render(facts: Facts) -> str:
    """The text form."""
    shown = report(facts)
    lines = [f"{facts.node}: {'ready' if shown['ready'] else 'NOT READY'}   release {facts.release or 'none'}"]
    lines += [f"  ! {reason}" for reason in shown["reasons"]]
    lines += _section("daemons", [_daemon_line(name, d) for name, d in facts.daemons.items()])
    lines += _section("objects", _sources(facts))
    lines += _section("programs", shown["programs"])
    used = [(name, n, size) for name, (n, size) in sorted(facts.maps.items()) if n]
    lines += _section("maps", [f"{name:14} {n:>7} of {size}  ({100 * n / size:.1f} %)" for name, n, size in used])
    lines += _section("addresses", [f"{v.address:16} {v.interface}  {_vip_note(v)}" for v in facts.vips])
    lines += _section("policies", [_policy_line(policy) for policy in shown["policies"]])
    lines += _section(
        "pods not connected by netstack",
        [f"{item['pod']} {item['address']}  {item['reason']}" for item in shown["unmanaged"]],
    )
    lines += _section("this node", _host_lines(facts))
    drops = {name: n for name, n in shown["verdicts"].items() if Verdict.of(name).dropped}
    lines += _section("drops", [f"{name:16} {n:>9}  {Verdict.of(name).reason}" for name, n in drops.items()])
    lines += _section("broken objects", shown["broken"])
    return "\n".join(lines) + "\n"


def _of_agent(facts: Facts) -> dict[str, Any]:
    agent = facts.daemons.get("agent")
    return (agent.report or {}) if agent else {}


def _section(title: str, rows: list[str]) -> list[str]:
    return [title, *(f"  {row}" for row in rows)] if rows else []


def _daemon_line(name: str, daemon: Daemon) -> str:
    if daemon.report is None:
        return f"{name:10} not running: {daemon.error}"
    return f"{name:10} running  {daemon.report.get('summary', '')}".rstrip()


def _sources(facts: Facts) -> list[str]:
    """What keeps a daemon from what is written in the cluster; nothing where all is well."""
    return [
        f"{name:10} {problem['kind']}: {problem['reason']}"
        + (f" (as last known, since {problem['since']})" if problem.get("since") else "")
        for name, daemon in facts.daemons.items()
        for problem in ((daemon.report or {}).get("source") or {}).get("problems", ())
    ]


def _policy_line(policy: dict[str, Any]) -> str:
    line = f"{policy['policy']}  {policy['state']}"
    if policy.get("not_enforced"):
        line += f", but not on {', '.join(policy['not_enforced'])}: their network is the node's or another plugin's"
    if policy.get("isolated"):
        line += f"; isolated: {', '.join(policy['isolated'])}"
    return f"{line}: {policy['reason']}" if policy.get("reason") else line


def _host_lines(facts: Facts) -> list[str]:
    """What policies for nodes do to this one."""
    host = _of_agent(facts).get("host")
    if not host:
        return []
    names = ", ".join([*host["policies"], *(f"{name} (on trial)" for name in host["on_trial"])])
    return [f"{' and '.join(host['enforces']) or 'nothing'} enforced: {names}", host["kept"]]


def _vip_note(vip: Vip) -> str:
    if vip.left_s > 0:
        return "announced by this node"
    if vip.ever:
        return f"not announced: this node fell silent {-vip.left_s:.1f} s ago"
    return "not announced by this node"


def _verdict(number: int) -> str:
    return Verdict(number).name
