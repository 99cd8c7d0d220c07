#!/usr/bin/env bash
# ansible-playbook from the clone: `tests/playbook.sh playbooks/site.yml -i inventory/lab/hosts.yml`
# A run that warns of anything has failed.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tree=$("$root/tests/collection-tree.sh")
export ANSIBLE_CONFIG=$root/ansible.cfg ANSIBLE_COLLECTIONS_PATH=$tree PATH=$root/.venv/bin:$PATH
ANSIBLE_LOG_PATH=$(mktemp)
export ANSIBLE_LOG_PATH
trap 'rm -f "$ANSIBLE_LOG_PATH"' EXIT
ansible-playbook "$@"
"$root/tests/ansible-warnings.sh" "$ANSIBLE_LOG_PATH"
