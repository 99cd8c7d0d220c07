#!/usr/bin/env bash
# The molecule scenarios (all, or those that are named) on a lab of their own.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
tests/collection-tree.sh > /dev/null
mkdir -p .cache/molecule
# Until the lab has written it, the inventory is empty, not missing.
[[ -e .cache/molecule/hosts.yml ]] || echo "netstack_nodes: {}" > .cache/molecule/hosts.yml

# Molecule keeps its state by the name of the project's folder, which two clones share.
export MOLECULE_EPHEMERAL_DIRECTORY=$root/.cache/molecule/state
export MOLECULE_GLOB=molecule/*/molecule.yml
export NETSTACK_MOLECULE_LAB=${NETSTACK_MOLECULE_LAB:-molecule}
export PATH=$root/.venv/bin:$PATH
for scenario in "${@:-default}"; do
    molecule --base-config .config/molecule/config.yml test --scenario-name "$scenario"
done
