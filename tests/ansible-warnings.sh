#!/usr/bin/env bash
# ansible-warnings.sh LOG: fails if a run of ansible that was logged there (ANSIBLE_LOG_PATH) has warned of anything.
# What is deprecated today is an error of the next ansible-core, and ansible has no setting that says so.
set -euo pipefail

if grep -E '\[(DEPRECATION )?WARNING\]' "$1" >&2; then
    echo "ansible has warned: see above" >&2
    exit 1
fi
