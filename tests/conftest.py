"""What every test of the suite runs under."""

from hypothesis import HealthCheck, settings

# A busy machine must not fail a test: no example has a deadline.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")
