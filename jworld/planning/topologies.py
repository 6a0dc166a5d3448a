"""Names of topologies, as users and clouds write them, and their devices."""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Mapping
from typing import Literal

import jax

from jworld.planning import gpu_targets
from jworld.utils import errors, hardware

#: Chips of a slice -> its shape. https://cloud.google.com/tpu/docs/v5e and https://cloud.google.com/tpu/docs/v5p
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {
    4: "2x2x1",
    8: "2x2x2",
    16: "2x2x4",
    32: "2x4x4",
    64: "4x4x4",
    128: "4x4x8",
    256: "4x8x8",
    512: "8x8x8",
    1024: "8x8x16",
    2048: "8x16x16",
}
_SHAPES: dict[str, Mapping[int, str]] = {"v4": _CUBES, "v5e": _FLAT, "v5p": _CUBES, "v6e": _FLAT}
#: The number in these names counts tensor cores, two on each chip.
_COUNT_CORES = ("v4", "v5p")
_ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "v6": "v6e"}
#: Largest number of virtual devices or of GPUs in a name; larger ones are probably typing errors.
_MOST = 16_384

KNOWN = (
    "v5e-64, v6e-256 (the number counts chips); v4-64, v5p-128 (it counts cores, two per chip); v5p:4x4x4 (a shape); "
    "cpu:8 (virtual devices); a100-8, h100-64, h200-8, b200-8, gb200-64 (GPUs); h100:8x8 (hosts x GPUs of a host)"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """Devices that a step is planned for.

    Attributes:
      name: as given.
      platform: "tpu" needs libtpu but no TPU, "gpu" the extra `gpu-compiler` or the GPUs, "cpu" means virtual devices.
      chips: number of chips, one JAX device each.
      chip: its figures; None for virtual devices.
      shape: of a TPU slice, such as "4x4x4"; hosts x GPUs of a host, such as "8x8"; else empty.
    """

    name: str
    platform: Literal["tpu", "cpu", "gpu"]
    chips: int
    chip: hardware.Chip | None
    shape: str = ""


def parse(name: str) -> Topology:
    """Parse a name such as v5p-128, v5p:4x4x4, cpu:8, h100-64 or h100:8x8.

    Raises:
      UserError: the name is unknown, or no slice has that size.
    """
    match = re.fullmatch(r"([a-z0-9]+)[:-]([0-9x]+)", name.lower().strip())
    family = _ALIASES.get(match[1], match[1]) if match else ""
    if match is None or (family != "cpu" and family not in hardware.CHIPS):
        raise errors.UserError(f"--topology {name}: unknown name; examples: {KNOWN}")
    chip = hardware.CHIPS.get(family)
    if family in _SHAPES:
        shape = match[2] if "x" in match[2] else _shape(name, family, int(match[2]))
        if shape not in _SHAPES[family].values():
            raise errors.UserError(
                f"--topology {name}: there is no such slice; shapes of {family}: {', '.join(_SHAPES[family].values())}"
            )
        chips = math.prod(map(int, shape.split("x")))
        return Topology(name=name, platform="tpu", chips=chips, chip=chip, shape=shape)
    if chip is not None and "x" in match[2]:
        hosts, per_host = _hosts(name, match[2])
        return Topology(name=name, platform="gpu", chips=hosts * per_host, chip=chip, shape=f"{hosts}x{per_host}")
    if not match[2].isdigit() or not 1 <= int(match[2]) <= _MOST:
        raise errors.UserError(f"--topology {name}: expected a number of devices, as in {family}:8")
    chips = int(match[2])
    if chip is None:
        return Topology(name=name, platform="cpu", chips=chips, chip=None)
    assert chip.host_chips is not None
    per_host = min(chips, chip.host_chips)
    if chips % per_host:
        raise errors.UserError(
            f"--topology {name}: {chips} GPUs do not fill hosts of {per_host}: choose a multiple, or name hosts and "
            f"GPUs of a host, as in {family}:2x4"
        )
    return Topology(name=name, platform="gpu", chips=chips, chip=chip, shape=f"{chips // per_host}x{per_host}")


def _hosts(name: str, shape: str) -> tuple[int, int]:
    """Parse "8x4": hosts and GPUs of each."""
    parts = [int(part) if part.isdigit() else 0 for part in shape.split("x")]
    if len(parts) != 2 or not 1 <= parts[0] * parts[1] <= _MOST:
        raise errors.UserError(f"--topology {name}: expected hosts and GPUs of a host, as in h100:8x8")
    return parts[0], parts[1]


def _shape(name: str, family: str, number: int) -> str:
    per_chip = 2 if family in _COUNT_CORES else 1
    chips, rest = divmod(number, per_chip)
    if rest or chips not in _SHAPES[family]:
        sizes = ", ".join(f"{family}-{size * per_chip}" for size in _SHAPES[family])
        raise errors.UserError(f"--topology {name}: there is no such slice; the slices are {sizes}")
    return _SHAPES[family][chips]


def check_tools(topology: Topology) -> None:
    """Raise a UserError if the compiler for the topology is not installed."""
    if topology.platform == "tpu" and importlib.util.find_spec("libtpu") is None:
        raise errors.UserError(
            f"--topology {topology.name}: the TPU compiler is not installed (it needs no TPU): "
            'pip install -e ".[tpu]", or pip install libtpu'
        )


def missing_gpu_compiler(topology: Topology) -> str:
    """Return the sentence for a GPU topology if neither the compiler nor the GPUs are here."""
    return (
        f"--topology {topology.name}: the GPU compiler is not installed (it needs no GPU): "
        'pip install -e ".[gpu-compiler]"'
    )


def environment(topology: Topology, *, hardware_needed: bool) -> dict[str, str]:
    """Return environment variables of a process that plans for the topology; set them before JAX starts."""
    # Programs from the cache lack their text and their statistics.
    uncached = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    if hardware_needed:
        return uncached | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    is_described = topology.platform == "tpu" or (topology.platform == "gpu" and gpu_targets.is_installed())
    count = 1 if is_described else topology.chips
    flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in f]
    if topology.platform == "tpu":
        # Its compiler has a version of its own, and ends the process at a flag that it does not know.
        flags = [flag for flag in flags if not flag.startswith(("--xla_cpu_", "--xla_gpu_"))]
    flags += gpu_targets.FLAGS if topology.platform == "gpu" else ()
    return uncached | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join([*flags, f"--xla_force_host_platform_device_count={count}"]),
        # Without these the compiler queries a metadata server that only cloud machines have, and does not load while
        # another process uses it.
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }


def can_compile(topology: Topology) -> bool:
    """Return whether programs for the topology can be compiled here."""
    return topology.platform != "gpu" or gpu_targets.is_installed() or is_here(topology)


def is_here(topology: Topology) -> bool:
    """Return whether this machine has the chips of a topology."""
    found = [hardware.of_device(device) for device in jax.devices()]
    return len(found) >= topology.chips and found[0] == topology.chip


def devices(topology: Topology) -> list[jax.Device]:
    """Return the devices: described for a TPU or an absent GPU, real or virtual otherwise."""
    if topology.platform == "cpu" or not can_compile(topology) or is_here(topology):
        return jax.devices()[: topology.chips]
    assert topology.chip is not None
    if topology.platform == "gpu":
        hosts, per_host = map(int, topology.shape.split("x"))
        return gpu_targets.devices(topology.chip, hosts, per_host)
    from jax.experimental import topologies

    # Both cores of a chip are one device on every generation; only v4 needs an option for it.
    options = {"chip_config_name": "megacore"} if topology.chip.name == "v4" else {}
    name = f"{topology.chip.name}:{topology.shape}"
    return list(topologies.get_topology_desc(name, platform="tpu", **options).devices)
