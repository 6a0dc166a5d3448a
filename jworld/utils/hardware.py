"""Published figures of accelerators, the reference for plans and measured speeds."""

import dataclasses
from typing import Any

import jax

GIB = 2**30
TERA = 1e12
GIGA = 1e9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """Figures of one accelerator.

    Attributes:
      name: common name, such as "v5p" or "h100".
      memory_bytes: high-bandwidth memory.
      flops: dense bfloat16 operations per second; a multiply-add counts as two.
      hbm_bandwidth: bytes per second between memory and the processor.
      ici_bandwidth: bytes per second that the chip can send over all its links (TPU: inter-chip interconnect, GPU:
        NVLink); it can receive as much at the same time.
      linked: number of chips that these links join; None: all of a slice.
      host_chips: chips of a host, which may be fewer than `linked`.
      network_bandwidth: bytes per second that the chip can send to chips that its links do not reach; None without such
        a network.
      kinds: prefixes of `jax.Device.device_kind`, in lower case.
    """

    name: str
    memory_bytes: int
    flops: float
    hbm_bandwidth: float
    ici_bandwidth: float
    kinds: tuple[str, ...]
    linked: int | None = None
    host_chips: int | None = None
    network_bandwidth: float | None = None


# TPU: the tables of https://cloud.google.com/tpu/docs/v4 (v5e, v5p, v6e), where memory is in GiB and the interconnect
# counts both directions. GPU: NVIDIA's data sheets of A100 80GB SXM, H100 SXM, H200 SXM and B200 SXM, without
# sparsity, where memory is in GB and NVLink counts both directions. Their networks are those of DGX A100 (200 Gb/s per
# GPU) and of DGX H100, H200, B200 and GB200 NVL72 (400 Gb/s per GPU).
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            memory_bytes=32 * GIB,
            flops=275 * TERA,
            hbm_bandwidth=1228 * GIGA,
            ici_bandwidth=300 * GIGA,
            kinds=("tpu v4",),
        ),
        Chip(
            name="v5e",
            memory_bytes=16 * GIB,
            flops=197 * TERA,
            hbm_bandwidth=819 * GIGA,
            ici_bandwidth=200 * GIGA,
            kinds=("tpu v5 lite", "tpu v5e"),
        ),
        Chip(
            name="v5p",
            memory_bytes=95 * GIB,
            flops=459 * TERA,
            hbm_bandwidth=2765 * GIGA,
            ici_bandwidth=600 * GIGA,
            kinds=("tpu v5", "tpu v5p"),
        ),
        Chip(
            name="v6e",
            memory_bytes=32 * GIB,
            flops=918 * TERA,
            hbm_bandwidth=1638 * GIGA,
            ici_bandwidth=400 * GIGA,
            kinds=("tpu v6 lite", "tpu v6e"),
        ),
        Chip(
            name="a100",
            memory_bytes=80 * 10**9,
            flops=312 * TERA,
            hbm_bandwidth=2039 * GIGA,
            ici_bandwidth=300 * GIGA,
            kinds=("nvidia a100",),
            linked=8,
            host_chips=8,
            network_bandwidth=25 * GIGA,
        ),
        Chip(
            name="h100",
            memory_bytes=80 * 10**9,
            flops=989 * TERA,
            hbm_bandwidth=3350 * GIGA,
            ici_bandwidth=450 * GIGA,
            kinds=("nvidia h100",),
            linked=8,
            host_chips=8,
            network_bandwidth=50 * GIGA,
        ),
        Chip(
            name="h200",
            memory_bytes=141 * 10**9,
            flops=989 * TERA,
            hbm_bandwidth=4800 * GIGA,
            ici_bandwidth=450 * GIGA,
            kinds=("nvidia h200",),
            linked=8,
            host_chips=8,
            network_bandwidth=50 * GIGA,
        ),
        Chip(
            name="b200",
            memory_bytes=180 * 10**9,
            flops=2250 * TERA,
            hbm_bandwidth=7700 * GIGA,
            ici_bandwidth=900 * GIGA,
            kinds=("nvidia b200",),
            linked=8,
            host_chips=8,
            network_bandwidth=50 * GIGA,
        ),
        Chip(
            name="gb200",
            memory_bytes=186 * 10**9,
            flops=2500 * TERA,
            hbm_bandwidth=8000 * GIGA,
            ici_bandwidth=900 * GIGA,
            kinds=("nvidia gb200",),
            linked=72,
            host_chips=4,
            network_bandwidth=50 * GIGA,
        ),
    )
}


def of_device(device: jax.Device) -> Chip | None:
    """Return the figures of a device, or None for one that is not in the table."""
    kind = device.device_kind.lower()
    # The longest name wins: "TPU v5 lite" is not a "TPU v5".
    matches = {name: chip for chip in CHIPS.values() for name in chip.kinds if kind.startswith(name)}
    return matches[max(matches, key=len)] if matches else None


def target_device() -> Any:
    """Return a device that the current program is compiled for, or the description of one.

    The mesh decides, since a laptop can compile for a TPU pod.
    """
    described = jax.sharding.get_abstract_mesh().abstract_device
    return jax.devices()[0] if described is None else described
