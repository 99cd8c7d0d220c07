#!/usr/bin/python
# Copyright (c) 2026, The netstack developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: release
short_description: Stage, switch and remove releases of netstack on a node
version_added: 0.1.0
description:
  - A release is a Python virtual environment of its own below C(releases) of O(root), with the eBPF sources beside it.
  - Staging touches nothing that runs. Switching is one atomic rename of the link C(current).
  - Restarts nothing; that is for the playbook.
author:
  - The netstack developers (@kubelab)
extends_documentation_fragment:
  - kubelab.netstack.attributes
  - kubelab.netstack.releases
  - kubelab.netstack.releases.python
attributes:
  check_mode:
    support: full
    details:
      - With O(state=active), a release that is not staged is taken as staged by an earlier task of the same run.
  diff_mode:
    support: full
options:
  state:
    description:
      - V(staged) makes the release O(id) from the archive O(src), if it is not there yet, or was made for another
        version of Python than the node has by now.
      - V(active) switches to the release O(id), which must be staged, and forgets the oldest releases
        before it beyond O(keep).
      - V(previous) switches back to the release before the last switch. Not idempotent by nature, since the two swap
        places.
      - V(absent) removes the release O(id); without O(id), all of O(root).
    type: str
    choices:
      - staged
      - active
      - previous
      - absent
    default: active
  id:
    description:
      - The id of the release. Required with O(state=staged) and O(state=active).
    type: str
  src:
    description:
      - The archive on the node. It holds C(wheels) (the wheel of netstack, its dependencies and pip) and C(bpf).
        It is removed when the release is made from it.
      - Required with O(state=staged).
    type: path
  keep:
    description:
      - How many releases stay on the disk. The current and the previous one always do.
    type: int
    default: 3
  command:
    description:
      - With O(state=active), a link to make, to the command C(netstack) of whatever release is current.
    type: path
"""

EXAMPLES = r"""
- name: Stage a release
  kubelab.netstack.release:
    state: staged
    id: 0.1.0-5f0c2a91
    src: /opt/netstack-0.1.0-5f0c2a91.tar.gz

- name: Switch to it
  kubelab.netstack.release:
    state: active
    id: 0.1.0-5f0c2a91
    command: /usr/local/bin/netstack

- name: Switch back
  kubelab.netstack.release:
    state: previous
"""

RETURN = r"""
id:
  description: The release that the node is switched to after the task, or null.
  returned: always
  type: str
  sample: 0.1.0-5f0c2a91
previous:
  description: The release that O(state=previous) would switch to, or null.
  returned: always
  type: str
releases:
  description: The staged releases, in alphabetical order.
  returned: always
  type: list
  elements: str
"""

import os
import re
import shutil

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kubelab.netstack.plugins.module_utils import _files, _release

# It becomes a folder's name and part of a path that root removes.
RELEASE_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}")


def wanted(module: AnsibleModule, now: _release.Layout) -> _release.Layout:
    release, keep = module.params["id"], module.params["keep"]
    state = module.params["state"]
    if state == "staged":
        return _release.staged(now, release)
    if state == "active":
        return _release.active(now, release, keep, assume_staged=module.check_mode)
    if state == "previous":
        return _release.switched_back(now)
    return _release.absent(now, release)


def stage(module: AnsibleModule, root: str, release: str) -> None:
    """Make the release in its place. pip runs out of its own wheel: ensurepip would cost seconds of CPU on a board."""
    place, python = _release.folder(root, release), module.params["python"]
    shutil.rmtree(place, ignore_errors=True)
    module.run_command([python, "-m", "venv", "--without-pip", "--system-site-packages", place], check_rc=True)
    parcel = os.path.join(place, "parcel")
    os.mkdir(parcel)
    module.run_command(["tar", "-xzf", module.params["src"], "-C", parcel, "--no-same-owner"], check_rc=True)
    wheels = os.path.join(parcel, "wheels")
    pip = next((os.path.join(wheels, name) for name in os.listdir(wheels) if name.startswith("pip-")), None)
    if pip is None:
        raise _release.ReleaseError(f"{module.params['src']} has no wheel of pip")
    module.run_command(
        [os.path.join(place, "bin", "python"), os.path.join(pip, "pip"), "install", "--quiet", "--no-index",
         "--find-links", wheels, "--ignore-installed", "--disable-pip-version-check", "--no-cache-dir", "netstack"],
        check_rc=True)  # fmt: skip
    share = os.path.join(place, "share", "netstack")
    os.makedirs(share)
    os.rename(os.path.join(parcel, "bpf"), os.path.join(share, "bpf"))
    shutil.rmtree(parcel)
    mark = os.path.join(place, f"{_release.MARK}.new")
    with open(mark, "w") as note:
        note.write(f"{release}\n")
    module.atomic_move(mark, os.path.join(place, _release.MARK))
    os.unlink(module.params["src"])


def put_on_path(module: AnsibleModule) -> bool:
    """Link the command, if that is asked for; returns whether there was something to do."""
    path = module.params["command"]
    if path is None or module.params["state"] != "active":
        return False
    target = os.path.join(module.params["root"], "current", "bin", "netstack")
    link = _files.Entry(_files.LINK, path, target=target)
    if not _files.differs(link, _files.look(path)):
        return False
    if not module.check_mode:
        _files.make(link)
    return True


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["staged", "active", "previous", "absent"], "default": "active"},
            "id": {"type": "str"},
            "src": {"type": "path"},
            "keep": {"type": "int", "default": 3},
            "root": {"type": "path", "default": "/opt/netstack"},
            "command": {"type": "path"},
            "python": {"type": "path", "default": "/usr/bin/python3"},
        },
        required_if=[("state", "staged", ["id", "src"]), ("state", "active", ["id"])],
        supports_check_mode=True,
    )
    root, release = module.params["root"], module.params["id"]
    if release is not None and not RELEASE_ID.fullmatch(release):
        module.fail_json(msg=f"id: {release!r} is not letters, digits and . + _ - (at most 64)")
    try:
        before = _release.read(root, _release.python_version(module))
        after = wanted(module, before)
        if not module.check_mode and after != before:
            if set(after.releases) - set(before.releases):
                _release.clear(root, before)
                stage(module, root, release)
            _release.apply(root, before, after)
        linked = put_on_path(module)
    except (_release.ReleaseError, OSError) as wrong:
        module.fail_json(msg=str(wrong))
    module.exit_json(
        changed=after != before or linked,
        diff={"before": before.shown(), "after": after.shown()},
        id=after.current,
        previous=after.previous,
        releases=sorted(after.releases),
    )


if __name__ == "__main__":
    main()
