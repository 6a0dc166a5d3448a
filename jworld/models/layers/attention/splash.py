"""Splash attention: JAX's Pallas kernel for TPUs, which skips the blocks that a mask hides.

https://github.com/jax-ml/jax/tree/main/jax/experimental/pallas/ops/tpu/splash_attention
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask

from jworld.models.layers.attention.masks import Intervals, Mask
from jworld.models.layers.attention.names import OUTPUT_NAME

LANES = 128


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Rows of queries and keys that a kernel holds in the chip's vector memory at once, forward and backward.

    Attributes:
      queries, keys: rows of a block at most; a shorter sequence has smaller ones.
      keys_at_once: keys per matrix product of the forward pass and of the gradient of keys and values.
    """

    queries: int
    keys: int
    keys_at_once: int


# By the name of the chip in jworld/utils/hardware.py.
BLOCKS: dict[str, Blocks] = {
    "v4": Blocks(512, 1024, 512),
    "v5e": Blocks(1024, 1024, 512),
    "v5p": Blocks(1024, 1024, 512),
    "v6e": Blocks(1024, 1024, 512),
}
#: For a generation that is not in the table.
DEFAULT_BLOCKS = BLOCKS["v4"]


#: Wider heads leave no room for the blocks.
MAX_HEAD_DIM = 256


#: Both ends of an interval that the data decide share one number, int32, of the kernel.
PLACE_BITS = 15


def refusal(mask: Mask | Intervals | None, *, keys: int, heads: int, head_dim: int, dtype: jnp.dtype) -> str | None:
    """Why splash cannot serve a request, or None where it can."""
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    if dtype != jnp.float32 and precision not in (None, "default", "bfloat16"):
        return f"splash takes {dtype} at JAX's default precision of matrix products only"
    if head_dim > MAX_HEAD_DIM:
        return f"splash takes heads of at most {MAX_HEAD_DIM}, not {head_dim}"
    if isinstance(mask, Intervals) and keys > 1 << PLACE_BITS:
        return f"splash takes intervals that the data decide among at most {1 << PLACE_BITS} keys, not {keys}"
    if heads == 1 and jax.sharding.get_abstract_mesh().size > 1:
        return "splash on a mesh wants heads to split, not a single one"
    return None


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: Mask | Intervals | None,
    key_mask: jax.Array | None,
    blocks: Blocks = DEFAULT_BLOCKS,
    interpret: bool = False,
) -> jax.Array:
    """[B, Lq, N, K] queries, [B, Lk, M, K] keys and values, [B, Lk] key mask -> [B, Lq, N, K] in the dtype of q.

    `interpret` runs the kernel's steps on a CPU.
    """
    (queries, block_q), (keys, block_k) = _fit(q.shape[1], blocks.queries), _fit(k.shape[1], blocks.keys)
    structure = _structure(mask, (q.shape[1], k.shape[1]), (queries, keys))
    at_once = block_k if block_k % blocks.keys_at_once else blocks.keys_at_once
    # Query heads that share a key head are one call of the kernel for a single key head.
    group = q.shape[2] // k.shape[2]
    make = kernels.make_splash_mha_single_device if group == 1 else kernels.make_splash_mqa_single_device
    kernel = make(
        splash_attention_mask.MultiHeadMask([structure] * (q.shape[2] if group == 1 else group)),
        block_sizes=kernels.BlockSizes(
            block_q=block_q,
            block_kv=block_k,
            block_kv_compute=at_once,
            block_q_dkv=block_q,
            block_kv_dkv=block_k,
            block_kv_dkv_compute=at_once,
            block_q_dq=block_q,
            block_kv_dq=block_k,
        ),
        residual_checkpoint_name=OUTPUT_NAME,
        interpret=interpret,
    )
    length, shape = q.shape[1], q.shape
    # The kernel knows no scale.
    q = _heads_first(q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype), queries)
    k, v = _heads_first(k, keys), _heads_first(v, keys)
    if group > 1:
        q = q.reshape(shape[0], -1, group, *q.shape[2:])
    segments = packed = None
    if key_mask is not None:
        # Padding is a segment of its own, which no query is part of.
        valid = jnp.pad(key_mask.astype(jnp.int32), [(0, 0), (0, keys - key_mask.shape[1])])
        segments = kernels.SegmentIds(q=jnp.ones((q.shape[0], queries), jnp.int32), kv=valid)
    if isinstance(mask, Intervals):
        packed = jnp.pad(mask.stops << PLACE_BITS | mask.starts, [(0, 0), (0, queries - length)], mode="edge")

    def sample(q: jax.Array, k: jax.Array, v: jax.Array, segments: Any, packed: jax.Array | None) -> jax.Array:
        told = kernel if packed is None else _told(kernel, packed)
        return (jax.vmap(told, in_axes=(0, 0, 0, None)) if group > 1 else told)(q, k, v, segments)

    out = jax.vmap(sample)(q, k, v, segments, packed)
    return jnp.swapaxes(out.reshape(shape[0], shape[2], queries, -1), 1, 2)[:, :length]


