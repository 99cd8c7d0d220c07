# Copyright (c) 2026, The netstack developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's part of the module of this name: reads `src`, and changes the object in the API server.

The module judges the policy on the node and waits there. With an API server it is called twice, for between the two the
object changes here: first to judge, without waiting, then to wait.
"""

from __future__ import annotations

import json
import os
from datetime import date
from typing import Any

import yaml
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.module_utils.common.validation import check_type_dict
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible_collections.kubelab.netstack.plugins.module_utils import _policy
from ansible_collections.kubelab.netstack.plugins.plugin_utils import _api

MODULE = "kubelab.netstack.network_policy"


class ActionModule(ActionBase):
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        if arguments.get("src") is not None and arguments.get("definition") is None:
            arguments["definition"] = self._read(arguments.pop("src"))
        if not arguments.get("kubeconfig"):
            return self._node(arguments, task_vars)
        kubeconfig = arguments["kubeconfig"] = os.path.expanduser(arguments["kubeconfig"])
        told = self._node({**arguments, "wait": False}, task_vars)
        if told.get("failed"):
            return told
        # Plain values: those of Ansible carry tags that no serializer outside of it knows.
        definition = json.loads(json.dumps(check_type_dict(arguments["definition"]), default=_plain))
        try:
            change = _api.ensure(
                _api.connect(kubeconfig), definition, present=arguments.get("state", "present") == "present",
                dry_run=self._task.check_mode)  # fmt: skip
        except _api.ApiError as wrong:
            raise AnsibleActionFail(str(wrong), result={"policy": told["policy"]}) from wrong
        result = {
            **told,
            "changed": change.changed,
            "diff": _policy.diff(told["policy"], _text(change.before), _text(change.after), told["effect"]),
        }
        if self._task.check_mode or not boolean(arguments.get("wait", True), strict=False):
            return result
        waited = self._node(arguments, task_vars)
        return {**waited, **result} if not waited.get("failed") else {**result, **waited, "changed": change.changed}

    def _node(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        return dict(self._execute_module(module_name=MODULE, module_args=arguments, task_vars=task_vars))

    def _read(self, src: str) -> Any:
        try:
            return self._loader.load_from_file(self._find_needle("files", src))
        except AnsibleError as wrong:
            raise AnsibleActionFail(f"src: {wrong}") from wrong


def _plain(value: Any) -> str:
    """What JSON does not have, as the module gets it: YAML's dates, and what a vault holds."""
    return str(value.isoformat() if isinstance(value, date) else value)


def _text(stored: _api.Object | None) -> str:
    return "" if stored is None else yaml.safe_dump(dict(stored), sort_keys=False, allow_unicode=True)
