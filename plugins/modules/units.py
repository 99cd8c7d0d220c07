#!/usr/bin/python
# Copyright (c) 2026, The netstack developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: units
short_description: Bring several systemd units where they shall be, in one go
version_added: 0.1.0
description:
  - Starts, stops, restarts, enables and disables any number of units. Each kind of change is one transaction of
    systemd, which orders the units by what they say of one another.
  - Lets systemd read its files again when one of the units was changed on the disk.
  - When a unit fails, C(msg) has the end of its journal.
author:
  - The netstack developers (@kubelab)
extends_documentation_fragment:
  - kubelab.netstack.attributes
attributes:
  check_mode:
    support: full
    details:
      - A unit that systemd does not know is taken as written by an earlier task of the same run.
  diff_mode:
    support: full
options:
  units:
    description:
      - The units, in any order.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: The whole name, with C(.service) or C(.socket).
        type: str
        required: true
      state:
        description:
          - V(started) leaves a running unit alone. V(restarted) always is a change.
          - V(stopped) is also true of a unit that does not exist.
        type: str
        choices:
          - started
          - stopped
          - restarted
        default: started
      enabled:
        description: Whether it starts at boot. A unit whose file says nothing about that is left alone.
        type: bool
        default: true
      block:
        description: Whether to wait until it has started.
        type: bool
        default: true
  settles:
    description:
      - The file O(kubelab.netstack.files#module:pending), to remove when all units are where they shall be.
    type: path
"""

EXAMPLES = r"""
- name: Start the units, now and at boot
  kubelab.netstack.units:
    units:
      - name: netstack-loader.service
      - name: netstack-agent.service

- name: Keep a unit from running
  kubelab.netstack.units:
    units:
      - name: haproxy.service
        state: stopped
        enabled: false
"""

RETURN = r"""
steps:
  description: The calls of systemctl that were made, or would be.
  returned: success
  type: list
  elements: str
  sample:
    - start netstack-loader.service netstack-agent.service
"""

import contextlib
import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kubelab.netstack.plugins.module_utils import _units


def look(module: AnsibleModule, names: list[str]) -> dict[str, _units.Seen]:
    if not names:  # systemctl would speak of systemd itself
        return {}
    asked = [f"--property={name}" for name in _units.PROPERTIES]
    out = module.run_command(["systemctl", "show", *asked, "--", *names], check_rc=True)[1]
    return _units.parse(names, out)


def journal(module: AnsibleModule, names: tuple[str, ...]) -> str:
    asked = [word for name in names for word in ("-u", name)]
    return str(module.run_command(["journalctl", "--no-pager", "--quiet", "-n", "20", *asked])[1]).strip()


def run(module: AnsibleModule, step: _units.Step) -> None:
    code, out, err = module.run_command(["systemctl", *step.words, "--", *step.units])
    if code != 0:
        said = (err.strip() or out.strip()).splitlines()
        call = " ".join((*step.words, *step.units))
        module.fail_json(msg=f"systemctl {call}: {' '.join(said)}\n{journal(module, step.units)}")


def settle(module: AnsibleModule) -> None:
    if module.params["settles"] is not None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(module.params["settles"])


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "units": {"type": "list", "elements": "dict", "required": True,
                      "options": {"name": {"type": "str", "required": True},
                                  "state": {"type": "str", "choices": ["started", "stopped", "restarted"],
                                            "default": "started"},
                                  "enabled": {"type": "bool", "default": True},
                                  "block": {"type": "bool", "default": True}}},
            "settles": {"type": "path"},
        },
        supports_check_mode=True,
    )  # fmt: skip
    wanted = [_units.Wanted(**unit) for unit in module.params["units"]]
    names = [one.name for one in wanted]
    seen = look(module, names)
    if not module.check_mode and any(one.stale or not one.there for one in seen.values()):
        run(module, _units.Step(("daemon-reload",), (), changes=False))
        seen = look(module, names)
    steps = _units.steps(wanted, seen)
    if not module.check_mode:
        for step in steps:
            run(module, step)
        settle(module)
    module.exit_json(
        changed=any(step.changes for step in steps),
        diff={
            "before": {one.name: seen[one.name].shown for one in wanted},
            "after": {one.name: _units.after(one, seen[one.name]) for one in wanted},
        },
        steps=[" ".join((*step.words, *step.units)) for step in steps],
    )


if __name__ == "__main__":
    main()
