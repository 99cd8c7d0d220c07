"""The agent's side of the CNI: waiting, refusing, the audit, the ingress endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from instruments.board import LAN, NODE, ROOT, Board, CniFailure, Pod, ip, wait_for
from netstack.agent.plugin import device_name
from netstack.core.verdict import Verdict

pytestmark = pytest.mark.root


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    with Board(tmp_path) as board:
        board.load()
        board.start()
        yield board


def test_del_without_an_agent_succeeds_and_is_made_good_later(board: Board) -> None:
    pod = board.add("default/one")
    board.stop()
    assert board.cni("DEL", pod) == {}
    board.start()
    wait_for("the audit", lambda: board.ask("status")["endpoints"] == [])


def test_a_pod_that_its_runtime_forgot_gives_its_address_back_when_its_namespace_is_gone(tmp_path: Path) -> None:
    """No DEL ever comes. Its object may still be there."""
    with Board(tmp_path, 3, pod_cidr="10.244.1.0/29") as board:
        board.load()
        board.start()
        pods = [board.add(f"default/p{number}") for number in range(4)]
        ip("netns", "del", pods[1].netns)
        wait_for("the audit", lambda: len(board.ask("status")["endpoints"]) == 3)
        assert board.add("default/next").address == pods[1].address


def test_a_pod_that_goes_while_the_disk_is_full_stops_no_agent(board: Board) -> None:
    """Nor keeps one from starting: pods that stay are still looked after, and it is made good when there is room."""
    board.stop()
    state = f"{board.folder}/state"
    board.run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", state, check=True)
    board.start()
    gone, stays = board.add("default/gone"), board.add("default/stays")
    board.run("sh", "-c", f"cat /dev/zero > {state}/filler")
    assert board.cni("DEL", gone) == {}

    def complains() -> bool:
        return any(
            "default/gone is gone and cannot be released: [Errno 28]" in reason
            for reason in board.ask("status")["unready"]
        )

    for _ in range(2):
        wait_for("the complaint", complains)
        board.run("tc", "qdisc", "del", "dev", stays.device, "clsact", check=True)
        wait_for(
            "its programs",
            lambda: "netstack/" in board.run("tc", "filter", "show", "dev", stays.device, "ingress").stdout,
        )
        board.stop()
        board.start()
    board.run("rm", f"{state}/filler", check=True)
    wait_for("the audit", lambda: len(board.ask("status")["endpoints"]) == 1)
    wait_for("the end of the complaint", lambda: not complains())


def test_a_register_that_cannot_be_read_is_named_and_is_not_taken_for_an_empty_one(board: Board) -> None:
    board.add("default/one")
    board.stop()
    register = board.folder / "state/endpoints.json"
    register.write_bytes(b"\0\xff")
    with pytest.raises(
        AssertionError, match=f"{register} is no register of endpoints: .*; remove it and restart the node"
    ):
        board.start()


def test_a_pod_whose_object_is_unknown_waits_and_is_told_so(board: Board) -> None:
    pod = board.sandbox("default/ghost")
    with pytest.raises(CniFailure, match=r"Pod default/ghost is not known on this node yet waited 0.5 s") as failure:
        board.cni("ADD", pod)
    assert failure.value.code == 11
    assert "eth0" not in ip("-n", pod.netns, "link")


def deny_shut_pods(board: Board) -> None:
    """A policy that goes by the labels of pods and of their namespace, and a server of the LAN to be kept from."""
    namespace = {"name": "default", "labels": {"team": "red"}}
    labels = {"app": "shut", "io.cilium.k8s.namespace.labels.team": "red"}
    spec = {"endpointSelector": {"matchLabels": labels}, "egress": [{}]}
    head = {"apiVersion": "cilium.io/v2", "kind": "CiliumClusterwideNetworkPolicy", "metadata": {"name": "deny"}}
    board.put("namespace", {"apiVersion": "v1", "kind": "Namespace", "metadata": namespace})
    board.put("deny", head | {"spec": spec})
    board.serve(board.lan, 8082)


def test_a_pod_is_not_taken_for_the_one_that_had_its_name_before(board: Board) -> None:
    """The runtime may be told of it before the agent is, which would start it with the labels of the other."""
    deny_shut_pods(board)

    def arguments(pod: Pod, uid: str) -> dict[str, str]:
        names = f"K8S_POD_NAMESPACE={pod.namespace};K8S_POD_NAME={pod.name}"
        return {"CNI_ARGS": f"IgnoreUnknown=1;{names};K8S_POD_UID={uid}"}

    board.pod_object("default/web-0", {"app": "open"}, uid="u1")
    pod = board.sandbox("default/web-0")
    with pytest.raises(CniFailure, match="Pod default/web-0 is not known on this node yet") as failure:
        board.cni("ADD", pod, **arguments(pod, "u2"))
    assert failure.value.code == 11
    board.pod_object("default/web-0", {"app": "shut"}, uid="u2")
    pod.result = board.cni("ADD", pod, **arguments(pod, "u2"))
    assert board.connect(pod, LAN, 8082, 0.3) == ""
    board.pod_object("default/static", {"app": "open"}, uid="u3", annotations={"kubernetes.io/config.hash": "h1"})
    static = board.sandbox("default/static")
    static.result = board.cni("ADD", static, **arguments(static, "h1"))
    assert board.connect(static, LAN, 8082) == f"hello {NODE}"


def test_a_sandbox_whose_pod_is_gone_keeps_its_labels_and_takes_none_of_the_next_of_that_name(board: Board) -> None:
    """Deleted by force it runs on, while its StatefulSet begins the pod anew, here or elsewhere."""
    deny_shut_pods(board)
    pods = {}
    for name, uid in (("web-0", "u1"), ("web-1", "u2")):
        board.pod_object(f"default/{name}", {"app": "open"}, uid=uid)
        pod = pods[name] = board.sandbox(f"default/{name}")
        words = f"K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_UID={uid}"
        pod.result = board.cni("ADD", pod, CNI_ARGS=words)
        assert board.connect(pod, LAN, 8082) == f"hello {NODE}"
        board.pod_object(f"default/{name}", {"app": "shut"}, uid=uid)
        wait_for("the policy", lambda pod=pod: board.connect(pod, LAN, 8082, 0.1) == "")
    board.pod_object("default/web-0", {"app": "open"}, uid="u3")
    for gone in ("pod-default-web-1", "namespace"):
        (board.folder / f"manifests/{gone}.yaml").unlink()
    board.add("default/last")  # by now the objects are known
    for _ in range(2):
        assert [board.connect(pod, LAN, 8082, 0.3) for pod in pods.values()] == ["", ""]
        board.stop()
        board.start()


def test_a_full_pod_cidr(tmp_path: Path) -> None:
    with Board(tmp_path, 1, pod_cidr="10.244.1.0/29") as board:
        board.load()
        board.start()
        for number in range(4):
            board.add(f"default/p{number}")
        with pytest.raises(CniFailure, match=r"no address is left for the pod 10.244.1.0/29 is full") as failure:
            board.add("default/one-too-many")
        assert failure.value.code == 100
        board.cni("DEL", board.pods["default/p2"])
        assert board.add("default/next").address == "10.244.1.5"


def test_what_an_add_that_was_killed_had_is_given_back(tmp_path: Path) -> None:
    """Before attach, by a runtime that died with it: nobody says DEL, and the namespace stays."""
    with Board(tmp_path, 2, audit_s=0.02) as board:
        board.load()
        board.start()
        board.pod_object("default/one", {})
        pod = board.sandbox("default/one")
        device = device_name(pod.container, "eth0")
        where = {"namespace": pod.namespace, "pod": pod.name, "device": device}
        before = board.ask("reserve", container=pod.container, interface="eth0", **where)
        ip("-n", board.node, "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", pod.netns)
        wait_for("the audits", lambda: device not in ip("-n", board.node, "link"))
        again = board.ask("reserve", container=pod.container, interface="eth0", **where)
        assert again["id"] > before["id"] and not again["attached"]


def test_the_audit_gives_a_device_its_programs_back_and_takes_strangers_down(board: Board) -> None:
    pod = board.add("default/one")
    board.run("tc", "qdisc", "del", "dev", pod.device, "clsact", check=True)
    wait_for("the audit", lambda: "netstack/" in board.run("tc", "filter", "show", "dev", pod.device, "ingress").stdout)
    ip("-n", board.node, "link", "add", "nst0123456789ab", "type", "veth", "peer", "name", "stranger")
    ip("-n", board.node, "link", "set", "nst0123456789ab", "up")
    wait_for("the audit", lambda: "state DOWN" in ip("-n", board.node, "link", "show", "nst0123456789ab"))


def test_a_device_that_was_taken_down_works_again_once_it_has_its_programs(board: Board) -> None:
    pod = board.add("default/one")
    board.serve(board.node, 8080)
    occupied = occupy(board, pod.device)
    wait_for("the closing", lambda: "state DOWN" in ip("-n", board.node, "link", "show", pod.device))
    board.run("tc", "filter", "del", "dev", pod.device, *occupied, check=True)
    wait_for("the audit", lambda: board.connect(pod, NODE, 8080, 0.3) != "")


def occupy(board: Board, device: str) -> list[str]:
    """Somebody else's filter where ours belongs; where that is."""
    place = ["ingress", "pref", "1", "handle", "1", "bpf"]
    pinned = f"{board.folder}/bpf/netstack/progs/pod_egress"
    words = ("filter", "replace", "dev", device, *place, "direct-action", "object-pinned", pinned)
    board.run("tc", *words, check=True)
    return place


