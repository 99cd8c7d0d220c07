#!/usr/bin/env bash
# The collection's own linters: ansible-lint in its strictest profile, the documentation, the change log. Offline.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
tree=$(tests/collection-tree.sh)
export ANSIBLE_COLLECTIONS_PATH=$tree ANSIBLE_HOME=$root/.ansible PATH=$root/.venv/bin:$PATH

ansible-lint --offline --strict
# The only way it knows the collection by is its place below ansible_collections.
cd "$tree/ansible_collections/kubelab/netstack"
antsibull-docs lint-collection-docs --plugin-docs .
antsibull-changelog lint
