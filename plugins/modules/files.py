#!/usr/bin/python
# Copyright (c) 2026, The netstack developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: files
short_description: Lay down a daemon's folders, files and links in one go
version_added: 0.1.0
description:
  - Makes any number of paths in one call. A board takes half a second for a call of a module, however little it does.
  - Every content that changes is validated before the first is written. A refused one leaves all of them as they are.
  - A file is replaced by one rename of a whole one that is on the disk already. A power cut leaves the old or the new.
author:
  - The netstack developers (@kubelab)
extends_documentation_fragment:
  - kubelab.netstack.attributes
attributes:
  check_mode:
    support: full
    details:
      - An owner or group that does not exist is taken as made by an earlier task of the same run.
      - So is a command of O(files[].validate).
  diff_mode:
    support: full
options:
  folders:
    description:
      - Folders to make, with their parents; before everything else.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Where.
        type: path
        required: true
      mode:
        description: The permissions, octal.
        type: str
        default: "0755"
      owner:
        description: The user. Not changed without it.
        type: str
      group:
        description: The group. Not changed without it.
        type: str
  files:
    description:
      - Files to write. Their folders must be there, or be in O(folders).
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Where.
        type: path
        required: true
      content:
        description: What, in UTF-8.
        type: str
      secret:
        description: What, in place of O(files[].content), and shown nowhere.
        type: str
      mode:
        description: The permissions, octal.
        type: str
        default: "0644"
      owner:
        description: The user. Not changed without it.
        type: str
      group:
        description: The group. Not changed without it.
        type: str
      validate:
        description: A command that must accept the content first. C(%s) is a file that holds it.
        type: str
  links:
    description:
      - Symbolic links to make, in place of whatever else is there but a folder.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Where.
        type: path
        required: true
      target:
        description: What it points to, as it is. It need not be there.
        type: str
        required: true
  absent:
    description:
      - Paths to remove, folders with all that is in them; after everything else.
    type: list
    elements: path
    default: []
  pending:
    description:
      - A file in which paths are noted before they are changed, until O(kubelab.netstack.units#module:settles) removes
        it. While it is there, those paths count as changed. A run that is broken off before its handlers, or in them,
        so leaves them to the next.
      - Below C(/run), since after a boot all that is on the disk is in force.
    type: path
"""

EXAMPLES = r"""
- name: Lay down configuration and unit
  kubelab.netstack.files:
    files:
      - path: /etc/netstack/agent.yaml
        content: "{{ lookup('ansible.builtin.template', 'agent.yaml.j2') }}"
        validate: /opt/netstack/current/bin/netstack check-config agent %s
      - path: /etc/systemd/system/netstack-agent.service
        content: "{{ lookup('ansible.builtin.template', 'netstack-agent.service.j2') }}"
    pending: /run/netstack/agent.pending
  notify: Restart netstack-agent
"""

RETURN = r"""
paths:
  description:
    - The paths that were changed, in the order in which they were; those of O(pending) first.
  returned: always
  type: list
  elements: str
"""

import os
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kubelab.netstack.plugins.module_utils import _files

COMMON = {"path": {"type": "path", "required": True}, "owner": {"type": "str"}, "group": {"type": "str"}}


def wanted(module: AnsibleModule) -> list[_files.Entry]:
    """The parameters as entries, in the order in which they are made."""

    def mode(given: dict[str, str]) -> int:
        try:
            return int(given["mode"], 8)
        except ValueError:
            module.fail_json(msg=f"{given['path']}: mode: {given['mode']!r} is not octal")

    entries = [
        _files.Entry(_files.FOLDER, folder["path"], mode=mode(folder), owner=folder["owner"], group=folder["group"])
        for folder in module.params["folders"]
    ]
    for file in module.params["files"]:
        secret = file["secret"] is not None
        content = (file["secret"] if secret else file["content"]).encode()
        entries.append(
            _files.Entry(_files.FILE, file["path"], content, mode=mode(file), owner=file["owner"], group=file["group"],
                         secret=secret, validate=file["validate"]))  # fmt: skip
    entries += [_files.Entry(_files.LINK, link["path"], target=link["target"]) for link in module.params["links"]]
    return entries + [_files.Entry(_files.ABSENT, path) for path in module.params["absent"]]


def validate(module: AnsibleModule, entry: _files.Entry) -> None:
    """Let the entry's command judge its content; fails the module with what the command said."""
    command = entry.validate or ""
    if "%s" not in command:
        module.fail_json(msg=f"{entry.path}: validate: there is no %s in {command!r}")
    if module.check_mode and not os.path.exists(command.split()[0]):
        return
    with tempfile.NamedTemporaryFile(dir=module.tmpdir, suffix=os.path.basename(entry.path)) as trial:
        trial.write(entry.content)
        trial.flush()
        code, out, err = module.run_command(command.replace("%s", trial.name))
        if code != 0:
            said = (err.strip() or out.strip()).replace(trial.name, entry.path)
            module.fail_json(msg=f"{entry.path} was refused, and nothing was written: {said}")


def noted(module: AnsibleModule) -> list[str]:
    """The paths that earlier runs changed, and that nobody has put in force."""
    path = module.params["pending"]
    return [] if path is None else _files.look(path).content.decode().splitlines()


def note(module: AnsibleModule, paths: list[str]) -> None:
    path = module.params["pending"]
    if path is not None:
        _files.make(_files.Entry(_files.FOLDER, os.path.dirname(path)))
        _files.make(_files.Entry(_files.FILE, path, "\n".join(paths).encode()))


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "folders": {"type": "list", "elements": "dict", "default": [],
                        "options": {**COMMON, "mode": {"type": "str", "default": "0755"}}},
            "files": {"type": "list", "elements": "dict", "default": [],
                      "options": {**COMMON, "mode": {"type": "str", "default": "0644"}, "content": {"type": "str"},
                                  "secret": {"type": "str", "no_log": True}, "validate": {"type": "str"}},
                      "mutually_exclusive": [("content", "secret")], "required_one_of": [("content", "secret")]},
            "links": {"type": "list", "elements": "dict", "default": [],
                      "options": {"path": COMMON["path"], "target": {"type": "str", "required": True}}},
            "absent": {"type": "list", "elements": "path", "default": []},
            "pending": {"type": "path"},
        },
        supports_check_mode=True,
    )  # fmt: skip
    # What is replaced is read, to tell whether it is; what is removed may be large and is not.
    pairs = [(entry, _files.look(entry.path, read=entry.kind == _files.FILE)) for entry in wanted(module)]
    changes = [(entry, seen) for entry, seen in pairs if _files.differs(entry, seen)]
    for entry, _seen in changes:
        if entry.validate is not None:
            validate(module, entry)
    paths = list(dict.fromkeys([*noted(module), *(entry.path for entry, _seen in changes)]))
    if not module.check_mode:
        if changes:
            note(module, paths)
        for entry, _seen in changes:
            try:
                _files.make(entry)
            except (OSError, KeyError) as wrong:
                module.fail_json(msg=f"{entry.path}: {wrong}")
    module.exit_json(
        changed=len(paths) > 0,
        diff=[_files.shown(entry, seen) for entry, seen in changes],
        paths=paths,
    )


if __name__ == "__main__":
    main()
