#!/usr/bin/python
# Copyright (c) 2026, The netstack developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: network_policy
short_description: A network policy, with what it opens and denies told first and its enforcement awaited
version_added: 0.1.0
description:
  - Makes a NetworkPolicy, CiliumNetworkPolicy or CiliumClusterwideNetworkPolicy present or absent. Run it on all nodes.
  - Each node judges the policy first, as its agent would. A policy that the agent would refuse is not applied, and the
    error names object, field and reason.
  - Tells the effect of the change, also in check mode and, as text, in diff mode. It lists which flows that the node
    has seen lately and which pairs of pods and nodes would be denied or let pass, with the rule that decides.
  - Waits until the node enforces just this version. The task fails on a node that does not, and says
    what it does instead. In check mode a warning names a node whose agent does not answer.
  - Without O(kubeconfig) the object is a file of its own in the folder from which the node takes its objects. With it,
    the controller changes the object in the API server, once, and the other nodes find it so.
author:
  - The netstack developers (@kubelab)
requirements:
  - The Python package C(kubernetes) on the controller, with O(kubeconfig).
extends_documentation_fragment:
  - kubelab.netstack.attributes
attributes:
  action:
    description: Indicates this has a corresponding action plugin so some parts of the options can be executed on the
      controller.
    support: full
  check_mode:
    support: full
  diff_mode:
    support: full
options:
  definition:
    description:
      - The whole object. To make it absent, kind and metadata with name and namespace are enough.
      - A policy with the annotation C(netstack.kubelab.io/audit=true) is on trial. It denies and opens nothing, and
        RV(effect.trial_flows) and RV(effect.trial_pairs) tell what it would deny.
    type: dict
  src:
    description:
      - A file on the controller that holds the object, in place of O(definition).
    type: path
  state:
    description:
      - Whether the object shall be there.
    type: str
    choices:
      - present
      - absent
    default: present
  kubeconfig:
    description:
      - A file on the controller by which it may change policies in the API server.
      - Required if the nodes take their objects from there, and refused if they do not.
    type: path
  wait:
    description:
      - Whether to wait until the node enforces the policy, or does not any more.
    type: bool
    default: true
  wait_timeout:
    description:
      - How long to wait, in seconds.
    type: int
    default: 30
  root:
    description:
      - The folder that the releases are in.
    type: path
    default: /opt/netstack
"""

EXAMPLES = r"""
- name: Let the agents reach Home Assistant, and nothing else at home
  kubelab.netstack.network_policy:
    definition:
      apiVersion: networking.k8s.io/v1
      kind: NetworkPolicy
      metadata:
        name: openclaw
        namespace: agents
      spec:
        podSelector: {}
        policyTypes: [Egress]
        egress:
          - to:
              - podSelector:
                  matchLabels:
                    app: home-assistant
            ports:
              - port: 8123

- name: Change it in the API server, from a file
  kubelab.netstack.network_policy:
    src: policies/openclaw.yaml
    kubeconfig: ~/.kube/config

- name: Take it away
  kubelab.netstack.network_policy:
    state: absent
    definition:
      kind: NetworkPolicy
      metadata:
        name: openclaw
        namespace: agents
"""

RETURN = r"""
policy:
  description: Kind, namespace and name.
  returned: always
  type: str
  sample: NetworkPolicy agents/openclaw
problems:
  description: Why the node's agent would refuse the policy as a whole.
  returned: when it would
  type: list
  elements: dict
  contains:
    object:
      description: Kind, namespace and name.
      type: str
      returned: always
    field:
      description: The path of the field.
      type: str
      returned: always
      sample: spec.egress[0].toEntitees
    reason:
      description: What is wrong with it.
      type: str
      returned: always
digest:
  description: Names what the policy says. Nodes that enforce the same version report the same.
  returned: success
  type: str
effect:
  description:
    - What the change does, by what this node knows.
    - Nothing, where another node has been faster with the same change. In check mode all nodes tell it.
  returned: success
  type: dict
  contains:
    lines:
      description: All of it, for people.
      type: list
      elements: str
      returned: always
    selects:
      description: The pods that the policy selects.
      type: list
      elements: str
      returned: always
    flows:
      description: Flows that the node has seen lately and that would be denied, or let pass.
      type: list
      elements: dict
      returned: always
      sample: [{opens: false, source: agents/openclaw, destination: 192.168.86.7, protocol: TCP, port: 22, times: 3,
                rules: [NetworkPolicy agents/openclaw], unless: []}]
    pairs:
      description:
        - Pods and nodes between which something would be denied, or let pass.
        - Each is for every source with every destination but itself.
      type: list
      elements: dict
      returned: always
      sample: [{opens: false, sources: [agents/openclaw], destinations: [world], what: everything,
                rules: [NetworkPolicy agents/openclaw]}]
    trial_flows:
      description: Of a policy on trial, the flows that it would report as denied.
      type: list
      elements: dict
      returned: always
    trial_pairs:
      description: Of a policy on trial, the pairs that it would report as denied.
      type: list
      elements: dict
      returned: always
    notes:
      description: What could not be looked at, or is named by the policy and not there.
      type: list
      elements: str
      returned: always
