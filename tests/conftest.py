"""For all tests: shape annotations are checked at run time, and compiled programs are kept between tests and runs."""

import os
import pathlib
import signal

# A shell starts what it runs in the background with Ctrl-C ignored, and children inherit that; tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# How long an example takes says how busy the machine is.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

install_import_hook(["mmjax.models", "mmjax.kernels"], "beartype.beartype")


@pytest.fixture(autouse=True)
def signals_are_left_as_they_were():
    """A disposition that a command leaves behind ends the process of the tests much later: a write to a closed pipe, and no word of it."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before
