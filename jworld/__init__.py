"""jworld: interactive video world models in JAX and Flax NNX."""

import time

#: `time.time()` when this process began, before anything slow is imported.
LAUNCHED = time.time()
