"""Which backend computes attention, and why."""

import functools
import logging
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jworld.models.layers.attention import cudnn, splash
from jworld.models.layers.attention.masks import Intervals, Mask
from jworld.utils import hardware

Backend = Literal["xla", "cudnn", "splash"]
#: What a config may say; None is as good as "auto".
Implementation = Literal["auto", "xla", "cudnn", "splash"] | None

#: Below this many queries or keys a kernel has nothing to save.
MIN_LENGTH = 256

_log = logging.getLogger(__name__)


class Choice(NamedTuple):
    """A backend, and the reason in words that follow "because"."""

    backend: Backend
    reason: str


def choose(
    implementation: Implementation,
    *,
    platform: str,
    mask: Mask | Intervals | None,
    key_mask: bool,
    lengths: tuple[int, int],
    heads: int,
    head_dim: int,
    dtype: jnp.dtype,
) -> Choice:
    """The backend for one call; a fall back from one that was asked for, or is usual here, is announced once.

    Args:
      implementation: of the config.
      platform: "cpu", "gpu" or "tpu", of the devices that the program is compiled for.
      mask: as in `attention`.
      key_mask: whether there is one.
      lengths: of queries and keys.
      heads: of q, k and v.
      head_dim: channels per head.
      dtype: of q, k and v.
    """
    usual: Backend = {"gpu": "cudnn", "tpu": "splash"}.get(platform, "xla")  # type: ignore[assignment]
    asked = implementation if implementation not in (None, "auto") else None
    wanted = asked or usual
    if wanted == "xla":
        return Choice("xla", "the config asks for it" if asked else f"there is no kernel for the platform {platform!r}")
    if wanted != usual:
        return _fall_back(f"{wanted} does not run on the platform {platform!r}")
    if not asked and min(lengths) < MIN_LENGTH:
        return Choice("xla", f"{min(lengths)} tokens are too few for a kernel to help")
    if wanted == "cudnn":
        refusal = cudnn.refusal(mask, key_mask=key_mask, head_dim=head_dim, dtype=dtype)
    else:
        refusal = splash.refusal(mask, keys=lengths[1], heads=heads, head_dim=head_dim, dtype=dtype)
    if refusal is not None:
        return _fall_back(refusal)
    return Choice(wanted, "the config asks for it" if asked else f"it is the kernel for the platform {platform!r}")


def target() -> tuple[str, splash.Blocks]:
    """Platform of the devices that the program at hand is compiled for, and the kernel's block sizes there.

    The mesh decides, not the machine: a program for a TPU pod can be compiled on a laptop.
    """
    described = jax.sharding.get_abstract_mesh().abstract_device
    device = jax.devices()[0] if described is None else described
    chip = hardware.of_device(device)
    blocks = splash.BLOCKS.get(chip.name if chip else "", splash.DEFAULT_BLOCKS)
    platform = "gpu" if device.platform in ("cuda", "rocm") else device.platform
    return platform, blocks


@functools.cache
def _fall_back(reason: str) -> Choice:
    _log.warning("attention: %s; XLA computes it instead, which is slower on accelerators", reason)
    return Choice("xla", reason)


def ring_message(heads: int, devices: int) -> str:
    """What happens to heads that do not divide over the devices of a sample."""
    groups = math.gcd(heads, devices)
    split = f"heads are split over {groups} and keys go round" if groups > 1 else "keys go round"
    return f"{heads} heads do not divide over {devices} devices: {split} in rings of {devices // groups}"


@functools.cache
def announce_rings(heads: int, devices: int) -> None:
    """Say it once."""
    _log.warning("attention: %s, computed by XLA", ring_message(heads, devices))
