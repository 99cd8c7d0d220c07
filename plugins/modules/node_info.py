#!/usr/bin/python
# Copyright (c) 2026, The netstack developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: node_info
short_description: Whether a node serves, and what it does
version_added: 0.1.0
description:
  - Asks the daemons of the node, through C(netstack status --json).
  - Never fails because of the node's state. A node without netstack is not ready, and RV(node.reasons) says so.
author:
  - The netstack developers (@kubelab)
extends_documentation_fragment:
  - kubelab.netstack.attributes
  - kubelab.netstack.attributes.info_module
  - kubelab.netstack.releases
"""

EXAMPLES = r"""
- name: Wait until the node serves
  kubelab.netstack.node_info:
  register: gate
  until: gate.node.ready
  retries: 30
  delay: 1
"""

RETURN = r"""
node:
  description: The node, as it sees itself.
  returned: always
  type: dict
  contains:
    node:
      description: The node's name, or null when netstack is not installed.
      returned: always
      type: str
    ready:
      description: Whether every daemon that is configured answers and all programs are attached.
      returned: always
      type: bool
    reasons:
      description: Why the node is not ready. Empty when it is.
      returned: always
      type: list
      elements: str
    release:
      description: The id of the release that the node is switched to, or null.
      returned: always
      type: str
      sample: 0.1.0-5f0c2a91
    daemons:
      description: By name, whether each configured daemon runs, and its own report or the error.
      returned: always
      type: dict
    programs:
      description: The programs of the kernel side and where they are attached.
      returned: always
      type: list
      elements: str
    maps:
      description: By name, how many entries each table of the kernel side has and can have.
      returned: always
      type: dict
    addresses:
      description: The LoadBalancer addresses that this node has a part in, and whether it announces them.
      returned: always
      type: list
      elements: dict
    policies:
      description: The policies on this node, and whether they are in force.
      returned: always
      type: list
      elements: dict
    unmanaged:
      description:
        - The pods of this node that netstack did not connect, because they are older or another CNI plugin made them.
        - One that a policy selects is isolated.
      returned: always
      type: list
      elements: dict
    verdicts:
      description: By reason, how many packets the programs have counted.
      returned: always
      type: dict
    broken:
      description: Objects that were refused, with field and reason.
      returned: always
      type: list
      elements: str
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kubelab.netstack.plugins.module_utils import _node


def ask(module: AnsibleModule, root: str) -> dict[str, object]:
    command = os.path.join(root, "current", "bin", "netstack")
    if not os.path.exists(command):
        return _node.not_ready(f"netstack is not installed: {command} does not exist")
    code, out, err = module.run_command([command, "status", "--json"])
    return _node.parse_status(code, out, err, _node.current_release(root))


def main() -> None:
    module = AnsibleModule(
        argument_spec={"root": {"type": "path", "default": "/opt/netstack"}},
        supports_check_mode=True,
    )
    module.exit_json(changed=False, node=ask(module, module.params["root"]))


if __name__ == "__main__":
    main()
