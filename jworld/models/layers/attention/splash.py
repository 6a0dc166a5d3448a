"""Splash attention: JAX's Pallas kernel for TPUs, which skips fully masked blocks.

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

from jworld.models.layers.attention.base import Backend, Request, target_chip
from jworld.models.layers.attention.masks import Intervals, Mask
from jworld.models.layers.attention.names import OUTPUT_NAME

LANES = 128


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Rows of queries and keys that the kernel holds in vector memory at once, forward and backward.

    Attributes:
      queries, keys: largest number of rows in a block; shorter sequences use smaller blocks.
      keys_at_once: keys per matrix product of the forward pass and of the gradient of keys and values.
    """

    queries: int
    keys: int
    keys_at_once: int


#: Block sizes by the name of the chip in `jworld.utils.hardware`.
BLOCKS: dict[str, Blocks] = {
    "v4": Blocks(512, 1024, 512),
    "v5e": Blocks(1024, 1024, 512),
    "v5p": Blocks(1024, 1024, 512),
    "v6e": Blocks(1024, 1024, 512),
}
#: Block sizes of a chip that is not in the table.
DEFAULT_BLOCKS = BLOCKS["v4"]
#: Larger heads leave no room for the blocks in vector memory.
MAX_HEAD_DIM = 256
#: Bits per end of an interval that depends on the data: the kernel takes both ends packed into one int32.
PLACE_BITS = 15


