# Copyright (c) 2026, The netstack developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options that the modules about releases share. Not for use outside of this collection."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  root:
    description:
      - The folder that the releases are in.
    type: path
    default: /opt/netstack
"""

    PYTHON = r"""
options:
  python:
    description:
      - The interpreter that the virtual environments are made from. Its site packages stay visible, because bcc is only
        packaged by the distribution.
    type: path
    default: /usr/bin/python3
"""
