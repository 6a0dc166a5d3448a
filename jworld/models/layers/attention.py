"""One attention function for every network, with structured masks instead of dense ones."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jworld.parallel.axes import constrain, spread

Implementation = Literal["xla", "cudnn"] | None

#: Name under which remat policies find the attention output.
OUTPUT_NAME = "attention"


@dataclasses.dataclass(frozen=True)
class ChunkCausal:
    """Queries of chunk i see the first `prefix` keys and the keys of chunks 0..i.

    Attributes:
      chunk: tokens per chunk; the number of queries must be a multiple of it.
      prefix: leading keys that every query sees (text).
    """

    chunk: int
    prefix: int = 0


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: ChunkCausal | None = None,
    key_mask: jax.Array | None = None,
    implementation: Implementation = None,
) -> jax.Array:
    """Softmax attention, scale 1/sqrt(K); logits and softmax in float32.

    Tokens arrive split over the mesh axis of `sequence` and leave so. In between, heads are split instead and every
    device holds all tokens of its heads (Ulysses, https://arxiv.org/abs/2309.14509). A single head cannot be: then the
    queries stay split, every device holds all keys, and what the mesh does not divide stays whole.

    Args:
      q: [B, Lq, N, K] queries.
      k: [B, Lk, N, K] keys.
      v: [B, Lk, N, K] values.
      mask: which keys a query may see; None for all. What a chunk-causal mask discards is never computed.
      key_mask: [B, Lk] bool, False for padding; at least one key per query must be True.
      implementation: "xla", "cudnn", or None to let JAX choose.

    Returns:
      [B, Lq, N, K] in the dtype of `v`.

    Raises:
      ValueError: chunks do not fit the lengths of q and k.
    """
    single = q.shape[2] == 1
    if single:
        q, k, v = (spread(x, "batch", tokens, None, None) for x, tokens in ((q, "sequence"), (k, None), (v, None)))
    else:
        q, k, v = (constrain(x, "batch", None, "attention_heads", None) for x in (q, k, v))
    if mask is None:
        out = _full(q, k, v, key_mask, implementation)
    else:
        out = _chunk_causal(q, k, v, mask, key_mask, implementation)
    place = spread if single else constrain
    return checkpoint_name(place(out, "batch", "sequence", None, None), OUTPUT_NAME)


def _full(
    q: jax.Array, k: jax.Array, v: jax.Array, key_mask: jax.Array | None, implementation: Implementation
) -> jax.Array:
    dense = None if key_mask is None else key_mask[:, None, None, :]
    return jax.nn.dot_product_attention(q, k, v, mask=dense, implementation=implementation)


def _chunk_causal(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: ChunkCausal,
    key_mask: jax.Array | None,
    implementation: Implementation,
) -> jax.Array:
    length = q.shape[1]
    if length % mask.chunk or k.shape[1] != mask.prefix + length:
        raise ValueError(
            f"{length} queries in chunks of {mask.chunk} need {mask.prefix} + {length} keys, got {k.shape[1]} keys"
        )
    outputs = []
    for start in range(0, length, mask.chunk):
        stop = start + mask.chunk
        end = mask.prefix + stop
        visible = None if key_mask is None else key_mask[:, :end]
        outputs.append(_full(q[:, start:stop], k[:, :end], v[:, :end], visible, implementation))
    return jnp.concatenate(outputs, axis=1)