enforced:
  description: What the node's agent says of the policy after the change. Null if it has none.
  returned: when it was waited for
  type: dict
  sample: {policy: NetworkPolicy agents/openclaw, state: enforced, selects: 1, not_enforced: [],
           isolated: [], digest: 5f0c2a91d1c7e3b4}
"""

import json
import platform
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kubelab.netstack.plugins.module_utils import _files, _node, _policy

PAUSE_S = 0.2


def propose(module: AnsibleModule) -> dict[str, object]:
    """What `netstack effect` says of the change."""
    words = ["effect", "-", "--json"] + ["--absent"] * (module.params["state"] == "absent")
    given = json.dumps(module.params["definition"])
    code, out, err = module.run_command([_node.command(module.params["root"]), *words], data=given)
    return dict(_node.parse_answer("effect", code, out, err))


def write(module: AnsibleModule, told: dict[str, object]) -> None:
    """Make the object's file what it shall be."""
    kind = _files.FILE if told["after"] else _files.ABSENT
    entry = _files.Entry(kind, str(told["file"]), str(told["after"]).encode(), mode=0o644)
    try:
        _files.make(entry)
    except OSError as wrong:
        module.fail_json(msg=f"{told['file']}: {wrong}", policy=told["policy"])


def wait(module: AnsibleModule, told: dict[str, object], result: dict[str, object]) -> dict[str, object] | None:
    """The agent's word on the policy, once that is in force or gone; fails the module if it does not come to that."""
    deadline = time.monotonic() + module.params["wait_timeout"]
    while True:
        try:
            answer = _node.ask("agent", {"command": "policy", "policy": told["policy"]})
            reason = _policy.lacking(answer, told["digest"])
            if not reason:
                return answer["policy"]
        except _node.Silent as silent:
            reason = str(silent)
        if time.monotonic() > deadline:
            wanted = "enforces" if told["digest"] else "has given up"
            module.fail_json(msg=f"not known that this node {wanted} {told['policy']}: {reason}", **result)
        time.sleep(PAUSE_S)


def foresee(module: AnsibleModule, told: dict[str, object]) -> None:
    """Say whether the agent could put the change in force at all."""
    try:
        _node.ask("agent", {"command": "policy", "policy": told["policy"]})
    except _node.Silent as silent:
        module.warn(f"{platform.node()}: {silent}; until it does, this node keeps the rules that it has")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "definition": {"type": "dict"},
            "src": {"type": "path"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "kubeconfig": {"type": "path"},
            "wait": {"type": "bool", "default": True},
            "wait_timeout": {"type": "int", "default": 30},
            "root": {"type": "path", "default": "/opt/netstack"},
        },
        required_one_of=[("definition", "src")],
        mutually_exclusive=[("definition", "src")],
        supports_check_mode=True,
    )
    if module.params["definition"] is None:
        module.fail_json(msg="src is read on the controller, by the action plugin of this name")
    try:
        told = propose(module)
    except _node.Silent as silent:
        module.fail_json(msg=str(silent))
    if told["problems"]:
        words = "; ".join("{object}: {field}: {reason}".format(**problem) for problem in told["problems"])
        module.fail_json(msg=words, policy=told["policy"], problems=told["problems"])
    hindrance = _policy.hindrance(told, module.params["kubeconfig"])
    if hindrance:
        module.fail_json(msg=hindrance, policy=told["policy"])
    result = {name: told[name] for name in ("policy", "digest")}
    result.update(changed=bool(told.get("changed")), effect=_policy.effect(told))
    if told["source"] == "directory":
        result["diff"] = _policy.diff(told["policy"], told["before"], told["after"], told)
        if result["changed"] and not module.check_mode:
            write(module, told)
    if module.check_mode:
        foresee(module, told)
    elif module.params["wait"]:
        result["enforced"] = wait(module, told, result)
        for pod in (result["enforced"] or {}).get("not_enforced", ()):
            module.warn(f"{told['policy']} is not enforced on {pod}, whose network is its node's or another plugin's")
        for pod in (result["enforced"] or {}).get("isolated", ()):
            module.warn(f"{pod} has no network: {told['policy']} selects it, and netstack did not connect it")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
