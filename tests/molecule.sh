#!/usr/bin/env bash
# The molecule scenarios (all, or those that are named) on a lab of their own, with the collection as it is published:
# built, and installed into an empty folder.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
export PATH=$root/.venv/bin:$PATH

# Molecule keeps its state by the name of the project's folder, which two clones share.
export NETSTACK_MOLECULE=$root/.cache/molecule
export MOLECULE_EPHEMERAL_DIRECTORY=$NETSTACK_MOLECULE/state
rm -rf "$NETSTACK_MOLECULE"
mkdir -p "$NETSTACK_MOLECULE"
ANSIBLE_COLLECTIONS_PATH=$NETSTACK_MOLECULE/collections
export ANSIBLE_COLLECTIONS_PATH
ansible-galaxy collection build --output-path "$NETSTACK_MOLECULE" > /dev/null
ansible-galaxy collection install --offline --no-deps "$NETSTACK_MOLECULE"/kubelab-netstack-*.tar.gz > /dev/null

# Until the lab has written it, the inventory is empty, not missing.
echo "netstack_nodes: {hosts: {}}" > "$NETSTACK_MOLECULE/hosts.yml"
export NETSTACK_MOLECULE_LAB=${NETSTACK_MOLECULE_LAB:-molecule}
export ANSIBLE_LOG_PATH=$NETSTACK_MOLECULE/log

export MOLECULE_GLOB='molecule/*/molecule.yml'
scenarios=("$@")
((${#scenarios[@]})) || scenarios=(site failure)
molecule --base-config .config/molecule/config.yml test "${scenarios[@]/#/--scenario-name=}" 2>&1 |
    tee "$NETSTACK_MOLECULE/output"
# To Molecule, a step whose playbook or tests it does not find is a success.
if grep -E 'missing=[^ ]*[1-9]|Skipping, no tests found' "$NETSTACK_MOLECULE/output"; then
    exit 1
fi
tests/ansible-warnings.sh "$ANSIBLE_LOG_PATH"
