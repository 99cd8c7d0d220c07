"""The lab: a home LAN with booted nodes, a router, an internet and clients, in namespaces of this machine.

    with Lab("mine") as lab:
        lab.node("n1").run("systemctl status netstack-agent")
        lab.client(1).get("http://ha.home.lab/")
        lab.powercut("n1")

    python -m lab up | status | enter n1 | powercut n1 | ... | down

Who is there, on 192.168.86.0/24:

    .1        rtr         gateway and name server, and behind it the internet (router.py)
    .10       ctl         where ansible's ssh comes from (inventory.py)
    .50 .51   cli1 cli2   LAN clients (host.py)
    .21 ...   n1 ...      nodes: Debian booted by systemd-nspawn (node.py, image.py), PodCIDR 10.244.N.0/24
    .5-.19    nobody      the pool of LoadBalancer addresses

Each is a network namespace `<prefix>-<name>` with a cable to the bridge in `<prefix>-lan` (network.py). The machine's
own namespace, addresses and routes are never touched, so labs of different prefixes run side by side.

A lab is known by its prefix alone. Its processes are in the cgroup `netstack-lab-<prefix>`, its files on the tmpfs
/run/netstack-lab/<prefix>, its namespaces carry its name: whoever takes it down needs nothing from who made it, so a
lab whose owner was killed is removed by the next `up` or `down` of the same prefix. A living owner holds an abstract
socket of its name, and nobody else gets it `up` meanwhile.

By default the lab plays the API server for the directory source: one folder of manifests is mounted into all nodes at
/etc/netstack/manifests (objects.py; `lab.names.manifests` for a test that wants to write a broken one), with the
controllers that derive EndpointSlices and DNS names (endpoints.py). Lab(source="kubernetes") has a real control plane
(controlplane/) at the controller's address instead, behind the same calls (cluster.py); `lab.controlplane` stops, kills
and wipes it. Either way the lab plays kubelet (kubelet.py) and container runtime:

    lab.apply(Path("manifests/web.yaml"))
    pod = lab.web_pod("n1", "shop", "web-1", {"app": "web"})     sandbox, CNI plugin, process, status (pods.py, cni.py)
    lab.pod("n2", "shop", "client").get(f"http://{pod.address}:8080/")

Failures are a call each: powercut, boot, reboot, unplug, plug, freeze, thaw, loss. A capture is a context manager on
any cable, device or pod (capture.py). What a power cut does not do: undo writes to the disk that were never synced.
"""

from .lab import InUse, Lab
from .shell import CommandFailed, TimedOut

__all__ = ["CommandFailed", "InUse", "Lab", "TimedOut"]
