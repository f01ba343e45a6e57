"""Hypothesis without its limits on time, which a busy machine exceeds."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("roost", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("roost")
