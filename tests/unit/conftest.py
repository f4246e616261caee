"""Properties are tried with the same examples in every run and for as long as that takes: searching
at random is what ``scripts/fuzz`` does, and a busy machine is no failure."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "repeatable",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")
