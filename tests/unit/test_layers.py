"""The compile modules are what the import contract says they are: a new one must be named there."""

import configparser
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_module_of_the_contract_exists() -> None:
    contract = configparser.ConfigParser()
    contract.read(ROOT / ".importlinter")
    for module in contract["importlinter:contract:compile"]["source_modules"].split():
        path = ROOT / "daemons/src" / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or path.is_dir(), module
