"""The loader on a node of its own: what it leaves in the kernel, what it refuses, and that it can be run again."""

from __future__ import annotations

import importlib.metadata
import itertools
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bpf.home import Home, home
from bpf.namespaces import Namespace
from bpf.packet import ROOT
from instruments.board import wait_for
from netstack.core.address import pack
from netstack.core.errors import BadConfig
from netstack.kernel import layout as l
from netstack.kernel import loader, programs
from netstack.kernel.attach import POD, UPLINK, Occupied, TrafficControl, attach_pinned, guarded, pinned_ids
from netstack.kernel.bpf import BpfError, Map, MapDefinition, Program, attach_cgroup
from netstack.kernel.loader import LoaderError, LoaderSettings, detach, load_settings
from netstack.kernel.netlink import ACK, Netlink
from netstack.kernel.programs import CGROUP, PROGRAMS, Compiled, CompiledProgram

pytestmark = pytest.mark.root
SOCKETS = [spec.name for spec in PROGRAMS.values() if spec.hook == CGROUP]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Home]:
    namespace = Namespace()
    try:
        namespace.link("eth0", "lan")
        namespace.link("pod", "inside")
        with home(tmp_path, namespace) as made:
            yield made
    finally:
        namespace.close()


def release(node: Home, folder: Path, change: Callable[[Compiled], None]) -> None:
    """Let the node run another release: its sources differ, and what they compile to is ours with `change`."""
    compiled = loader.compiled_set(node.settings)
    change(compiled)
    sources, cache = folder / "sources", folder / "cache"
    shutil.copytree(ROOT / "files" / "bpf", sources)
    with (sources / "sock.c").open("a") as file:
        file.write("/* another release */\n")
    cache.mkdir()
    key = programs.key(sources, platform.release(), importlib.metadata.version("bcc"))
    (cache / f"{key}.json").write_text(compiled.to_json())
    node.settings = replace(node.settings, bpf_source=str(sources), cache=str(cache))


def prefixed(compiled: Compiled, name: str, instruction: bytes) -> None:
    """One more instruction at the start of a program; jumps are relative."""
    program = compiled.programs[name]
    compiled.programs[name] = replace(program, instructions=instruction + program.instructions)


NOTHING = bytes.fromhex("b700000000000000")  # r0 = 0
PASS = bytes.fromhex("b700000001000000")  # r0 = 1
END = bytes.fromhex("9500000000000000")
READ_ZERO = bytes.fromhex("7900000000000000")  # r0 = *r0, which holds nothing


# a first start


def test_it_pins_attaches_and_is_in_force(node: Home) -> None:
    assert set(node.load()) == {*SOCKETS, "uplink_ingress", "uplink_egress"}
    assert {path.name for path in (node.pins / "maps").iterdir()} == set(l.MAPS)
    pinned = node.pinned()
    assert set(pinned) == set(PROGRAMS)
    assert node.in_cgroup() == [pinned[name] for name in SOCKETS]
    assert {(f.name, f.id) for f in node.filters()} == {
        (f"netstack/{name}", pinned[name]) for name in ("uplink_ingress", "uplink_egress")
    }


def test_maps_have_the_sizes_of_the_settings(node: Home) -> None:
    node.load()
    with node.map("slots") as slots, node.map("nat_pods") as pods:
        assert (slots.definition.entries, pods.definition.entries) == (4096, l.MAPS["nat_pods"].entries)


def test_a_second_start_touches_nothing(node: Home) -> None:
    node.load()
    before = (node.pinned(), node.in_cgroup(), node.filters())
    node.put("node_alive", l.AddressKey(pack("192.168.86.21")), l.Instant(7))
    assert node.load() == []
    assert (node.pinned(), node.in_cgroup(), node.filters()) == before
    with node.map("node_alive") as alive:
        assert len(dict(alive.items())) == 1


