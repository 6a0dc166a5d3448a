"""Descriptions of NVIDIA GPUs for XLA's compiler, which then compiles for GPUs that are not there."""

import dataclasses
import importlib.util

import jax
from jax._src.cudnn import fused_attention_stablehlo

from jworld.utils import hardware

#: Packages of the extra `gpu-compiler`, by the module that each of them installs.
MODULES = ("jax_cuda13_plugin", "jax_plugins.xla_cuda13", "nvidia.cudnn")
#: Without a GPU nothing is tuned, and products that Triton computes may find no size of their blocks.
FLAGS = ("--xla_gpu_enable_triton_gemm=false",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """Figures of one GPU as the compiler takes them.

    Source: the files of openxla/xla in xla/backends/gpu/target_config/specs, which were read from the devices.

    Attributes:
      kind: `device_kind` of the device.
      capability: CUDA compute capability, major version.
      cores: streaming multiprocessors.
      lanes: float32 units of each.
      shared: bytes of shared memory of each.
      optin: bytes of shared memory that one block may have.
      memory, bandwidth, cache: bytes, bytes per second, bytes of the L2 cache.
      clock: GHz.
    """

    kind: str
    capability: int
    cores: int
    lanes: int = 128
    shared: int = 233_472
    optin: int = 232_448
    memory: int
    bandwidth: int
    cache: int
    clock: float


TARGETS: dict[str, Target] = {
    "a100": Target(
        kind="NVIDIA A100-SXM4-80GB",
        capability=8,
        cores=108,
        lanes=64,
        shared=167_936,
        optin=166_912,
        memory=85_100_068_864,
        bandwidth=2_039_040_000_000,
        cache=41_943_040,
        clock=1.41,
    ),
    "h100": Target(
        kind="NVIDIA H100 80GB HBM3",
        capability=9,
        cores=132,
        memory=84_978_434_048,
        bandwidth=3_352_320_000_000,
        cache=52_428_800,
        clock=1.98,
    ),
    "h200": Target(
        kind="NVIDIA H200 141GB HBM3e",
        capability=9,
        cores=132,
        memory=151_397_597_184,
        bandwidth=4_800_000_000_000,
        cache=52_428_800,
        clock=1.98,
    ),
    "b200": Target(
        kind="NVIDIA B200",
        capability=10,
        cores=148,
        memory=191_514_411_008,
        bandwidth=7_672_320_000_000,
        cache=132_644_864,
        clock=1.965,
    ),
    "gb200": Target(
        kind="NVIDIA GB200",
        capability=10,
        cores=152,
        memory=197_897_748_480,
        bandwidth=7_928_064_000_000,
        cache=135_528_448,
        clock=2.062,
    ),
}


def is_installed() -> bool:
    """Return whether the compiler and the cuDNN that it asks are installed."""
    try:
        return all(importlib.util.find_spec(name) is not None for name in MODULES)
    except ModuleNotFoundError:
        # A package above one of the modules is missing.
        return False


def devices(chip: hardware.Chip, hosts: int, per_host: int) -> list[jax.Device]:
    """Describe the GPUs of so many hosts; needs the extra `gpu-compiler` and `JAX_PLATFORMS=cpu`."""
    from jax.experimental import topologies

    _describe_to_cudnn(TARGETS[chip.name])
    found = topologies.get_topology_desc(
        platform="cuda", target_config=description(TARGETS[chip.name]), topology=f"1x{hosts}x{per_host}"
    )
    return list(found.devices)


def description(target: Target) -> str:
    """Return the text of XLA's `GpuTargetConfigProto`."""
    extension = "ACCELERATED_FEATURES" if target.capability >= 9 else "NONE"
    fields: dict[str, int | float | str] = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49_152,
        "shared_memory_per_core": target.shared,
        "threads_per_core_limit": 2048,
        "core_count": target.cores,
        "fpus_per_core": target.lanes,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65_535,
        "block_dim_limit_z": 65_535,
        "memory_bandwidth": target.bandwidth,
        "l2_cache_size": target.cache,
        "clock_rate_ghz": target.clock,
        "device_memory_size": target.memory,
        "shared_memory_per_block_optin": target.optin,
        "cuda_compute_capability": f"{{ major: {target.capability} minor: 0 feature_extension: {extension} }}",
        "registers_per_core_limit": 65_536,
        "registers_per_block_limit": 65_536,
    }
    lines = "\n".join(
        f"  {name} {value}" if isinstance(value, str) else f"  {name}: {value}" for name, value in fields.items()
    )
    return (
        f"gpu_device_info {{\n{lines}\n}}\n"
        'platform_name: "CUDA"\n'
        "dnn_version_info { major: 9 minor: 10 patch: 0 }\n"
        f'device_description_str: "{target.kind}"\n'
    )


def _describe_to_cudnn(target: Target) -> None:
    """Make JAX's checks of cuDNN's limits use the capability of the target; they query the GPU of this machine."""

    def at_least(capability: str) -> bool:
        return target.capability >= float(capability)

    def equal(capability: str) -> bool:
        return target.capability == float(capability)

    fused_attention_stablehlo.check_compute_capability = at_least
    fused_attention_stablehlo.is_cuda_compute_capability_equal = equal
