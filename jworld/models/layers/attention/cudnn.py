"""Flash attention of cuDNN, on GPUs, through `jax.nn.dot_product_attention`."""

import functools

import jax
import jax.numpy as jnp

from jworld.models.layers.attention.base import Backend, Request
from jworld.models.layers.attention.masks import Causal, ChunkCausal, Intervals, Mask, Prefix, SlidingWindow

#: JAX's primitive for the forward kernel; its row statistics have no name of their own.
FORWARD = "dot_product_attention_fwd_wrapper"
_call = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")


def refusal(request: Request) -> str | None:
    """Return why cuDNN cannot serve a request, or None if it can."""
    mask = request.mask
    if request.dtype not in (jnp.float16, jnp.bfloat16):
        return f"cuDNN supports bfloat16 and float16, not {request.dtype}"
    if request.head_dim % 8 or request.head_dim > 128:
        return f"cuDNN needs a head size that is a multiple of 8 and at most 128, not {request.head_dim}"
    if isinstance(mask, Intervals):
        return "cuDNN does not support intervals that depend on the data"
    if request.key_mask and not isinstance(mask, ChunkCausal | None):
        return f"cuDNN does not support padding together with {type(mask).__name__}"
    if isinstance(mask, SlidingWindow) and mask.right:
        return "cuDNN does not support a window of later keys"
    return None


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, mask: Mask | Intervals | None, key_mask: jax.Array | None
) -> jax.Array:
    """Compute attention: [B, Lq, N, K], [B, Lk, M, K] twice, [B, Lk] key mask -> [B, Lq, N, K] in the dtype of v.

    The output has no name for remat policies, which recognize the kernel by its primitive instead.
    """
    if isinstance(mask, Causal):
        return _call(q, k, v, is_causal=True)
    if isinstance(mask, SlidingWindow):
        return _call(q, k, v, is_causal=True, local_window_size=(mask.left, 0))
    if isinstance(mask, Prefix):
        # For rows after the prefix, the causal mask includes the prefix.
        within = _call(*(x[:, : mask.length] for x in (q, k, v)))
        return jnp.concatenate([within, _call(q, k, v, is_causal=True)[:, mask.length :]], axis=1)
    lengths = None
    if key_mask is not None:
        # cuDNN supports lengths but not gaps. Sort valid keys first and keep their order: the valid keys among the
        # first n of the old row are then the first of the new row, so one sorted row serves every chunk.
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


BACKEND = Backend(name="cudnn", platforms=("gpu",), refusal=refusal, attention=attention, saved_primitives=(FORWARD,))
