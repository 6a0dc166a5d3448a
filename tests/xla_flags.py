"""XLA flags of the tests, most of whose time is compilation."""

import importlib.metadata

#: The newer kernels of the CPU take twice as long to compile. From jaxlib 0.11 on they cannot be turned off.
_OLD_KERNELS = "--xla_cpu_use_fusion_emitters=false"
#: Parts of a program that are compiled at once: more cost time in all, and the tests use all cores anyway.
_ONE_PART = "--xla_cpu_parallel_codegen_split_count=1"


def for_tpu() -> str:
    """Return the flags for one device without those that the TPU compiler does not know, which would end it."""
    return _without_kernels(1)


def fast_compilation(devices: int) -> str:
    """Return flags for `devices` virtual devices and for programs that run only once or twice."""
    version = tuple(int(part) for part in importlib.metadata.version("jaxlib").split(".")[:2])
    kernels = f" {_OLD_KERNELS}" if version < (0, 11) else ""
    return f"{_without_kernels(devices)} {_ONE_PART}{kernels}"


def _without_kernels(devices: int) -> str:
    return f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
