#!/usr/bin/python
# Copyright (c) 2026, The netstack developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: kernel_facts
short_description: What a node's kernel offers to netstack, and what is missing
version_added: 0.1.0
description:
  - Tries what netstack needs of a kernel (map types, program types and helpers of C(bpf(2\)), the clsact hook,
    cgroup v2, transparent sockets) and reads what can only be read (configuration, BTF, headers).
  - Nothing is left behind; a run takes some ten milliseconds.
  - Knows Armbian and the vendor kernel of Rockchip boards.
author:
  - The netstack developers (@kubelab)
extends_documentation_fragment:
  - kubelab.netstack.attributes
  - kubelab.netstack.attributes.facts
  - kubelab.netstack.attributes.info_module
options:
  modules:
    description:
      - Names of kernel modules whose state is wanted.
    type: list
    elements: str
    default: []
  sysctls:
    description:
      - Names of sysctl keys whose value is wanted.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Look at the kernel
  kubelab.netstack.kernel_facts:
    modules:
      - sch_ingress
    sysctls:
      - net.ipv4.ip_forward
  become: true

- name: Say what is missing
  ansible.builtin.debug:
    var: ansible_facts.netstack_kernel.missing
"""

RETURN = r"""
ansible_facts:
  description: The facts.
  returned: always
  type: dict
  contains:
    netstack_kernel:
      description: What the kernel offers.
      returned: always
      type: dict
      contains:
        release:
          description: The kernel's release.
          returned: always
          type: str
          sample: 6.1.115-vendor-rk35xx
        arch:
          description: The machine, as C(uname -m) says it.
          returned: always
          type: str
          sample: aarch64
        config_source:
          description: The file that the configuration was read from, or null.
          returned: always
          type: str
        config:
          description: The options that matter, as V(y), V(m) or V(n). Empty when the kernel hides its configuration.
          returned: always
          type: dict
        bpf:
          description:
            - Whether C(bpf(2\)) may be used (C(allowed)), and which map types, program types and helpers are there.
          returned: always
          type: dict
        btf:
          description: Whether the kernel carries its own type information.
          returned: always
          type: bool
        cgroup2:
          description: Where cgroup v2 is mounted, or null.
          returned: always
          type: str
        bpffs:
          description: Whether a bpf file system is mounted at C(/sys/fs/bpf).
          returned: always
          type: bool
        jit:
          description: Whether programs are compiled to machine code; true where this cannot be seen.
          returned: always
          type: bool
        clsact:
          description:
            - Whether a bpf filter on a clsact queueing discipline was accepted, in a network namespace made for it.
          returned: always
          type: bool
        transparent_sockets:
          description: Whether a socket may be made transparent.
          returned: always
          type: bool
        headers:
          description:
            - The kernel headers that bcc would find (C(path), or null).
            - Complete headers of another release (C(fallback) and C(fallback_source), or null).
            - The packages that would bring some, the best first (C(packages)).
            - The package by which an upgrade of the kernel brings new ones (C(following), or null).
          returned: always
          type: dict
        commands:
          description: Which commands of the system that netstack uses are installed.
          returned: always
          type: dict
        bcc:
          description: Whether bcc's Python package is installed for the system's Python.
          returned: always
          type: bool
        armbian:
          description: Board, branch, family, version and extra boot arguments of an Armbian system; null elsewhere.
          returned: always
          type: dict
        modules:
          description: State of each module asked for, as V(loaded), V(builtin), V(available) or V(absent).
          returned: always
          type: dict
        sysctls:
          description: Value (null when there is no such key) and writability of each sysctl asked for.
          returned: always
          type: dict
        missing:
          description: What netstack needs and the node lacks.
          returned: always
          type: list
          elements: dict
          contains:
            feature:
              description: What is missing.
              type: str
            reason:
              description: How that was seen.
              type: str
            remedy:
              description: What mends it.
              type: str
            package:
              description: The package that mends it, or null.
              type: str
"""

import os
import platform
import socket

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kubelab.netstack.plugins.module_utils import _bpf, _kernel

BCC = ("/usr/lib/python3/dist-packages/bcc/__init__.py", "/usr/local/lib/python3/dist-packages/bcc/__init__.py")
COMMANDS = ("tc", "ip", "modprobe", "sysctl")
# The filter is one classic instruction, "ret 0": no eBPF is needed to learn whether cls_bpf is there.
TRY_CLSACT = 'tc qdisc add dev lo clsact && tc filter add dev lo ingress bpf bytecode "1,6 0 0 0"'


def accepts_clsact(module: AnsibleModule) -> bool:
    """In a network namespace of its own, which the kernel forgets with the command."""
    code, out, err = module.run_command(["unshare", "--net", "sh", "-c", TRY_CLSACT])
    return code == 0


def accepts_transparent_sockets() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.setsockopt(socket.IPPROTO_IP, socket.IP_TRANSPARENT, 1)
        except OSError:
            return False
    return True


def look(module: AnsibleModule) -> _kernel.Kernel:
    release, arch = os.uname().release, platform.machine()
    armbian = _kernel.read_armbian("")
    mounts = _kernel.read_mounts("")
    config_source, config = _kernel.read_config("", release)
    commands = {name: module.get_bin_path(name) is not None for name in COMMANDS}
    jit = _kernel.read_sysctls("", ["net.core.bpf_jit_enable"])["net.core.bpf_jit_enable"]["value"]
    return _kernel.Kernel(
        release=release,
        arch=arch,
        bpf=_bpf.probe(),
        config_source=config_source,
        config=config,
        btf=os.path.exists("/sys/kernel/btf/vmlinux"),
        cgroup2=next((point for point, kind in mounts if kind == "cgroup2"), None),
        bpffs=("/sys/fs/bpf", "bpf") in mounts,
        jit=jit != "0",
        clsact=commands["tc"] and accepts_clsact(module),
        transparent_sockets=accepts_transparent_sockets(),
        headers=_kernel.read_headers("", release, arch, armbian),
        commands=commands,
        bcc=any(os.path.exists(path) for path in BCC),
        armbian=armbian,
        modules=_kernel.read_modules("", release, module.params["modules"]),
        sysctls=_kernel.read_sysctls("", module.params["sysctls"]),
    )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "modules": {"type": "list", "elements": "str", "default": []},
            "sysctls": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    module.exit_json(changed=False, ansible_facts={"netstack_kernel": look(module).facts()})


if __name__ == "__main__":
    main()