def test_another_plugins_configuration_is_moved_aside(board: Board) -> None:
    folder = board.folder / "net.d"
    for name in ("00-other.conflist", "05-netstack.conflist", "99-loopback.conf", "README"):
        (folder / name).write_text("{}")
    aside = {"00-other.conflist.netstack-disabled", "99-loopback.conf.netstack-disabled"}
    wait_for(
        "the audit", lambda: {path.name for path in folder.iterdir()} == aside | {"05-netstack.conflist", "README"}
    )
    assert "00-other.conflist would have pods wired around every policy" in board.log()


CONFLIST = (ROOT / "roles/agent/files/05-netstack.conflist").read_text()
OTHER = """#!/bin/sh -e
# Another plugin: a veth, an address, and nobody asked.
ip link add other0 type veth peer name eth0 netns "${CNI_NETNS##*/}"
ip link set other0 up
ip -n "${CNI_NETNS##*/}" address add 10.0.0.5/32 dev eth0
ip -n "${CNI_NETNS##*/}" link set eth0 up
ip -n "${CNI_NETNS##*/}" route add default dev eth0
ip route add 10.0.0.5/32 dev other0
sysctl -qw net.ipv4.conf.other0.proxy_arp=1
echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.5/32"}]}'
"""


def test_no_other_plugin_wires_a_pod_past_its_policy(tmp_path: Path) -> None:
    """Another's configuration that comes first by name, ours with another's words: both are undone at once, so that the
    runtime wires pods by netstack. One that it wired in that moment is isolated."""
    with Board(tmp_path, audit_s=600, conflist_text=CONFLIST) as board:
        folder, ours = board.folder / "net.d", board.folder / "net.d/05-netstack.conflist"
        ours.write_text(CONFLIST)
        plugin = board.folder / "bin/other"
        plugin.write_text(OTHER)
        plugin.chmod(0o755)
        other = CONFLIST.replace('"type": "netstack"', '"type": "other"')
        assert other != CONFLIST
        board.load()
        metadata = {"name": "shut", "namespace": "default"}
        spec = {"podSelector": {"matchLabels": {"app": "shut"}}, "policyTypes": ["Ingress", "Egress"]}
        kind = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"}
        ip("-n", board.lan, "route", "add", "10.0.0.0/24", "via", NODE)
        board.serve(board.lan, 8080)

        (folder / "00-other.conflist").write_text(other)
        early = board.sandbox("default/early")  # before the agent is there
        early.result = board.runtime_adds(early)
        assert early.address == "10.0.0.5"
        assert board.connect(early, LAN, 8080) == "hello 10.0.0.5"
        board.start()
        assert board.connect(early, LAN, 8080) == "hello 10.0.0.5", "no policy selects it"
        board.put("shut", {**kind, "metadata": metadata, "spec": spec})
        wait_for("the policy", lambda: board.ask("status")["policies"])
        board.pod_object("default/early", {"app": "shut"}, "10.0.0.5")
        wait_for("the isolation", lambda: board.connect(early, LAN, 8080, 0.3) == "")
        (view,) = board.ask("status")["unmanaged"]
        assert (view["pod"], view["isolated"]) == ("default/early", True)

        for number, (path, text) in enumerate(((folder / "00-other.conflist", other), (ours, other))):
            path.write_text(text)
            wait_for("our order", lambda: sorted(folder.glob("*.conflist")) == [ours] and ours.read_text() == CONFLIST)
            name = f"default/late{number}"
            board.pod_object(name, {"app": "shut"})
            late = board.sandbox(name)
            late.result = board.runtime_adds(late)
            assert late.address.startswith("10.244.1.")
            denied = board.counter(Verdict.DEFAULT_DENY)
            assert board.connect(late, LAN, 8080, 0.3) == ""
            assert board.counter(Verdict.DEFAULT_DENY) > denied


