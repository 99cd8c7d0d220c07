from typing import Any

from netstack.cli.status import Daemon, Facts, Vip, reasons, render, report
from netstack.core.verdict import Verdict


def facts(**changed: Any) -> Facts:
    whole: dict[str, Any] = {
        "node": "n1",
        "release": "0.1.0-abcdef12",
        "daemons": {"agent": Daemon({"summary": "3 services", "policies": [], "broken": []})},
        "missing_programs": (),
        "programs": ("uplink_ingress at eth0",),
        "maps": {"services": (3, 16384), "nat": (0, 65536)},
    }
    return Facts(**whole | changed)


def test_a_whole_node_is_ready() -> None:
    assert reasons(facts()) == []
    shown = report(facts())
    assert shown["ready"] and shown["release"] == "0.1.0-abcdef12"
    assert shown["maps"]["services"] == {"entries": 3, "size": 16384}


def test_every_lack_is_a_reason() -> None:
    found = reasons(
        facts(
            release=None,
            daemons={"agent": Daemon(None, "it does not run"), "dns": Daemon({"unready": ["rules file is missing"]})},
            missing_programs=("connect4 at /sys/fs/cgroup",),
        )
    )
    assert found == [
        "netstack is not installed: no release is active",
        "agent: it does not run",
        "not attached: connect4 at /sys/fs/cgroup",
        "dns: rules file is missing",
    ]
    assert reasons(facts(daemons={})) == ["no daemon is configured"]


def test_broken_objects_are_shown_and_do_not_make_it_unready() -> None:
    broken = ["a.yaml: Service a/b: spec.type: is wrong"]
    shown = facts(daemons={"agent": Daemon({"broken": broken}), "announcer": Daemon({"broken": broken})})
    assert report(shown)["ready"] and report(shown)["broken"] == broken
    assert "broken objects\n  a.yaml: Service a/b" in render(shown)


def test_a_node_that_policies_select_says_what_stays_open() -> None:
    host = {"enforces": ["ingress"], "policies": ["P a"], "on_trial": ["P b"], "kept": "always reachable: SSH (TCP 22)"}
    text = render(facts(daemons={"agent": Daemon({"host": host})}))
    assert "this node\n  ingress enforced: P a, P b (on trial)\n  always reachable: SSH (TCP 22)\n" in text
    assert "this node" not in render(facts(daemons={"agent": Daemon({"host": {}})}))


def test_an_address_says_whether_it_is_announced_here() -> None:
    vips = (
        Vip("192.168.86.18", "eth0", 0.3, ever=True),
        Vip("192.168.86.5", "eth0", -2.5, ever=True),
        Vip("192.168.86.6", "eth0", -99.0, ever=False),
    )
    shown = report(facts(vips=vips))["addresses"]
    assert [(a["announced"], a["note"]) for a in shown] == [
        (True, "announced by this node"),
        (False, "not announced: this node fell silent 2.5 s ago"),
        (False, "not announced by this node"),
    ]


def test_the_text_shows_drops_with_their_reason_and_only_maps_in_use() -> None:
    counters = {Verdict.FORWARDED: 9, Verdict.DEFAULT_DENY: 4, Verdict.SPOOFED: 0, 250: 7}
    text = render(facts(counters={int(k): v for k, v in counters.items()}))
    assert "DEFAULT_DENY             4  no policy that selects the pod allows it" in text
    assert "VERDICT_250              7  of another release's programs" in text
    assert "FORWARDED" not in text and "SPOOFED" not in text and "nat " not in text
    assert text.startswith("n1: ready   release 0.1.0-abcdef12\n")


def test_a_daemon_that_is_down_and_a_refused_policy_are_said() -> None:
    policies = [{"policy": "CiliumNetworkPolicy a/b", "state": "refused", "reason": "spec.x: unknown field"}]
    text = render(facts(daemons={"agent": Daemon({"policies": policies}), "dns": Daemon(None, "it does not run")}))
    assert "  dns        not running: it does not run\n" in text
    assert "  CiliumNetworkPolicy a/b  refused: spec.x: unknown field\n" in text
    assert "n1: NOT READY" in text


def test_pods_that_netstack_did_not_connect_are_shown() -> None:
    policies = [{"policy": "P", "state": "enforced", "not_enforced": ["a/b", "a/c"], "isolated": ["a/d"]}]
    item = {"pod": "a/d", "address": "10.0.0.5", "reason": "so it is isolated; delete it"}
    shown = facts(daemons={"agent": Daemon({"policies": policies, "unmanaged": [item]})})
    assert report(shown)["ready"] and report(shown)["unmanaged"] == [item]
    text = render(shown)
    assert "P  enforced, but not on a/b, a/c: their network is the node's or another plugin's; isolated: a/d\n" in text
    assert "pods not connected by netstack\n  a/d 10.0.0.5  so it is isolated; delete it\n" in text
    assert "pods not connected" not in render(facts())


def test_what_keeps_a_daemon_from_the_cluster_is_shown_and_does_not_make_it_unready() -> None:
    problem = {"kind": "Pod", "reason": "403 Forbidden: pods is forbidden", "since": "2026-01-01T00:00:00Z"}
    shown = facts(daemons={"agent": Daemon({"source": {"kind": "kubernetes", "problems": [problem]}})})
    assert report(shown)["ready"]
    line = "agent      Pod: 403 Forbidden: pods is forbidden (as last known, since 2026-01-01T00:00:00Z)"
    assert f"objects\n  {line}\n" in render(shown)
    assert "objects" not in render(facts())
