# Copyright (c) 2026, The netstack developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The attributes that the modules of this collection share. Not for use outside of it."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and return what would change without changing it.
  diff_mode:
    description: Returns details on what has changed (or would change in C(check_mode)), in diff mode.
  action_group:
    description: Use C(group/kubelab.netstack.netstack) in C(module_defaults) to set defaults for this module.
    support: full
    membership:
      - kubelab.netstack.netstack
"""

    INFO_MODULE = r"""
options: {}
attributes:
  check_mode:
    support: full
    details:
      - This action only looks.
  diff_mode:
    support: N/A
    details:
      - This action changes nothing.
"""

    FACTS = r"""
options: {}
attributes:
  facts:
    description: Action returns an C(ansible_facts) dictionary that updates existing host facts.
    support: full
"""
