"""What all tests share: how many examples hypothesis draws, and where the shared test inputs lie."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_common = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
settings.register_profile("default", _common, max_examples=30, derandomize=True)
settings.register_profile("thorough", _common, max_examples=1000)
settings.load_profile(os.environ.get("AGENTSHIM_HYPOTHESIS", "default"))
