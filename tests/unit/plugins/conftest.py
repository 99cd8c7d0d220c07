"""Makes ansible_collections.kubelab.netstack importable: ansible-test has it on its path, plain pytest has not."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

ROOT = Path(__file__).parents[3]

try:
    found = importlib.util.find_spec("ansible_collections.kubelab.netstack")
except ModuleNotFoundError:
    found = None
if found is None:
    tree = subprocess.run([str(ROOT / "tests/collection-tree.sh")], capture_output=True, text=True, check=True)
    sys.path.insert(0, tree.stdout.strip())

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """run(module, **options): what the module says; `_ansible_check_mode=True` for check mode."""

    def play(module: ModuleType, **options: Any) -> dict[str, Any]:
        with patch_module_args(options), pytest.raises(SystemExit):
            module.main()
        return dict(json.loads(capsys.readouterr().out))

    return play
