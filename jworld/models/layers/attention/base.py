"""The entry of an attention backend in the registry, the request of one call, and the target of compilation."""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

from jworld.models.layers.attention.masks import Intervals, Mask
from jworld.utils import hardware


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One attention call, as far as a backend must know it to accept or refuse it.

    Attributes:
      mask: as in `attention`.
      key_mask: whether there is a padding mask.
      lengths: number of queries and of keys.
      heads: query heads.
      head_dim: channels per head.
      dtype: of q, k and v.
    """

    mask: Mask | Intervals | None
    key_mask: bool
    lengths: tuple[int, int]
    heads: int
    head_dim: int
    dtype: jnp.dtype


class AttentionFunction(Protocol):
    """Attention on one device."""

    def __call__(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        *,
        mask: Mask | Intervals | None,
        key_mask: jax.Array | None,
    ) -> jax.Array:
        """[B, Lq, N, K] queries, [B, Lk, M, K] keys and values, [B, Lk] bool key mask -> [B, Lq, N, K]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backend:
    """An implementation of attention. Each backend module defines one, and `backends.BACKENDS` lists them.

    Attributes:
      name: value of `config.model.attention` that selects it.
      platforms: platforms it runs on: "cpu", "gpu", "tpu".
      refusal: why the backend cannot serve a request, or None if it can.
      attention: called only with requests that `refusal` accepts. It names its output `OUTPUT_NAME`, so that remat
        policies can save it.
      splits_queries: the backend consists of XLA operations, so the compiler can split its queries over devices. Other
        backends run per device and need whole sequences.
      saved_primitives: JAX primitives whose outputs remat policies save, for a kernel that cannot name its output.
    """

    name: str
    platforms: tuple[str, ...]
    refusal: Callable[[Request], str | None]
    attention: AttentionFunction
    splits_queries: bool = False
    saved_primitives: tuple[str, ...] = ()


def target_platform() -> str:
    """Return "cpu", "gpu" or "tpu": the platform that the current program is compiled for."""
    platform: str = hardware.target_device().platform
    return "gpu" if platform in ("cuda", "rocm") else platform


def target_chip() -> str:
    """Return the name of the chip that the current program is compiled for, as in `utils.hardware`, "" if unknown."""
    chip = hardware.of_device(hardware.target_device())
    return chip.name if chip else ""
