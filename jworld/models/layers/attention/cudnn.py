"""Flash attention of cuDNN, on GPUs, through `jax.nn.dot_product_attention`."""

import functools

import jax
import jax.numpy as jnp

from jworld.models.layers.attention.masks import Causal, ChunkCausal, Intervals, Mask, Prefix, SlidingWindow

_call = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")


def refusal(mask: Mask | Intervals | None, *, key_mask: bool, head_dim: int, dtype: jnp.dtype) -> str | None:
    """Why cuDNN cannot serve a request, or None where it can."""
    if dtype not in (jnp.float16, jnp.bfloat16):
        return f"cuDNN computes in bfloat16 and float16, not in {dtype}"
    if head_dim % 8 or head_dim > 128:
        return f"cuDNN wants heads of a multiple of 8 and at most 128, not {head_dim}"
    if isinstance(mask, Intervals):
        return "cuDNN knows no intervals that the data decide"
    if key_mask and not isinstance(mask, ChunkCausal | None):
        return f"cuDNN takes no padding together with {type(mask).__name__}"
    if isinstance(mask, SlidingWindow) and mask.right:
        return "cuDNN has no window that looks ahead"
    return None


def attention(q: jax.Array, k: jax.Array, v: jax.Array, *, mask: Mask | None, key_mask: jax.Array | None) -> jax.Array:
    """[B, Lq, N, K] queries, [B, Lk, M, K] keys and values, [B, Lk] key mask -> [B, Lq, N, K] in the dtype of v.

    What `refusal` names is not to be asked for. The output is not named for remat policies: they know the kernel.
    """
    if isinstance(mask, Causal):
        return _call(q, k, v, is_causal=True)
    if isinstance(mask, SlidingWindow):
        return _call(q, k, v, is_causal=True, local_window_size=(mask.left, 0))
    if isinstance(mask, Prefix):
        # For later rows, seeing what comes before them includes the prefix.
        within = _call(*(x[:, : mask.length] for x in (q, k, v)))
        return jnp.concatenate([within, _call(q, k, v, is_causal=True)[:, mask.length :]], axis=1)
    lengths = None
    if key_mask is not None:
        # cuDNN knows lengths, no holes. In a row whose valid keys come first, in their old order, those of the first
        # n places of the old row are the first ones again: one sorted row serves every chunk.
        order = jnp.argsort(~key_mask, axis=1, stable=True)[:, :, None, None]
        k, v = (jnp.take_along_axis(x, order, axis=1) for x in (k, v))
        lengths = jnp.cumsum(key_mask, axis=1, dtype=jnp.int32)
    if mask is None:
        return _call(q, k, v, key_value_seq_lengths=None if lengths is None else lengths[:, -1])
    assert isinstance(mask, ChunkCausal)
    outputs = []
    for start in range(0, q.shape[1], mask.chunk):
        stop, end = start + mask.chunk, mask.prefix + start + mask.chunk
        seen = None if lengths is None else lengths[:, end - 1]
        outputs.append(_call(q[:, start:stop], k[:, :end], v[:, :end], key_value_seq_lengths=seen))
    return jnp.concatenate(outputs, axis=1)
