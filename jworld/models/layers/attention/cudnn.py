"""Flash attention of cuDNN, on GPUs, through `jax.nn.dot_product_attention`.

cuDNN takes no structured mask except causal ones and windows of earlier keys. Padding and chunks become lengths. Masks
that are not a length become a bias of queries by keys, which all heads share: no logits are stored per head.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jworld.models.layers.attention.base import Backend, Request, target_chip
from jworld.models.layers.attention.masks import Causal, ChunkCausal, Intervals, Mask, Prefix, SlidingWindow

#: JAX's primitive for the forward kernel; its row statistics have no name of their own.
FORWARD = "dot_product_attention_fwd_wrapper"
#: Largest head size, forward and backward, and that of some chips.
#: Source: https://docs.nvidia.com/deeplearning/cudnn/frontend/latest/operations/Attention.html, rows "Bprop".
MAX_HEAD_DIM, MAX_HEAD_DIMS = 128, {"h100": 256, "h200": 256}
#: Largest number of queries times keys of a bias: 256 MiB per sample in bfloat16.
MAX_PAIRS = 2**27

_call = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")


def refusal(request: Request) -> str | None:
    """Return why cuDNN cannot serve a request, or None if it can."""
    if request.dtype not in (jnp.float16, jnp.bfloat16):
        return f"cuDNN supports bfloat16 and float16, not {request.dtype}"
    largest = MAX_HEAD_DIM
    if request.head_dim > largest:
        largest = MAX_HEAD_DIMS.get(target_chip(), MAX_HEAD_DIM)
    if request.head_dim % 8 or request.head_dim > largest:
        return f"cuDNN needs a head size that is a multiple of 8 and at most {largest}, not {request.head_dim}"
    queries, keys = request.lengths
    if _needs_bias(request.mask, request.key_mask) and queries * keys > MAX_PAIRS:
        padded = " with padding" if request.key_mask else ""
        return (
            f"cuDNN supports {type(request.mask).__name__}{padded} for at most {MAX_PAIRS} pairs of a query and a key, "
            f"not {queries} x {keys}"
        )
    return None


def _needs_bias(mask: Mask | Intervals | None, key_mask: bool) -> bool:
    """Return whether cuDNN has no argument for a mask, and needs the dense one."""
    if isinstance(mask, ChunkCausal | None):
        return False
    is_flag = isinstance(mask, Causal | Prefix) or (isinstance(mask, SlidingWindow) and mask.right == 0)
    return key_mask or not is_flag


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, mask: Mask | Intervals | None, key_mask: jax.Array | None
) -> jax.Array:
    """Compute attention: [B, Lq, N, K], [B, Lk, M, K] twice, [B, Lk] key mask -> [B, Lq, N, K] in the dtype of v.

    The output has no name for remat policies, which recognize the kernel by its primitive instead.
    """
    if mask is not None and _needs_bias(mask, key_mask is not None):
        return _with_bias(q, k, v, mask, key_mask)
    match mask:
        case Causal():
            return _even(q, k, v, is_causal=True)
        case SlidingWindow():
            return _even(q, k, v, is_causal=True, local_window_size=(mask.left, 0))
        case Prefix():
            # For rows after the prefix, the causal mask includes the prefix.
            within = _even(*(x[:, : mask.length] for x in (q, k, v)))
            return jnp.concatenate([within, _even(q, k, v, is_causal=True)[:, mask.length :]], axis=1)
    lengths = None
    if key_mask is not None:
        # cuDNN supports lengths but not gaps. Sort valid keys first and keep their order: the valid keys among the
        # first n of the old row are then the first of the new row, so one sorted row serves every chunk.
        order = jnp.argsort(~key_mask, axis=1, stable=True)[:, :, None, None]
        k, v = (jnp.take_along_axis(x, order, axis=1) for x in (k, v))
        lengths = jnp.cumsum(key_mask, axis=1, dtype=jnp.int32)
    if mask is None:
        return _even(q, k, v, lengths=None if lengths is None else lengths[:, -1])
    assert isinstance(mask, ChunkCausal)
    outputs = []
    for start in range(0, q.shape[1], mask.chunk):
        stop, end = start + mask.chunk, mask.prefix + start + mask.chunk
        seen = None if lengths is None else lengths[:, end - 1]
        outputs.append(_even(q[:, start:stop], k[:, :end], v[:, :end], lengths=seen))
    return jnp.concatenate(outputs, axis=1)


def _even(
    q: jax.Array, k: jax.Array, v: jax.Array, *, lengths: jax.Array | None = None, is_causal: bool = False, **more: Any
) -> jax.Array:
    """Call cuDNN with even numbers of queries and keys, as JAX requires for gradients.

    A padded query attends to valid keys like any other, so that its output is finite; the output is cut, so its
    gradient is 0. A padded key is after all queries of a causal mask; else `lengths` [B] int32 excludes it.
    """
    queries, keys = q.shape[1], k.shape[1]
    if keys % 2 and not is_causal and lengths is None:
        lengths = jnp.full(k.shape[0], keys, jnp.int32)
    q, k, v = (_pad(x) for x in (q, k, v))
    out: jax.Array = _call(q, k, v, key_value_seq_lengths=lengths, is_causal=is_causal, **more)
    return out[:, :queries]


def _with_bias(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask | Intervals, key_mask: jax.Array | None
) -> jax.Array:
    """Call cuDNN with a dense mask [B or 1, 1, Lq, Lk], which JAX adds to the logits of all heads as a bias."""
    queries, keys = q.shape[1], k.shape[1]
    if isinstance(mask, Intervals):
        visible = mask.visible(keys)
    else:
        stops, places = jnp.asarray(mask.stops(queries))[:, None], jnp.arange(keys)
        visible = ((places < stops) & (places >= (0 if mask.width is None else stops - mask.width)))[None]
    if key_mask is not None:
        visible = visible & key_mask[:, None, :]
    # A padded query attends to the keys of the last one, and no query to a padded key.
    visible = jnp.pad(visible, [(0, 0), (0, queries % 2), (0, 0)], mode="edge")
    visible = jnp.pad(visible, [(0, 0), (0, 0), (0, keys % 2)])
    out: jax.Array = _call(*(_pad(x) for x in (q, k, v)), mask=visible[:, None])
    return out[:, :queries]


def _pad(x: jax.Array) -> jax.Array:
    """Pad [B, L, N, K] with a row of zeros if L is odd."""
    return jnp.pad(x, [(0, 0), (0, 1), (0, 0), (0, 0)]) if x.shape[1] % 2 else x


BACKEND = Backend(name="cudnn", platforms=("gpu",), refusal=refusal, attention=attention, saved_primitives=(FORWARD,))
