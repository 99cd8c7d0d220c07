#!/usr/bin/python
# Copyright (c) 2026, The netstack developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: identity_info
short_description: Who is who to the policies on a node
version_added: 0.1.0
description:
  - Tells the identities that policies can tell apart, as the node's agent has them. They are pods by their labels,
    entities such as V(host) and V(world), and the address ranges that policies name.
  - An identity has the same number on every node.
author:
  - The netstack developers (@kubelab)
extends_documentation_fragment:
  - kubelab.netstack.attributes
  - kubelab.netstack.attributes.info_module
options:
  labels:
    description:
      - Only identities with all of these labels.
    type: dict
    default: {}
  namespace:
    description:
      - Only those of pods in this namespace.
    type: str
  address:
    description:
      - Only the one that has this address, of a pod or node.
    type: str
  root:
    description:
      - The folder that the releases are in.
    type: path
    default: /opt/netstack
"""

EXAMPLES = r"""
- name: See who the agents are
  kubelab.netstack.identity_info:
    namespace: agents
    labels:
      app: openclaw
  register: found
"""

RETURN = r"""
identities:
  description: The identities that match.
  returned: success
  type: list
  elements: dict
  contains:
    identity:
      description: The number, which flows carry too.
      returned: always
      type: int
      sample: 1407226839
    name:
      description: What it stands for.
      returned: always
      type: str
      sample: pods agents
    labels:
      description: The labels of the pods, with those of their namespace and service account under Cilium's keys.
      returned: always
      type: dict
    addresses:
      description: Who has it, on all nodes.
      returned: always
      type: list
      elements: str
    endpoints:
      description: The pods of this node that have it.
      returned: always
      type: list
      elements: str
      sample: [agents/openclaw]
"""

import ipaddress

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kubelab.netstack.plugins.module_utils import _node

NAMESPACE = "io.kubernetes.pod.namespace"


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "labels": {"type": "dict", "default": {}},
            "namespace": {"type": "str"},
            "address": {"type": "str"},
            "root": {"type": "path", "default": "/opt/netstack"},
        },
        supports_check_mode=True,
    )
    labels = {  # YAML's true, where Kubernetes has "true"
        key: str(value).lower() if isinstance(value, bool) else str(value)
        for key, value in module.params["labels"].items()
    }
    if module.params["namespace"] is not None:
        labels[NAMESPACE] = module.params["namespace"]
    address = module.params["address"]
    try:
        wanted = None if address is None else str(ipaddress.ip_address(address))
        code, out, err = module.run_command([_node.command(module.params["root"]), "identities", "--json"])
        known = _node.parse_answer("identities", code, out, err)
    except ValueError as wrong:
        module.fail_json(msg=f"address: {wrong}")
    except _node.Silent as silent:
        module.fail_json(msg=str(silent))
    found = [
        one for one in known
        if labels.items() <= one["labels"].items() and (wanted is None or wanted in one["addresses"])
    ]  # fmt: skip
    module.exit_json(changed=False, identities=found)


if __name__ == "__main__":
    main()