def _told(kernel: Any, numbers: jax.Array) -> Any:
    """The kernel with other numbers [queries] for its mask function than those of its mask."""
    infos = (kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info)
    return type(kernel)(*(info._replace(q_sequence=numbers) for info in infos), **kernel.kwargs)


def _fit(length: int, block: int) -> tuple[int, int]:
    """A length padded to whole blocks, and the size of these: multiples of the lanes of a vector register."""
    count = math.ceil(length / block)
    size = math.ceil(length / count / LANES) * LANES
    return count * size, size


def _heads_first(x: jax.Array, length: int) -> jax.Array:
    """[B, L, N, K] -> [B, N, length, K], zeros behind L."""
    return jnp.pad(jnp.swapaxes(x, 1, 2), [(0, 0), (0, 0), (0, length - x.shape[1]), (0, 0)])


def _structure(
    mask: Mask | Intervals | None, lengths: tuple[int, int], padded: tuple[int, int]
) -> splash_attention_mask.Mask:
    queries, keys = lengths
    if mask is None and keys == padded[1]:
        return splash_attention_mask.FullMask(padded)
    told = isinstance(mask, Intervals)
    if isinstance(mask, Intervals):
        mask = mask.within
    stops = np.full(queries, keys, np.int32) if mask is None else mask.stops(queries)
    # Padded queries see what the last one sees: no row without a key.
    stops = np.pad(stops, (0, padded[0] - queries), mode="edge")
    return _Structure(padded, stops, keys=keys, width=None if mask is None else mask.width, told=told)


def _within_packed(packed: Any, places: Any) -> Any:
    """The mask function of intervals that the data decide, both ends in one number."""
    return (places < packed >> PLACE_BITS) & (places >= packed & (1 << PLACE_BITS) - 1)


class _Structure(splash_attention_mask.Mask):
    """What a mask of `masks` shows, computed inside the kernel from one number per query: where its interval stops.

    The kernel's own mask classes have these attributes: `q_sequence`, the numbers, and `mask_function`, which gets
    them and the places of keys. With `told`, the kernel is told other numbers (`_told`), for intervals that the data
    decide, and this mask is only what they lie within.
    """

    def __init__(self, shape: tuple[int, int], stops: np.ndarray, *, keys: int, width: int | None, told: bool):
        self._shape, self._keys, self._width, self._is_told = shape, keys, width, told
        # A clipped stop is no measure of where a window begins.
        self.q_sequence = np.minimum(stops, keys) if width is None else stops
        clipped = width is not None and stops[-1] > keys

        def visible(stops: Any, places: Any) -> Any:
            seen = places < stops
            if width is not None:
                seen = seen & (places >= stops - width)
            return seen & (places < keys) if clipped else seen

        self._visible = visible
        self.mask_function = _within_packed if told else visible

    @property
    def shape(self) -> tuple[int, int]:
        return self._shape

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        """[rows, columns] bool; a single value for a block that is seen as a whole or not at all, which most are."""
        rows, columns = index
        stops = self.q_sequence[rows]
        first, last = min(int(stops[0]), self._keys), min(int(stops[-1]), self._keys)
        starts = np.zeros_like(stops) if self._width is None else stops - self._width
        if columns.stop <= first and columns.start >= starts[-1]:
            return np.ones((1, 1), bool)
        if columns.start >= last or columns.stop <= starts[0]:
            return np.zeros((1, 1), bool)
        return self._visible(stops[:, None], np.arange(columns.start, columns.stop))

    def _key(self) -> tuple[Any, ...]:
        return self._shape, self._keys, self._width, self._is_told, self.q_sequence.tobytes()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Structure) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())
