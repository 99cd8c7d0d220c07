"""The programs of a Kubernetes control plane: found, or built once.

`KUBEBUILDER_ASSETS`, the folder that Kubernetes' own test tools use, is taken if it holds all of them. Otherwise they
are built from the published Go modules that go.mod beside this file pins (k8s.io/kubernetes names its staging modules
by folder, so each is replaced by its published version there), and kept as `<cache>/controlplane-<key>`; the key is a
hash of go.mod, go.sum and the recipe. etcd comes from the same modules, because Debian 12's 3.4 lacks the progress
requests that the API server needs for watch lists and for consistent lists from its cache.

    python -m lab.controlplane      builds them if they are missing, and says where they are
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from lab.image import cache
from lab.shell import run

MODULE = Path(__file__).parent
ETCD, API_SERVER, CONTROLLERS, SCHEDULER = "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"
PACKAGES = {
    ETCD: "go.etcd.io/etcd/server/v3",
    API_SERVER: "k8s.io/kubernetes/cmd/kube-apiserver",
    CONTROLLERS: "k8s.io/kubernetes/cmd/kube-controller-manager",
    SCHEDULER: "k8s.io/kubernetes/cmd/kube-scheduler",
}
OLDEST_GO = (1, 21)  # the first that fetches the newer toolchain that a go.mod asks for
KUBELET = "kubelet"
NODE_PACKAGES = {KUBELET: "k8s.io/kubernetes/cmd/kubelet"}
"""Built apart, by the one lane that needs them."""
VERSION_VARIABLES = "k8s.io/component-base/version"
BUILD_TIMEOUT_S = 3600


class Unavailable(Exception):
    """No control plane can be had on this machine; the text says what is missing."""


def version() -> str:
    """The pinned release of Kubernetes, as "v1.34.4"."""
    found = re.search(r"^\s*k8s\.io/kubernetes (v\S+)", (MODULE / "go.mod").read_text(), re.MULTILINE)
    if found is None:
        raise ValueError("go.mod requires no k8s.io/kubernetes")
    return found[1]


def flags() -> list[str]:
    """Of `go build`: no debug information, and the version that the modules do not know by themselves."""
    major, minor, _ = version().removeprefix("v").split(".")
    facts = {"gitVersion": version(), "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    told = " ".join(f"-X {VERSION_VARIABLES}.{name}={value}" for name, value in facts.items())
    return ["-trimpath", "-buildvcs=false", "-ldflags", f"-s -w {told}"]


def kept(packages: Mapping[str, str] = PACKAGES) -> Path:
    """The folder of the built programs, whether they have been built or not."""
    texts = [(MODULE / "go.mod").read_text(), (MODULE / "go.sum").read_text(), *flags(), *packages.values()]
    return cache() / f"controlplane-{hashlib.sha256(''.join(texts).encode()).hexdigest()[:12]}"


def found() -> bool:
    """Whether nothing needs to be built."""
    return _assets() is not None or kept().exists()


def missing() -> str | None:
    """Why there are no programs here and none can be built; None if there are, or they can."""
    if found():
        return None
    go = shutil.which("go")
    wanted = ".".join(map(str, OLDEST_GO))
    if go is None:
        return (
            f"no Kubernetes control plane: no Go >= {wanted} on PATH to build it, nor KUBEBUILDER_ASSETS with all of it"
        )
    said = run([go, "env", "GOVERSION"], env={**os.environ, "GOTOOLCHAIN": "local"}).stdout.strip()
    number = tuple(int(part) for part in re.findall(r"\d+", said)[:2])
    return None if number >= OLDEST_GO else f"no Kubernetes control plane: {go} is {said}, building needs {wanted}"


def skip_reason() -> str | None:
    """What `missing` says, where tests may go without a control plane. Raises Unavailable where they may not: in CI,
    and with NETSTACK_REQUIRE_CONTROLPLANE set."""
    why_not = missing()
    if why_not is not None and (os.environ.get("CI") or os.environ.get("NETSTACK_REQUIRE_CONTROLPLANE")):
        raise Unavailable(why_not)
    return why_not


def programs() -> Path:
    """The folder with the programs; builds them first if they are missing. Safe to call from several processes.

    Raises Unavailable, and CommandFailed if the build fails.
    """
    assets = _assets()
    if assets is not None:
        return assets
    why_not = missing()
    if why_not is not None:
        raise Unavailable(why_not)
    return _built(PACKAGES)


def kubelet() -> Path:
    """The kubelet, built if it is missing. Raises CommandFailed."""
    return _built(NODE_PACKAGES) / KUBELET


def _built(packages: Mapping[str, str]) -> Path:
    target = kept(packages)
    if target.exists():
        return target
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "controlplane.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():  # or else another process was faster
            _build(target, packages)
    return target


def _assets() -> Path | None:
    folder = os.environ.get("KUBEBUILDER_ASSETS")
    if not folder or not all((Path(folder) / name).exists() for name in PACKAGES):
        return None
    return Path(folder)


def _build(target: Path, packages: Mapping[str, str]) -> None:
    for abandoned in cache().glob("controlplane-*.new"):
        shutil.rmtree(abandoned)
    unfinished = target.with_suffix(".new")
    unfinished.mkdir()
    environment = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"}
    for name, package in packages.items():
        build = ["nice", "-n", "5", "go", "build", "-C", str(MODULE), "-o", str(unfinished / name), *flags(), package]
        run(build, timeout_s=BUILD_TIMEOUT_S, env=environment)
    unfinished.rename(target)
