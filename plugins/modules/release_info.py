#!/usr/bin/python
# Copyright (c) 2026, The netstack developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: release_info
short_description: Which releases a node has, and what must be built for it
version_added: 0.1.0
description:
  - Looks at the disk, also when netstack is not installed.
author:
  - The netstack developers (@kubelab)
extends_documentation_fragment:
  - kubelab.netstack.attributes
  - kubelab.netstack.attributes.info_module
  - kubelab.netstack.releases
  - kubelab.netstack.releases.python
"""

EXAMPLES = r"""
- name: Look for releases
  kubelab.netstack.release_info:
  register: seen
"""

RETURN = r"""
release:
  description: What is there.
  returned: always
  type: dict
  contains:
    target:
      description: Architecture and Python version, as a release for this node is built for them.
      returned: always
      type: str
      sample: aarch64-3.11
    current:
      description: The release that the node is switched to, or null.
      returned: always
      type: str
      sample: 0.1.0-5f0c2a91
    previous:
      description: The release before that, or null.
      returned: always
      type: str
    releases:
      description: The staged releases, in alphabetical order. One for another version of Python is none.
      returned: always
      type: list
      elements: str
"""

import platform

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kubelab.netstack.plugins.module_utils import _release


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/opt/netstack"},
            "python": {"type": "path", "default": "/usr/bin/python3"},
        },
        supports_check_mode=True,
    )
    version = _release.python_version(module)
    layout = _release.read(module.params["root"], version)
    module.exit_json(changed=False, release={"target": f"{platform.machine()}-{version}", **layout.shown()})


if __name__ == "__main__":
    main()
