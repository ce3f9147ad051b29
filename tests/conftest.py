"""Settings for all tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# No deadlines: the machine may be busy, and no test judges by the clock.
_CALM = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("posthouse", **_CALM)  # type: ignore[arg-type]
settings.register_profile("long", max_examples=20_000, **_CALM)  # type: ignore[arg-type]
settings.load_profile("posthouse")
