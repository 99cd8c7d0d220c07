from __future__ import annotations

from netstack.kernel.probe import FEATURES, missing

COMPLETE = {feature.name: True for feature in FEATURES}


def test_a_kernel_that_has_everything_lacks_nothing() -> None:
    assert missing(COMPLETE) == []


def test_each_lack_is_named_with_why_and_remedy() -> None:
    for feature in FEATURES:
        (lack,) = missing(COMPLETE | {feature.name: False})
        assert lack.lacking == f"this kernel lacks {feature.name} ({feature.why}): {feature.remedy}"


def test_lacks_come_in_the_order_of_the_list() -> None:
    lacks = missing(COMPLETE | {"bpffs": False, "map hash": False})
    assert [lack.name for lack in lacks] == ["map hash", "bpffs"]


def test_without_bpf_nothing_else_is_said() -> None:
    (lack,) = missing(dict.fromkeys(COMPLETE, False))
    assert lack.name == "bpf"
    assert "CAP_BPF" in lack.lacking


def test_a_missing_bpffs_says_how_to_mount_it() -> None:
    assert "mount -t bpf bpf /sys/fs/bpf" in missing(COMPLETE | {"bpffs": False})[0].lacking
