import json

import pytest

from netstack.source.depth import DEPTH, TOO_DEEP, load, shallow


def nested(levels: int, text: str = "[%s]") -> str:
    before, after = text.split("%s")
    return before * levels + "1" + after * levels


def depth(value: object) -> int:
    levels = 0
    while isinstance(value, list):
        value, levels = value[0], levels + 1
    return levels


def test_what_is_as_deep_as_objects_are_stays_as_it_is() -> None:
    value = {"a": [1, "[[", None, {"b": [[True]]}]}
    assert shallow(value) == value == load(json.dumps(value).encode())
    assert shallow(load(nested(DEPTH).encode())) == json.loads(nested(DEPTH))
    assert depth(shallow(load(nested(DEPTH + 1).encode()))) == DEPTH


@pytest.mark.parametrize("text", ["[%s]", '{"a": %s}', '["]", %s, "[\\"[", {"}": "{"}]'])
def test_what_is_deeper_than_python_goes_is_cut_off_and_what_stands_beside_it_stays(text: str) -> None:
    found = load(f'{{"items": [{nested(5_000, text)}, {{"a": "b"}}]}}'.encode())
    assert found["items"][1] == {"a": "b"}
    assert TOO_DEEP in json.dumps(found) and json.loads(json.dumps(shallow(found)))["items"][1] == {"a": "b"}


def test_what_is_no_json_is_still_none() -> None:
    for text in ("[1", nested(5_000)[:-1], "[" * 5_000, '["' * 5_000):
        with pytest.raises(json.JSONDecodeError):
            load(text.encode())