def test_a_changed_program_takes_over_in_place(node: Home, tmp_path: Path) -> None:
    node.load()
    with node.namespace.entered(), TrafficControl() as traffic:
        device = traffic.link("pod")
        assert device is not None
        attach_pinned(traffic, node.pins, device.index)
    before = node.pinned()
    release(node, tmp_path, lambda compiled: prefixed(compiled, "pod_egress", NOTHING))
    assert node.load() == ["pod_egress"]
    after = node.pinned()
    assert {name for name in after if after[name] != before[name]} == {"pod_egress"}
    assert {f.id for f in node.filters("pod")} == {after["pod_ingress"], after["pod_egress"]}
    assert [f.handle for f in node.filters("pod")] == [1, 1]


def test_another_uplink_takes_over(node: Home) -> None:
    node.load()
    node.namespace.link("eth1", "other")
    node.settings = replace(node.settings, uplink="eth1")
    assert set(node.load()) == {"uplink_ingress", "uplink_egress"}
    assert {f.name for f in node.filters("eth1")} == {"netstack/uplink_ingress", "netstack/uplink_egress"}
    assert node.filters("eth0") == []
    assert node.load() == []


def test_a_foreign_program_of_the_cgroup_stays(node: Home) -> None:
    spec = PROGRAMS["connect4"]
    allow = bytes.fromhex("b7000000010000009500000000000000")
    foreign = Program.load("foreign", spec.kind, allow, attach_type=spec.attach_type)
    descriptor = os.open(node.settings.cgroup, os.O_RDONLY | os.O_DIRECTORY)
    with foreign:
        attach_cgroup(descriptor, foreign, spec.attach_type)
        node.load()
        assert foreign.id in node.in_cgroup()
        with node.namespace.entered():
            detach(node.settings)
        assert node.in_cgroup() == [foreign.id]
    os.close(descriptor)


def test_an_interrupted_replacement_is_finished(node: Home) -> None:
    """Stopped between attach and rename: what runs has only its second pin."""
    node.load()
    progs = node.pins / "progs"
    (progs / "connect4").rename(progs / "connect4~")
    with Program.open(progs / "connect6") as other:
        other.pin(progs / "connect6~")  # and one that was never needed
    before = node.in_cgroup()
    assert node.load() == []
    assert node.in_cgroup() == before
    assert set(node.pinned()) == set(PROGRAMS)


# what it refuses, and that what was in force stays


def test_a_map_of_another_definition_is_named_with_both(node: Home) -> None:
    (node.pins / "maps").mkdir(parents=True)
    with Map.create("vips", MapDefinition(l.HASH, 20, 16, 64)) as other:
        other.pin(node.pins / "maps" / "vips")
    with pytest.raises(LoaderError) as refusal:
        node.load()
    assert str(refusal.value) == (
        "map vips is pinned as (type 1, key 20 bytes, value 16 bytes, 64 entries, flags 0x0) but this release needs "
        "(type 1, key 20 bytes, value 24 bytes, 1024 entries, flags 0x0); nothing was changed: restart the node, or "
        "drain it and run /opt/netstack/current/bin/netstack-loader --detach first"
    )
    assert {path.name for path in (node.pins / "maps").iterdir()} == {"vips"}
    assert node.in_cgroup() == [] and node.filters() == []


def test_sources_that_do_not_compile_change_nothing(node: Home, tmp_path: Path) -> None:
    node.load()
    before = (node.pinned(), node.in_cgroup(), node.filters())
    release(node, tmp_path, lambda compiled: None)
    (tmp_path / "sources" / "lib" / "nat.h").write_text("#pragma once\nint broken = ;\n")
    with pytest.raises(LoaderError, match=r"the programs do not compile(.|\n)*expected expression"):
        node.load()
    assert (node.pinned(), node.in_cgroup(), node.filters()) == before


def test_a_program_that_the_verifier_refuses_changes_nothing(node: Home, tmp_path: Path) -> None:
    node.load()
    before = (node.pinned(), node.in_cgroup(), node.filters())
    release(node, tmp_path, lambda compiled: prefixed(compiled, "pod_egress", READ_ZERO))
    with pytest.raises(BpfError, match=r"load program pod_egress: Permission denied(.|\n)*R0 !read_ok"):
        node.load()
    assert (node.pinned(), node.in_cgroup(), node.filters()) == before