def refusal(request: Request) -> str | None:
    """Return why splash cannot serve a request, or None if it can."""
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    keys = request.lengths[1]
    if request.dtype != jnp.float32 and precision not in (None, "default", "bfloat16"):
        return f"splash supports {request.dtype} only at JAX's default precision of matrix products, not {precision!r}"
    if request.head_dim > MAX_HEAD_DIM:
        return f"splash supports a head size of at most {MAX_HEAD_DIM}, not {request.head_dim}"
    if isinstance(request.mask, Intervals) and keys > 1 << PLACE_BITS:
        return f"splash supports intervals that depend on the data for at most {1 << PLACE_BITS} keys, not {keys}"
    if request.heads == 1 and jax.sharding.get_abstract_mesh().size > 1:
        return "splash on several devices needs more than one head"
    return None


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: Mask | Intervals | None,
    key_mask: jax.Array | None,
    blocks: Blocks | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Compute attention: [B, Lq, N, K], [B, Lk, M, K] twice, [B, Lk] key mask -> [B, Lq, N, K] in the dtype of q.

    `blocks` defaults to those of the chip that the program is compiled for; `interpret` runs the kernel on a CPU.
    """
    blocks = blocks or BLOCKS.get(target_chip(), DEFAULT_BLOCKS)
    (queries, block_q), (keys, block_k) = _fit(q.shape[1], blocks.queries), _fit(k.shape[1], blocks.keys)
    structure = _structure(mask, (q.shape[1], k.shape[1]), (queries, keys))
    at_once = block_k if block_k % blocks.keys_at_once else blocks.keys_at_once
    # Query heads that share a key head go through the kernel for a single key head in one call.
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
    # The kernel does not scale the logits.
    q = _heads_first(q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype), queries)
    k, v = _heads_first(k, keys), _heads_first(v, keys)
    if group > 1:
        q = q.reshape(shape[0], -1, group, *q.shape[2:])
    segments = packed = None
    if key_mask is not None:
        # Padding forms a segment that contains no query.
        valid = jnp.pad(key_mask.astype(jnp.int32), [(0, 0), (0, keys - key_mask.shape[1])])
        segments = kernels.SegmentIds(q=jnp.ones((q.shape[0], queries), jnp.int32), kv=valid)
    if isinstance(mask, Intervals):
        packed = jnp.pad(mask.stops << PLACE_BITS | mask.starts, [(0, 0), (0, queries - length)], mode="edge")

    def sample(q: jax.Array, k: jax.Array, v: jax.Array, segments: Any, packed: jax.Array | None) -> jax.Array:
        own = kernel if packed is None else _with_numbers(kernel, packed)
        result: jax.Array = (jax.vmap(own, in_axes=(0, 0, 0, None)) if group > 1 else own)(q, k, v, segments)
        return result

    out = jax.vmap(sample)(q, k, v, segments, packed)
    return jnp.swapaxes(out.reshape(shape[0], shape[2], queries, -1), 1, 2)[:, :length]


def _with_numbers(kernel: Any, numbers: jax.Array) -> Any:
    """Return the kernel with other inputs [queries] to its mask function than those of its mask."""
    infos = (kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info)
    return type(kernel)(*(info._replace(q_sequence=numbers) for info in infos), **kernel.kwargs)


def _fit(length: int, block: int) -> tuple[int, int]:
    """Return a length padded to whole blocks and their size, a multiple of the lanes of a vector register."""
    count = math.ceil(length / block)
    size = math.ceil(length / count / LANES) * LANES
    return count * size, size


def _heads_first(x: jax.Array, length: int) -> jax.Array:
    """Transpose [B, L, N, K] to [B, N, length, K], padded with zeros after L."""
    return jnp.pad(jnp.swapaxes(x, 1, 2), [(0, 0), (0, 0), (0, length - x.shape[1]), (0, 0)])


def _structure(
    mask: Mask | Intervals | None, lengths: tuple[int, int], padded: tuple[int, int]
) -> splash_attention_mask.Mask:
    queries, keys = lengths
    if mask is None and keys == padded[1]:
        return splash_attention_mask.FullMask(padded)
    from_data = isinstance(mask, Intervals)
    if isinstance(mask, Intervals):
        mask = mask.within
    stops = np.full(queries, keys, np.int32) if mask is None else mask.stops(queries)
    # Padded queries attend to the keys of the last one, so no row is without keys.
    stops = np.pad(stops, (0, padded[0] - queries), mode="edge")
    return _Structure(padded, stops, keys=keys, width=None if mask is None else mask.width, from_data=from_data)


def _within_packed(packed: Any, places: Any) -> Any:
    """Evaluate the mask of intervals that depend on the data, with both ends packed into one number."""
    return (places < packed >> PLACE_BITS) & (places >= packed & (1 << PLACE_BITS) - 1)


class _Structure(splash_attention_mask.Mask):
    """A mask of `masks`, computed inside the kernel from one number per query: the stop of its interval.

    The kernel's own mask classes have these attributes: `q_sequence`, the numbers, and `mask_function`, which takes
    them and the positions of keys. With `from_data`, intervals depend on the data: the kernel receives other numbers
    (`_with_numbers`), and this mask only bounds them.
    """

    def __init__(self, shape: tuple[int, int], stops: np.ndarray, *, keys: int, width: int | None, from_data: bool):
        self._shape, self._keys, self._width, self._from_data = shape, keys, width, from_data
        # The start of a window follows from its stop before clipping.
        self.q_sequence = np.minimum(stops, keys) if width is None else stops
        clipped = width is not None and stops[-1] > keys

        def visible(stops: Any, places: Any) -> Any:
            seen = places < stops
            if width is not None:
                seen = seen & (places >= stops - width)
            return seen & (places < keys) if clipped else seen

        self._visible = visible
        self.mask_function = _within_packed if from_data else visible

    @property
    def shape(self) -> tuple[int, int]:
        return self._shape

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        """Return [rows, columns] bool, or [1, 1] for a block that is fully visible or fully masked, as most are."""
        rows, columns = index
        stops = self.q_sequence[rows]
        first, last = min(int(stops[0]), self._keys), min(int(stops[-1]), self._keys)
        starts = np.zeros_like(stops) if self._width is None else stops - self._width
        if columns.stop <= first and columns.start >= starts[-1]:
            return np.ones((1, 1), bool)
        if columns.start >= last or columns.stop <= starts[0]:
            return np.zeros((1, 1), bool)
        visible: np.ndarray = self._visible(stops[:, None], np.arange(columns.start, columns.stop))
        return visible

    def _key(self) -> tuple[Any, ...]:
        return self._shape, self._keys, self._width, self._from_data, self.q_sequence.tobytes()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Structure) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


BACKEND = Backend(name="splash", platforms=("tpu",), refusal=refusal, attention=attention)
