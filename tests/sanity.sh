#!/usr/bin/env bash
# ansible-test sanity and units, offline, on a copy of what git tracks: ansible-test wants a real folder below
# ansible_collections/, and its own get-pip script from a host that may not be reachable.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${NETSTACK_CACHE:-$HOME/.cache/netstack}/ansible-test
pip_version=24.2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# What ansible-test would download: the script that puts pip into its virtual environments. This one has the wheel.
mkdir -p "$cache/pip" "$HOME/.ansible/test/cache"
compgen -G "$cache/pip/pip-*.whl" > /dev/null ||
    "$root/.venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --dest "$cache/pip" "pip==$pip_version"
wheel=$(compgen -G "$cache/pip/pip-*.whl")
cat > "$HOME/.ansible/test/cache/get_pip_${pip_version//./_}.py" << END
import runpy
import sys
sys.path.insert(0, "$wheel")
sys.argv = ["pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "$wheel"]
runpy.run_module("pip", run_name="__main__", alter_sys=True)
END

tree=$work/ansible_collections/kubelab/netstack
mkdir -p "$tree"
cd "$root"
git ls-files -z | xargs -0 cp --parents --no-dereference --target-directory="$tree"
cd "$tree"
git init --quiet .
git add .

# Real interpreters only: a pyenv shim that names a version which is not there ends the compile test.
PATH=$root/.venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
run() { ansible-test "$1" --color no --venv --python 3.11 "${@:2}"; }
# Objects of Kubernetes are not Ansible's YAML: they come several to a file. And Ansible's pylint has house rules about
# names that are for plugins; everything else has ruff and mypy.
run sanity --skip-test pylint --exclude tests/e2e/manifests/ --exclude inventory/example/manifests/
run sanity --test pylint plugins/ roles/ tests/unit/plugins/
run units tests/unit/plugins/
