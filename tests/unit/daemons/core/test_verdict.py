import pytest

from netstack.core.verdict import REASONS, Verdict


def test_every_verdict_has_its_words() -> None:
    assert set(REASONS) == set(Verdict)


def test_a_number_of_another_release_is_told_by_number() -> None:
    for number, dropped in ((99, False), (250, True)):
        verdict = Verdict(number)
        assert (verdict.name, verdict.dropped, Verdict.of(verdict.name)) == (f"VERDICT_{number}", dropped, number)
        assert verdict.reason == "of another release's programs"
    assert Verdict.of("REPLY") is Verdict.REPLY and len(Verdict) == len(REASONS)
    for wrong in (256, -1, "x"):
        with pytest.raises(ValueError, match="is not a valid Verdict"):
            Verdict(wrong)


def test_drops_are_told_by_number() -> None:
    assert Verdict.DEFAULT_DENY.dropped and not Verdict.REPLY.dropped
