#!/usr/bin/env bash
# ansible-playbook from the clone: `tests/playbook.sh playbooks/site.yml -i inventory/lab/hosts.yml`
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tree=$("$root/tests/collection-tree.sh")
export ANSIBLE_CONFIG=$root/ansible.cfg ANSIBLE_COLLECTIONS_PATH=$tree PATH=$root/.venv/bin:$PATH
exec ansible-playbook "$@"
