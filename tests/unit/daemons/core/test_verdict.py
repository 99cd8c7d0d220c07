from netstack.core.verdict import REASONS, Verdict


def test_every_verdict_has_its_words() -> None:
    assert set(REASONS) == set(Verdict)


def test_drops_are_told_by_number() -> None:
    assert Verdict.DEFAULT_DENY.dropped and not Verdict.REPLY.dropped
