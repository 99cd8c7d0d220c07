"""A real kubelet with containerd in a lab node, where its probes and its CRI matter; kubelet.py leaves such a node be.

What was found to matter, in a node that is itself a container on a machine with cgroup v1 controllers:
- the node's disk is an overlay, which cannot be the upper layer of another: containerd's folder is a tmpfs.
- of the cgroup controllers a kubelet wants, memory and pids are all that there is: no QoS cgroups, and runc is told
  of no resources. A negative oom_score_adj would need CAP_SYS_RESOURCE on the machine.
- it opens /dev/kmsg for OOM events, and sets three kernel parameters that belong to the machine: they are files here.
- there is no registry: one image, of busybox, serves as the pods' and as the pause container's.
- containerd asks for a CNI plugin `loopback` besides the one that is configured.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path

import yaml

from .controlplane import binaries
from .image import cache
from .lab import Lab
from .node import Node
from .shell import run, wait_until

IMAGE = "docker.io/library/lab:1"
BUSYBOX = Path("/bin/busybox")
APPLETS = ("cat", "httpd", "ip", "ls", "mkdir", "rm", "sh", "sleep", "touch", "wget")
PACKAGES = ("containerd", "runc")
PATIENCE_S = 90.0
KERNEL = {"vm/overcommit_memory": "1", "kernel/panic": "10", "kernel/panic_on_oops": "1"}

RUNC = """#!/bin/sh
case " $* " in *" create "*)
    bundle=$(echo "$*" | sed 's/.*--bundle \\([^ ]*\\).*/\\1/')
    jq 'del(.linux.resources) | del(.process.oomScoreAdj)' "$bundle/config.json" > "$bundle/less"
    mv "$bundle/less" "$bundle/config.json" ;;
esac
exec /usr/sbin/runc "$@"
"""
LOOPBACK = """#!/bin/sh
cat > /dev/null
[ "$CNI_COMMAND" != ADD ] || nsenter --net="$CNI_NETNS" ip link set lo up
echo '{"cniVersion": "1.0.0", "interfaces": [], "ips": []}'
"""
CONTAINERD = f"""version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{IMAGE}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
"""
KUBELET = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
    "cgroupDriver": "systemd",
    "cgroupsPerQOS": False,
    "enforceNodeAllocatable": [],
    "localStorageCapacityIsolation": False,
    "failSwapOn": False,
    "failCgroupV1": False,
    "makeIPTablesUtilChains": False,
    "featureGates": {"KubeletInUserNamespace": True},
    "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
    "authorization": {"mode": "AlwaysAllow"},
}


def start(lab: Lab, node: Node) -> None:
    """Give a booted node its container runtime and kubelet, for as long as it is booted. Returns when the API server
    has heard of it."""
    node.own_kubelet.touch()
    for deb in packages():
        run(["sh", "-c", f"dpkg --fsys-tarfile {deb} | tar -x --keep-directory-symlink -C {node.root}"])
    shutil.copy(binaries.kubelet(), node.root / "usr/local/bin/kubelet")
    kubeconfig = lab.controlplane.kubeconfig(f"system:node:{node.name}", ["system:masters"], inline=True)
    for path, text in {
        "etc/containerd/config.toml": CONTAINERD,
        "etc/kubelet.yaml": yaml.safe_dump(KUBELET),
        "etc/kubelet.kubeconfig": kubeconfig.read_text(),
        "usr/local/sbin/runc": RUNC,
        "opt/cni/bin/loopback": LOOPBACK,
    }.items():
        target = node.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(0o755)
    (node.root / "root/image.tar").write_bytes(image())
    node.run("mkdir -p /var/lib/containerd; mount -t tmpfs containerd /var/lib/containerd; ln -sf /dev/null /dev/kmsg")
    for name, value in KERNEL.items():
        file = f"/run/{Path(name).name}"
        node.run(f"echo {value} > {file}; mount --bind {file} /proc/sys/{name}")
    node.run("systemctl daemon-reload; systemctl start containerd")
    wait_until(lambda: node.run("ctr version", check=False).returncode == 0, "containerd to answer", PATIENCE_S)
    node.run("ctr -n k8s.io images import /root/image.tar")
    command = f"kubelet --kubeconfig=/etc/kubelet.kubeconfig --config=/etc/kubelet.yaml --hostname-override={node.name}"
    node.run(["systemd-run", "--quiet", "--unit=kubelet", *command.split(), f"--node-ip={node.address}"])

    def heard() -> bool:
        found = lab.api.get("Node", "", node.name) or {"status": {}}
        return any(one.get("reason") == "KubeletReady" for one in found["status"].get("conditions", ()))

    wait_until(heard, f"the kubelet of {node.name} to be ready", PATIENCE_S)


def packages() -> list[Path]:
    """Debian's containerd and runc, fetched once."""
    folder = cache() / "containers"
    if not folder.exists():
        unfinished = folder.with_suffix(".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        run(["env", "-C", str(unfinished), "apt-get", "download", "-qq", *PACKAGES], timeout_s=300)
        unfinished.rename(folder)
    return sorted(folder.glob("*.deb"))


def image() -> bytes:
    """An archive of an image (OCI image layout 1.0) with busybox and nothing else."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(BUSYBOX, arcname="bin/busybox", recursive=False)
        for name in APPLETS:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    blobs: dict[str, bytes] = {}

    def blob(media: str, data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"mediaType": f"application/vnd.oci.image.{media}", "digest": f"sha256:{digest}", "size": len(data)}

    rootfs = {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"]}
    facts = {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/sleep", "2147483647"]}, "rootfs": rootfs}
    config = blob("config.v1+json", json.dumps(facts).encode())
    layers = [blob("layer.v1.tar", layer.getvalue())]
    manifest = blob("manifest.v1+json", json.dumps({"schemaVersion": 2, "config": config, "layers": layers}).encode())
    manifest["annotations"] = {"io.containerd.image.name": IMAGE}
    blobs["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [manifest]}).encode()
    blobs["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, data in blobs.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return archive.getvalue()