def test_sources_that_disagree_with_the_layout_are_refused(node: Home, tmp_path: Path) -> None:
    def widen(compiled: Compiled) -> None:
        compiled.maps["vips"] = replace(compiled.maps["vips"], value_size=32)

    release(node, tmp_path, widen)
    with pytest.raises(LoaderError, match=r"map vips is declared as .* value 32 bytes.* as .* value 24 bytes"):
        node.load()
    assert not node.pins.exists()


def test_an_uplink_that_is_not_there(node: Home) -> None:
    node.settings = replace(node.settings, uplink="eth9")
    with pytest.raises(LoaderError, match="uplink: there is no device 'eth9'"):
        node.load()
    assert node.in_cgroup() == []


def test_somebody_elses_filter_in_our_place_is_named_and_left(node: Home) -> None:
    node.namespace.ip("link", "set", "eth0", "up")
    node.load()
    with node.namespace.entered(), Program.open(node.pins / "progs" / "uplink_ingress") as program:
        program.pin(node.pins / "progs" / "cil")
        detach(node.settings)
    subprocess.run(["mkdir", "-p", str(node.pins)], check=True)
    with Program.load("cil_from_netdev", 3, bytes.fromhex("b7000000000000009500000000000000")) as foreign:
        foreign.pin(node.pins / "foreign")
        node.namespace.run("tc", "qdisc", "add", "dev", "eth0", "clsact")
        node.namespace.run(
            *f"tc filter add dev eth0 ingress pref 1 handle 1 bpf da object-pinned {node.pins}/foreign".split()
        )
        with pytest.raises(Occupied, match=r"eth0: ingress carries the filter 'foreign.*at preference 1.*not ours"):
            node.load()
        assert [f.id for f in node.filters()] == [foreign.id]


def test_a_folder_that_is_no_bpffs(node: Home, tmp_path: Path) -> None:
    node.settings = replace(node.settings, pins=str(tmp_path / "pins"))
    with pytest.raises(LoaderError, match=r"lacks bpffs.*mount -t bpf"):
        node.load()


# pods


def test_a_pod_is_guarded_when_it_carries_both_pinned_programs(node: Home) -> None:
    with node.namespace.entered(), TrafficControl() as traffic:
        device = traffic.link("pod")
        assert device is not None
        with pytest.raises(BpfError, match="pod_ingress: No such file"):
            attach_pinned(traffic, node.pins, device.index)
        assert not guarded(traffic, pinned_ids(node.pins), device.index)
        node.load()
        assert not guarded(traffic, pinned_ids(node.pins), device.index)
        attach_pinned(traffic, node.pins, device.index)
        assert guarded(traffic, pinned_ids(node.pins), device.index)
        node.namespace.run("tc", "filter", "del", "dev", "pod", "egress", "pref", "1")
        assert not guarded(traffic, pinned_ids(node.pins), device.index)


def test_a_pod_that_lost_its_programs_gets_them_back(node: Home) -> None:
    node.load()
    with node.namespace.entered(), TrafficControl() as traffic:
        device = traffic.link("pod")
        assert device is not None
    endpoint = l.Endpoint(5, device.index, 1000, 0)
    node.put("endpoints", l.AddressKey(pack("10.244.1.3")), endpoint)
    assert node.load() == ["pod_ingress", "pod_egress"]


# the end


def test_detach_leaves_nothing_of_us_or_of_pods(node: Home) -> None:
    """Not of one either whose programs are lost, but that `endpoints` names."""
    node.namespace.link("pod2", "inside2")
    node.namespace.link("other", "elsewhere")
    node.load()
    with node.namespace.entered(), TrafficControl() as traffic:
        pod, lost = traffic.link("pod"), traffic.link("pod2")
        assert pod is not None and lost is not None
        attach_pinned(traffic, node.pins, pod.index)
        node.put("endpoints", l.AddressKey(pack("10.244.1.3")), l.Endpoint(5, lost.index, 1000, 0))
        detach(node.settings)
        assert {link.name for link in traffic.links() if link.up} == {"lo", "eth0", "lan", "other", "elsewhere"}
    nothing_is_left(node)
    assert node.load()


