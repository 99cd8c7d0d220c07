import pytest

from netstack.core.errors import BadObject
from netstack.core.ref import Ref
from netstack.source.fields import Fields
from netstack.source.selectors import LabelSelector


def selector(data: object) -> LabelSelector:
    return LabelSelector.parse(Fields(Ref("NetworkPolicy", "a", "b"), data, "spec.podSelector"))


@pytest.mark.parametrize(
    ("data", "labels", "selected"),
    [
        ({}, {}, True),
        ({"matchLabels": {"app": "x"}}, {"app": "x", "b": "c"}, True),
        ({"matchLabels": {"app": "x"}}, {}, False),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["x", "y"]}]}, {"app": "y"}, True),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["x"]}]}, {}, True),
        ({"matchExpressions": [{"key": "app", "operator": "Exists"}]}, {"app": ""}, True),
        ({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}, {"app": ""}, False),
        ({"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "Exists"}]}, {"a": "1"}, False),
    ],
)
def test_selection_is_that_of_kubernetes(data: object, labels: dict[str, str], selected: bool) -> None:
    assert selector(data).matches(labels) is selected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"matchLables": {}}, "spec.podSelector.matchLables: unknown field"),
        ({"matchExpressions": [{"key": "a", "operator": "Has"}]}, "operator: must be one of In, NotIn"),
        ({"matchExpressions": [{"key": "a", "operator": "In"}]}, "values: must be given with operator In"),
        ({"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}, "must not be given"),
    ],
)
def test_a_bad_selector_is_named(data: object, message: str) -> None:
    with pytest.raises(BadObject, match=message):
        selector(data)


def test_of_labels_demands_each() -> None:
    assert LabelSelector.of({"a": "1", "b": "2"}).matches({"b": "2", "a": "1", "c": "3"})