def test_the_ingress_endpoint_has_its_own_address_and_its_services_labels(board: Board) -> None:
    metadata = {"name": "ingress-nginx-controller", "namespace": "ingress-nginx"}
    spec = {"selector": {"app": "ingress-nginx"}, "ports": [{"port": 80}]}
    board.put("ingress", {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
    sandbox = board.sandbox("ingress-nginx/netstack-ingress")
    result = board.cni("ADD", sandbox, CNI_CONTAINERID="netstack-ingress")
    assert result["ips"][0]["address"] == "10.244.1.2/32"
    for _ in range(2):
        (peer,) = [p for p in board.ask("identities") if "10.244.1.2" in p["addresses"]]
        assert peer["labels"]["app"] == "ingress-nginx"
        assert peer["labels"]["io.kubernetes.pod.namespace"] == "ingress-nginx"
        board.pod_object("ingress-nginx/netstack-ingress", {"app": "of-a-pod-with-that-name"})
        (board.folder / "manifests/ingress.yaml").unlink(missing_ok=True)
        board.add("default/last")  # by now these are known
    board.cni("DEL", sandbox, CNI_CONTAINERID="netstack-ingress")


def test_what_has_no_programs_is_closed_without_waiting_for_an_audit(tmp_path: Path) -> None:
    """Somebody's filter is where ours belongs: the device goes down, once. A stranger with a pod's name goes down."""
    with Board(tmp_path, audit_s=600) as board:
        board.load()
        board.start()
        pod = board.add("default/one")

        def down(device: str) -> bool:
            return "state DOWN" in ip("-n", board.node, "link", "show", device)

        ip("-n", board.node, "link", "add", "nst0123456789ab", "type", "veth", "peer", "name", "stranger")
        ip("-n", board.node, "link", "set", "nst0123456789ab", "up")
        wait_for("the stranger", lambda: down("nst0123456789ab"))
        occupy(board, pod.device)
        wait_for("the closing", lambda: down(pod.device))
        board.cni("DEL", pod)
        assert board.log().count("has no programs") == 1
        assert "Traceback" not in board.log()
