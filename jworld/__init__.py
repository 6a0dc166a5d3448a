"""jworld: interactive video world models in JAX and Flax NNX."""

import time

#: `time.time()` when this process began, before anything slow is imported.
LAUNCHED = time.time()

from jworld.utils import tpu_environment  # noqa: E402

tpu_environment.settle()


def __getattr__(name: str) -> str:
    """Read `__version__` from the installed package's metadata, which pyproject.toml is the source of."""
    if name == "__version__":
        from importlib import metadata

        return metadata.version("jworld")
    raise AttributeError(f"module 'jworld' has no attribute {name!r}")
