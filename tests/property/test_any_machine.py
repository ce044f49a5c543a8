"""The one profile of all property tests: a loaded machine fails none of them."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@given(st.none())
def test_no_property_test_is_judged_by_time(nothing: None) -> None:
    assert settings().deadline is None
    assert HealthCheck.too_slow in settings().suppress_health_check
