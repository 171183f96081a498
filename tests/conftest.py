"""Settings that every test shares."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "default",
    deadline=None,  # the first example of a run pays for imports
    derandomize=True,  # the same examples on every machine
    max_examples=25,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],  # a busy machine is not a fault of the test
)
settings.load_profile("default")
