"""What the README tells to type, held against what is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_collection_is_installed_before_it_is_used() -> None:
    steps = README[README.index("## Quick start") :]
    assert 0 < steps.find("ansible-galaxy collection install") < steps.index("ansible-playbook")


def test_playbooks_and_modules_that_it_names_are_there() -> None:
    named = set(re.findall(r"kubelab\.netstack\.(\w+)", README))
    playbooks = {path.stem for path in (ROOT / "playbooks").glob("*.yml")}
    modules = {path.stem for path in (ROOT / "plugins/modules").glob("*.py")}
    assert named and named <= playbooks | modules
