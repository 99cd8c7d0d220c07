#!/usr/bin/env bash
# ansible-test sanity and units, offline, on a copy of what git tracks: ansible-test wants a real folder below
# ansible_collections/, and its own get-pip script from a host that may not be reachable.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${NETSTACK_CACHE:-$HOME/.cache/netstack}/ansible-test
pip_version=24.2

mkdir -p "$cache"
exec {lock}> "$cache/lock"
flock "$lock"

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

# The copy stays, with nothing of the run before but tests/output, where ansible-test has its virtual environments.
key=$(sha256sum "$root/tests/requirements.txt" | cut -c1-12)
tree=$cache/$key/ansible_collections/kubelab/netstack
mkdir -p "$tree/tests"
find "$tree" -mindepth 1 -maxdepth 1 ! -name tests -exec rm -r {} +
find "$tree/tests" -mindepth 1 -maxdepth 1 ! -name output -exec rm -r {} +
cd "$root"
git ls-files -z | xargs -0 cp --parents --no-dereference --target-directory="$tree"
cd "$tree"
git init --quiet .
git add .

# Real interpreters only: a pyenv shim that names a version which is not there ends the compile test.
PATH=$root/.venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH LC_ALL=C.UTF-8
run() { ansible-test "$1" --color no --venv --python 3.11 "${@:2}"; }
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# Ansible's pylint has house rules about names that are for plugins; everything else has ruff and mypy. And its yamllint
# refuses files with several documents, as Kubernetes' objects come; lint-collection.sh applies the same rules to those.
run sanity --skip-test pylint --skip-test yamllint 2>&1 | tee "$log"
run sanity --test yamllint --exclude tests/e2e/manifests/ --exclude inventory/example/manifests/ \
    --exclude roles/agent/files/ 2>&1 | tee -a "$log"
# To ansible-test, a test whose program is missing is a success.
if grep 'Required program .* not found' "$log"; then
    exit 1
fi
run sanity --test pylint plugins/ roles/ tests/unit/plugins/ > "$log" 2>&1 &
pylint=$!
run units tests/unit/plugins/
wait "$pylint" || { cat "$log"; exit 1; }
