#!/usr/bin/env bash
# Makes .cache/collections, where ansible finds this folder as kubelab.netstack (ansible.cfg names it), and prints it.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tree=$root/.cache/collections
mkdir -p "$tree/ansible_collections/kubelab"
ln -sfn "$root" "$tree/ansible_collections/kubelab/netstack"
echo "$tree"
