import pytest
import yaml

from netstack.core.documents import load, load_all


def test_documents_as_pyyaml_reads_them() -> None:
    text = "a: 1\n---\n---\n[b, {c: null}]\n"
    assert load_all(text) == [{"a": 1}, ["b", {"c": None}]] == [d for d in yaml.safe_load_all(text) if d is not None]
    assert load("") is None and load("{a: {b: [1]}}") == {"a": {"b": [1]}}


@pytest.mark.parametrize(
    "text", ["a: 1\na: 2\n", "x: {a: 1, b: 2, 'a': 3}\n", "- [{a: 1, a: 1}]\n", "a: &x {b: 1, b: 2}\nc: *x\n"]
)
def test_a_key_that_stands_twice_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(yaml.YAMLError, match=r"the key '[ab]' stands in one mapping twice"):
        load(text)


def test_a_key_may_stand_again_where_another_mapping_is_merged() -> None:
    merged = "a: &a {x: 1, y: 2}\nb: &b\n  <<: *a\n  x: 3\nc:\n  <<: *b\n  x: 4\nd: *b\n"
    assert load(merged) == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 4, "y": 2}, "d": {"x": 3, "y": 2}}
    several = "a: &a {x: 1}\nb: &b {x: 2}\nc: {<<: [*a, *b], z: 0}\n"
    assert load(several)["c"] == {"x": 1, "z": 0}


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        (
            r'{"a": "\ud83d\ude00", "b": [1, 2.5, true, null, "1e3"]}',
            [{"a": "\U0001f600", "b": [1, 2.5, True, None, "1e3"]}],
        ),
        ('\n {"a": {}}\n', [{"a": {}}]),
        ('{"a": 1}\n---\n{"b": 2}\n', [{"a": 1}, {"b": 2}]),
        ("{a: b}", [{"a": "b"}]),
        ('{"a": NaN}', [{"a": "NaN"}]),
        ('{"a": 012}', [{"a": 10}]),
    ],
)
def test_json_is_read_as_json_and_what_only_looks_like_it_as_yaml(text: str, meaning: list[object]) -> None:
    assert load_all(text) == meaning


def test_a_date_is_text_as_it_is_to_the_api_server() -> None:
    assert load("{2020-01-01: 2001-12-14, a: 2001-12-14T21:59:43.10-05:00}") == {
        "2020-01-01": "2001-12-14",
        "a": "2001-12-14T21:59:43.10-05:00",
    }


@pytest.mark.parametrize(
    "text", ["&a [*a]", "x: &a {x: *a}", "a: !!binary aGk=", "{!!binary aGk= : 1}", "a: .nan", "!!set {a}"]
)
def test_what_json_cannot_hold_is_refused(text: str) -> None:
    for read in (load, load_all):
        with pytest.raises(yaml.YAMLError, match="a document that JSON cannot hold: "):
            read(text)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', r'{"a": "\ud83d"}', '{"a": ' + 5000 * "["])
def test_json_that_no_document_can_be_is_refused(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        load_all(text)


def test_no_tag_makes_anything_but_plain_values() -> None:
    with pytest.raises(yaml.YAMLError):
        load("!!python/object/apply:os.system ['true']")
