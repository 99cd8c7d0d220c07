"""The numbers of rules are those of the maps."""

from netstack.agent.policy.rules import Action, Direction, Name
from netstack.kernel import layout


def test_numbers() -> None:
    assert Direction.INGRESS.enforce == layout.ENFORCE_INGRESS
    assert Direction.EGRESS.enforce == layout.ENFORCE_EGRESS
    assert [*Action] == [layout.ACTION_ALLOW, layout.ACTION_DENY, layout.ACTION_REDIRECT_DNS]
    assert (Name("a", False).field, Name("*", True).field) == ("matchName", "matchPattern")
