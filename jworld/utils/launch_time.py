"""The time at which this process began; the package imports this module before anything slow."""

import time

#: `time.time()` when `jworld` was imported first.
LAUNCHED = time.time()