def nothing_is_left(node: Home) -> None:
    assert not node.pins.exists()
    assert node.in_cgroup() == []
    assert "clsact" not in node.namespace.run("tc", "qdisc", "show").stdout


def test_detach_of_nothing_is_nothing(node: Home) -> None:
    with node.namespace.entered():
        detach(node.settings)
    assert not node.pins.exists() and node.filters() == []


# killed at any point: between any two changes that it makes


DIFFERING = ("connect4", *UPLINK, *POD)
OF_HOOKS = ((loader, "attach_cgroup"), (loader, "detach_cgroup"), (Netlink, "_ask"))
CHANGES = (
    *OF_HOOKS,
    (Program, "pin"),
    (Map, "pin"),
    (Path, "rename"),
    (Path, "unlink"),
    (Path, "rmdir"),
)


def killed_before(
    number: int, node: Home, act: Callable[[LoaderSettings], object], changes: Iterable[tuple[Any, str]] = CHANGES
) -> bool:
    """A process that is killed before its change of this number, from 1; False if it makes fewer and ends well."""
    child = os.fork()
    if not child:
        left = itertools.count(number - 1, -1)

        def counted(owner: Any, name: str) -> Callable[..., object]:
            change = getattr(owner, name)

            def instead(*words: Any, **more: Any) -> object:
                asks = owner is Netlink and not words[2] & ACK
                if not asks and not next(left):
                    os.kill(os.getpid(), signal.SIGKILL)
                return change(*words, **more)

            return instead

        for owner, name in changes:
            setattr(owner, name, counted(owner, name))
        try:
            with node.namespace.entered():
                act(node.settings)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status != 0


@pytest.fixture
def releases(node: Home, tmp_path: Path) -> list[LoaderSettings]:
    """Two, that differ in a program for each kind of hook. The programs let everything pass: they are quick to load."""
    made = []
    for number in range(2):

        def shorten(compiled: Compiled, number: int = number) -> None:
            for name, spec in PROGRAMS.items():
                passing = PASS if spec.hook == CGROUP else NOTHING
                compiled.programs[name] = CompiledProgram(passing * (1 + number * (name in DIFFERING)) + END, ())

        release(node, tmp_path / str(number), shorten)
        made.append(node.settings)
    return made


def in_force(node: Home) -> None:
    """All of one set: every hook has its program, once, and each program its pin, once."""
    pinned = node.pinned()
    assert set(pinned) == set(PROGRAMS)
    assert node.in_cgroup() == [pinned[name] for name in SOCKETS]
    assert {f.id for f in node.filters()} == {pinned[name] for name in ("uplink_ingress", "uplink_egress")}


def with_a_pod(node: Home) -> None:
    """Loaded, and the device `pod` there and guarded."""
    node.load()
    with node.namespace.entered(), TrafficControl() as traffic:
        pod = traffic.link("pod")
        if pod is None:
            node.namespace.link("pod", "inside")
            pod = traffic.link("pod")
        assert pod is not None
        attach_pinned(traffic, node.pins, pod.index)


def test_a_first_load_that_was_killed_is_finished_by_the_next(node: Home, releases: list[LoaderSettings]) -> None:
    node.settings = releases[0]
    for number in itertools.count(1, 5):
        killed = killed_before(number, node, loader.load)
        node.load()
        in_force(node)
        with node.namespace.entered():
            detach(node.settings)
        if not killed:
            break
    assert number > len(l.MAPS) + 2 * len(PROGRAMS)


