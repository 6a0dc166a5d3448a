"""Quiet start of JAX on machines that have the TPU library but no TPU.

The library comes with `pip install libtpu`, which planning for TPUs needs. Loaded without a TPU, it queries the
metadata server of a cloud machine for seconds, and prints errors before JAX falls back to other devices.
"""

import glob
import importlib.util
import os
from collections.abc import MutableMapping

#: Device files of a TPU; the second of those whose driver is VFIO.
DEVICES = ("/dev/accel*", "/dev/vfio/[0-9]*")
#: Settings of the library that describe no TPU and do not choose one.
_NEUTRAL = ("TPU_SKIP_MDS_QUERY", "TPU_MIN_LOG_LEVEL", "TPU_STDERR_LOG_LEVEL", "TPU_LOG_DIR")
#: Variables that the library otherwise queries, for a single host. Without a TPU it then stops at once and silently.
ABSENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def settle(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Set `ABSENT` in `environment` if this machine surely has no TPU; return whether it was set.

    Nothing changes where the library is not installed, where a device file of a TPU exists, or where a variable that
    chooses JAX's platform or describes a TPU is set. To be called before JAX initializes its devices.
    """
    described = any(name.startswith("TPU_") and name not in _NEUTRAL for name in environment)
    if described or environment.get("JAX_PLATFORMS") or "JAX_FORCE_TPU_INIT" in environment:
        return False
    if any(glob.glob(pattern) for pattern in DEVICES) or importlib.util.find_spec("libtpu") is None:
        return False
    environment.update(ABSENT)
    return True
