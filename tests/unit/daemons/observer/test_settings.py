from __future__ import annotations

import pytest

from netstack.core import settings
from netstack.core.errors import BadConfig
from netstack.observer.settings import ObserverSettings


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ({"keep": 0}, "keep must be at least 1, not 0"),
        ({"pace_s": 2}, "pace_s must be above 0 and at most 1, not 2"),
        ({"refresh_s": 0}, "refresh_s must be above 0"),
    ],
)
def test_a_wrong_setting_is_named(data: dict[str, float], error: str) -> None:
    with pytest.raises(BadConfig, match=error):
        settings.parse(ObserverSettings, data)


def test_everything_has_a_default() -> None:
    assert settings.parse(ObserverSettings, {}) == ObserverSettings()