def test_two_at_once_are_one_after_the_other(node: Home, releases: list[LoaderSettings]) -> None:
    """Else each makes maps, and programs of one run with maps of which nobody knows but it."""
    node.settings = releases[0]
    ready, go = os.pipe(), os.pipe()

    def started(first: bool) -> int:
        child = os.fork()
        if child:
            return child
        pin = Map.pin

        def halted(made: Map, path: Path) -> None:
            os.write(ready[1], b"!")
            os.read(go[0], 1)
            Map.pin = pin  # type: ignore[method-assign]
            pin(made, path)

        if first:
            Map.pin = halted  # type: ignore[method-assign]
        try:
            node.load()
            os._exit(0)
        finally:
            os._exit(1)

    first = started(True)
    os.read(ready[0], 1)
    second = started(False)

    def waits() -> bool:
        return any(f"-> FLOCK  ADVISORY  WRITE {second} " in line for line in Path("/proc/locks").open())

    def ended() -> bool:
        return os.waitid(os.P_PID, second, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    wait_for("the second", lambda: waits() or ended())
    os.write(go[1], b"!")
    assert [os.waitpid(child, 0)[1] for child in (first, second)] == [0, 0]
    in_force(node)


def test_a_swap_that_was_killed_leaves_no_gap_and_is_finished_by_the_next(
    node: Home, releases: list[LoaderSettings]
) -> None:
    """At every hook there is always one program of ours, and never two; whatever runs in the cgroup has a pin."""
    node.settings = releases[0]
    with_a_pod(node)
    for number, node.settings in enumerate(itertools.cycle(reversed(releases)), 1):
        killed = killed_before(number, node, loader.load)
        for device, names in (("eth0", UPLINK), ("pod", POD)):
            assert sorted(f.name for f in node.filters(device)) == sorted(f"netstack/{name}" for name in names)
        assert len(node.in_cgroup()) == len(SOCKETS) and set(node.in_cgroup()) <= set(node.pinned().values())
        node.load()
        in_force(node)
        assert {f.id for f in node.filters("pod")} == {node.pinned()[name] for name in POD}
        if not killed:
            break
    assert number > 3 * len(DIFFERING)


def test_a_swap_that_was_killed_can_be_taken_away(node: Home, releases: list[LoaderSettings]) -> None:
    """At each hook of the cgroup too, where for a moment what runs has its second pin alone."""
    for number in itertools.count(1, 2):
        node.settings = releases[0]
        node.load()
        node.settings = releases[1]
        killed = killed_before(number, node, loader.load)
        with node.namespace.entered():
            detach(node.settings)
        nothing_is_left(node)
        if not killed:
            break
    assert number > 2 * len(DIFFERING)


def test_a_detach_that_was_killed_is_finished_by_the_next(node: Home, releases: list[LoaderSettings]) -> None:
    """As long as there is a pod, nothing is missing anywhere."""
    node.settings = releases[0]
    for number in itertools.count(1, 3):
        with_a_pod(node)
        killed = killed_before(number, node, detach)
        with node.namespace.entered(), TrafficControl() as traffic:
            if traffic.link("pod") is not None:
                assert len(node.filters("pod")) == len(POD) and len(node.filters("eth0")) == len(UPLINK)
            detach(node.settings)
        nothing_is_left(node)
        if not killed:
            break
    assert number > len(l.MAPS) + len(PROGRAMS)


# the cache and the command


def test_a_cache_hit_needs_no_compiler(node: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    loader.compiled_set(node.settings)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "run", refuse)
    assert set(loader.compiled_set(node.settings).programs) == set(PROGRAMS)
    with node.namespace.entered():
        loader.load(node.settings)
    assert "bcc" not in sys.modules


def test_a_damaged_cache_file_is_made_anew(node: Home, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    node.settings = replace(node.settings, cache=str(tmp_path / "cache"))
    loader.compiled_set(node.settings)
    (file,) = (tmp_path / "cache").iterdir()
    file.write_text(file.read_text()[:1000])
    caplog.set_level(logging.INFO)
    loader.compiled_set(node.settings)
    assert "compiling" in caplog.text
    assert set(Compiled.from_json(file.read_text()).programs) == set(PROGRAMS)


def test_a_new_set_takes_the_place_of_those_that_were_used_longest_ago(node: Home, tmp_path: Path) -> None:
    current = node.settings
    release(node, tmp_path, lambda _: None)
    cache = Path(node.settings.cache)
    (used,) = cache.iterdir()
    others = [cache / f"{number:032x}.json" for number in range(loader.KEPT)]
    for age, file in enumerate([*others, used]):
        file.touch()
        os.utime(file, (10_000_000 - age,) * 2)
    loader.compiled_set(node.settings)
    not_ours = cache / "notes.json"
    not_ours.touch()
    loader.compiled_set(replace(current, cache=str(cache)))
    left = set(cache.iterdir())
    assert len(left) == loader.KEPT + 1
    assert left > {used, not_ours, *others[:-2]} and not left & set(others[-2:])


def command(node: Home, config: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """netstack-loader as a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "daemons" / "src")}
    words = ["nsenter", f"--net={node.namespace.path}", sys.executable, "-m", "netstack.kernel.loader"]
    return subprocess.run(
        [*words, "--config", str(config), *more], env=environment, capture_output=True, text=True, check=False
    )


def write_config(node: Home, path: Path) -> Path:
    s = node.settings
    sizes = "\n".join(f"    {name}: {entries}" for name, entries in s.sizes.items())
    path.write_text(
        f"node: n1\ndatapath:\n  uplink: {s.uplink}\n  bpf_source: {s.bpf_source}\n  pins: {s.pins}\n"
        f"  cache: {s.cache}\n  cgroup: {s.cgroup}\n  sizes:\n{sizes}\n"
    )
    return path


def test_the_command(node: Home, tmp_path: Path) -> None:
    config = write_config(node, tmp_path / "agent.yaml")
    first = command(node, config)
    assert first.returncode == 0 and "in force; new or changed: connect4" in first.stderr
    again = command(node, config)
    assert again.returncode == 0 and "new or changed: none" in again.stderr
    gone = command(node, config, "--detach")
    assert (gone.returncode, gone.stderr) == (0, "")
    assert not node.pins.exists()


def test_the_command_says_what_is_wrong(node: Home, tmp_path: Path) -> None:
    config = tmp_path / "agent.yaml"
    config.write_text("datapath:\n  uplinks: [eth0]\n")
    refused = command(node, config)
    assert refused.returncode == 1
    assert refused.stderr.startswith("datapath.uplinks: unknown field")


def test_three_capabilities_are_enough(node: Home, tmp_path: Path) -> None:
    """CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON: nothing of what the loader does needs more."""
    config = write_config(node, tmp_path / "agent.yaml")
    three = "+net_admin,+cap_38,+cap_39"  # setpriv of Debian 12 knows the last two, PERFMON and BPF, by number only
    drop = ["setpriv", f"--bounding-set=-all,{three}", "--inh-caps=-all"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "daemons" / "src")}
    words = [sys.executable, "-m", "netstack.kernel.loader", "--config", str(config)]
    for _ in range(2):
        result = subprocess.run(
            ["nsenter", f"--net={node.namespace.path}", *drop, *words], env=environment, capture_output=True, text=True
        )
        assert (result.returncode, result.stderr.startswith("in force")) == (0, True), result.stderr


# settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("datapath: [eth0]", "datapath: must be a mapping"),
        ("datapath:\n  sizes:\n    slot: 4", "datapath: sizes: there is no map 'slot'; there are backends"),
        ("datapath:\n  sizes:\n    slots: 0", "datapath: sizes: slots must have 1 to"),
        ("- a", "must be a mapping"),
        ("a: [", "is not YAML"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(text)
    with pytest.raises(BadConfig) as refusal:
        load_settings(path)
    assert message in str(refusal.value)


def test_the_agents_other_settings_are_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text("anything: 1\n")
    assert load_settings(path) == LoaderSettings()
    assert LoaderSettings().sources == Path(sys.prefix) / "share" / "netstack" / "bpf"
