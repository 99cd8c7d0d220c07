#!/usr/bin/env bash
# The collection's own linters: ansible-lint in its strictest profile, the documentation, the change log. Offline.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
tree=$(tests/collection-tree.sh)
export ANSIBLE_COLLECTIONS_PATH=$tree ANSIBLE_HOME=$root/.ansible PATH=$root/.venv/bin:$PATH

ansible-lint --offline --strict
# Objects of Kubernetes, by the rules that ansible-test has for YAML of one document (tests/sanity.sh). Whether they are
# what they shall be, the API server says in tests/integration.
rules=$(python -c 'import ansible_test; print(ansible_test.__path__[0])')/_util/controller/sanity/yamllint/config/default.yml
yamllint --strict --config-file "$rules" roles/agent/files tests/e2e/manifests inventory/example/manifests
# The only way it knows the collection by is its place below ansible_collections.
cd "$tree/ansible_collections/kubelab/netstack"
antsibull-docs lint-collection-docs --plugin-docs .
antsibull-changelog lint
