from dataclasses import dataclass, field
from pathlib import Path

import pytest

from netstack.core.errors import BadConfig
from netstack.core.settings import load, parse


@dataclass(frozen=True, slots=True)
class Inner:
    size: int = 4


@dataclass(frozen=True, slots=True)
class Sample:
    name: str
    wait_s: float = 1.5
    peers: dict[str, str] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    gateway: str | None = None
    state: Path = Path("/var/lib")
    inner: Inner = Inner()

    def __post_init__(self) -> None:
        if self.wait_s <= 0:
            raise ValueError("wait_s: must be above 0")


def test_a_file_becomes_settings(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("name: n1\nwait_s: 2\npeers: {n2: 10.0.0.2}\ndevices: [eth0]\nstate: /tmp\ninner: {size: 9}\n")
    assert load(Sample, file) == Sample("n1", 2.0, {"n2": "10.0.0.2"}, ("eth0",), None, Path("/tmp"), Inner(9))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "name: is required"),
        ({"name": 1}, "name: must be a str, not the int 1"),
        ({"name": "a", "inner": {"size": True}}, "inner.size: must be a int, not the bool True"),
        ({"name": "a", "devices": "eth0"}, "devices: must be a list"),
        ({"name": "a", "devices": [3]}, r"devices\[0\]: must be a str"),
        ({"name": "a", "peers": {"x": 3}}, "peers.x: must be a str"),
        ({"name": "a", "nmae": 1}, "nmae: unknown field; known are"),
        ({"name": "a", "wait_s": 0}, "wait_s: must be above 0"),
        ([], "must be a mapping"),
    ],
)
def test_a_wrong_value_names_its_field(data: object, message: str) -> None:
    with pytest.raises(BadConfig, match=message):
        parse(Sample, data)


def test_text_that_is_not_yaml_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("a: [")
    with pytest.raises(BadConfig, match=r"is not YAML.*line 2"):
        load(Sample, file)
