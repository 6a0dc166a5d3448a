"""Language model of Gemma-3: a stack of layers with sliding and full attention."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import einops
import jax
import jax.numpy as jnp
from flax import nnx

from jworld.models.gemma3 import cache as cache_lib
from jworld.models.gemma3 import masks
from jworld.models.gemma3.cache import Cache, KeyValues
from jworld.models.gemma3.config import Gemma3Config, Kind
from jworld.models.gemma3.masks import Images
from jworld.models.layers.attention import Intervals, Mask, attention
from jworld.models.layers.linear import linear
from jworld.models.layers.mlp import gelu_tanh
from jworld.models.layers.norms import OffsetRMSNorm
from jworld.models.layers.rotary import rotary_tables, rotate_halves
from jworld.models.layers.stack import scan_kinds, stack
from jworld.parallel.axes import constrain_if_divisible

normal = nnx.initializers.normal(0.02)


class Context(NamedTuple):
    """Inputs of all layers of one kind in addition to the tokens.

    Attributes:
      rope: cos and sin, [B, L, K/2] float32 each.
      mask: mask among the tokens of this call; None if the keys come from a KV cache.
      key_mask: [B, keys] bool, False for padding, or None.
    """

    rope: tuple[jax.Array, jax.Array]
    mask: Mask | Intervals | None
    key_mask: jax.Array | None


class Attention(nnx.Module):
    """Self-attention with fewer heads of keys than of queries: tokens [B, L, D] -> [B, L, D]."""

    def __init__(self, cfg: Gemma3Config, *, rngs: nnx.Rngs):
        self.cfg = cfg
        common: dict[str, Any] = {
            "use_bias": False,
            "kernel_init": normal,
            "dtype": cfg.dtype,
            "param_dtype": cfg.param_dtype,
            "rngs": rngs,
        }
        queries, keys = cfg.num_heads * cfg.head_dim, cfg.num_key_heads * cfg.head_dim
        self.query = linear(cfg.width, queries, ("embed", "heads"), **common)
        self.key = linear(cfg.width, keys, ("embed", "heads"), **common)
        self.value = linear(cfg.width, keys, ("embed", "heads"), **common)
        self.query_norm = OffsetRMSNorm(cfg.head_dim, eps=cfg.eps, param_dtype=cfg.param_dtype)
        self.key_norm = OffsetRMSNorm(cfg.head_dim, eps=cfg.eps, param_dtype=cfg.param_dtype)
        self.out = linear(queries, cfg.width, ("heads", "embed"), **common)

    def heads(self, x: jax.Array, rope: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Project to q [B, L, N, K], k and v [B, L, M, K]; q and k are normalized and rotated."""
        q, k, v = (
            einops.rearrange(projection(x), "b l (n k) -> b l n k", k=self.cfg.head_dim)
            for projection in (self.query, self.key, self.value)
        )
        q, k, v = (constrain_if_divisible(part, "batch", "sequence", None, None) for part in (q, k, v))
        # The attention function divides by the root of the head size, this model by that of query_scale.
        scale = (self.cfg.head_dim / self.cfg.query_scale) ** 0.5
        q = rotate_halves(self.query_norm(q.astype(jnp.float32)) * scale, *rope).astype(v.dtype)
        k = rotate_halves(self.key_norm(k.astype(jnp.float32)), *rope).astype(v.dtype)
        return q, k, v


class GatedMLP(nnx.Module):
    """Gated MLP down(gelu(gate x) * up x): [..., D] -> [..., D]."""

    def __init__(self, cfg: Gemma3Config, *, rngs: nnx.Rngs):
        common: dict[str, Any] = {
            "use_bias": False,
            "kernel_init": normal,
            "dtype": cfg.dtype,
            "param_dtype": cfg.param_dtype,
            "rngs": rngs,
        }
        self.gate = linear(cfg.width, cfg.mlp_width, ("embed", "mlp"), **common)
        self.up = linear(cfg.width, cfg.mlp_width, ("embed", "mlp"), **common)
        self.down = linear(cfg.mlp_width, cfg.width, ("mlp", "embed"), **common)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(gelu_tanh(self.gate(x)) * self.up(x))


class Layer(nnx.Module):
    """Attention and MLP, each with a norm before and a norm after: [B, L, D] -> [B, L, D]."""

    def __init__(self, cfg: Gemma3Config, *, rngs: nnx.Rngs):
        self.implementation = cfg.attention
        self.attention = Attention(cfg, rngs=rngs)
        self.mlp = GatedMLP(cfg, rngs=rngs)
        self.attention_in_norm, self.attention_out_norm, self.mlp_in_norm, self.mlp_out_norm = (
            OffsetRMSNorm(cfg.width, eps=cfg.eps, param_dtype=cfg.param_dtype) for _ in range(4)
        )

    def __call__(
        self, x: jax.Array, context: Context, store: tuple[KeyValues, jax.Array, jax.Array] | None = None
    ) -> tuple[jax.Array, KeyValues | None]:
        """Apply the layer; return the tokens and, with a `store`, the updated store.

        Args:
          x: tokens.
          context: of the layer's kind.
          store: KV cache of all layers of this kind, index of this layer among them, and index of the first of these
            tokens.
        """
        q, k, v = self.attention.heads(self.attention_in_norm(x), context.rope)
        updated = None
        if store is not None:
            updated = cache_lib.write(store[0], store[1], k, v, store[2])
            if context.mask is None:
                k, v = (jax.lax.dynamic_index_in_dim(part, store[1], keepdims=False) for part in updated)
        out = attention(q, k, v, mask=context.mask, key_mask=context.key_mask, implementation=self.implementation)
        out = self.attention.out(einops.rearrange(out, "b l n k -> b l (n k)"))
        x = x + self.attention_out_norm(out)
        return x + self.mlp_out_norm(self.mlp(self.mlp_in_norm(x))), updated


class TextModel(nnx.Module):
    """Language model: token ids -> embeddings -> states -> logits; embeddings and logits share one matrix."""

    def __init__(self, cfg: Gemma3Config, *, rngs: nnx.Rngs):
        self.cfg = cfg
        rows = normal(rngs.params(), (cfg.vocabulary, cfg.width), cfg.param_dtype)
        self.embedding = nnx.Param(rows, out_sharding=("vocabulary", "embed"))
        self.layers = stack(lambda rngs: Layer(cfg, rngs=rngs), cfg.num_layers, rngs)
        self.norm = OffsetRMSNorm(cfg.width, eps=cfg.eps, param_dtype=cfg.param_dtype)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Embed [B, L] ids -> [B, L, D], scaled by the root of D, which is rounded to the dtype as in the original."""
        rows = jnp.take(self.embedding[...], tokens, axis=0).astype(self.cfg.dtype)
        return constrain_if_divisible(
            rows * jnp.asarray(self.cfg.width**0.5, self.cfg.dtype), "batch", "sequence", None
        )

    def contexts(self, positions: jax.Array, among: Mapping[Kind, tuple[Any, jax.Array | None]]) -> dict[Kind, Context]:
        """Return the context of every kind for tokens at `positions` [B, L].

        `among` holds (mask, key mask) per kind.
        """
        return {kind: Context(rope(self.cfg, kind, positions), *among[kind]) for kind in set(self.cfg.kinds)}

    def __call__(
        self,
        embeds: jax.Array,
        *,
        mask: jax.Array | None = None,
        positions: jax.Array | None = None,
        images: Images | None = None,
    ) -> jax.Array:
        """Run a whole sequence: embeddings [B, L, D] -> states [B, L, D] after the last norm.

        Args:
          embeds: as returned by `embed`, possibly with other embeddings inserted.
          mask: [B, L] bool, False for padding; None without any.
          positions: [B, L] of the rotary embedding; None counts the tokens from 0, padding included.
          images: of the prompt, None without.
        """
        x, contexts = self.start(embeds, mask, positions, images)

        def layer(layer: Layer, x: jax.Array, kind: Kind, _: jax.Array) -> jax.Array:
            return layer(x, contexts[kind])[0]

        return self.norm(scan_kinds(self.layers, self.cfg.kinds, layer, x, remat=self.cfg.remat))

    def prefill(
        self, embeds: jax.Array, *, mask: jax.Array, positions: jax.Array, images: Images | None, capacity: int
    ) -> tuple[jax.Array, Cache]:
        """Run `__call__` and also return the KV cache of the sequence, which may grow to `capacity` tokens."""
        x, contexts = self.start(embeds, mask, positions, images)
        return self._cached(x, contexts, cache_lib.create(self.cfg, mask, capacity=capacity))

    def decode(self, embeds: jax.Array, cache: Cache, *, positions: jax.Array) -> tuple[jax.Array, Cache]:
        """Decode one more token per row: [B, 1, D] at `positions` [B, 1] -> states [B, 1, D] and the updated cache."""
        cache = cache_lib.admit(cache)
        among = {kind: (None, cache_lib.visible(cache, x.keys.shape[2])) for kind, x in cache.layers.items()}
        return self._cached(embeds.astype(self.cfg.dtype), self.contexts(positions, among), cache)

    def start(
        self, embeds: jax.Array, mask: jax.Array | None, positions: jax.Array | None, images: Images | None
    ) -> tuple[jax.Array, dict[Kind, Context]]:
        """Return the first layer's input and the context of every kind of layer; arguments as in `__call__`."""
        length = embeds.shape[1]
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(length), embeds.shape[:2])
        among = masks.masks(self.cfg, length, images)
        contexts = self.contexts(positions, {kind: (among[kind], mask) for kind in among})
        return constrain_if_divisible(embeds.astype(self.cfg.dtype), "batch", "sequence", None), contexts

    def _cached(self, x: jax.Array, contexts: dict[Kind, Context], cache: Cache) -> tuple[jax.Array, Cache]:
        count = x.shape[1]

        def layer(layer: Layer, carry: Any, kind: Kind, number: jax.Array) -> Any:
            x, layers = carry
            x, updated = layer(x, contexts[kind], (layers[kind], number, cache.length))
            return x, layers | {kind: updated}

        x, layers = scan_kinds(self.layers, self.cfg.kinds, layer, (x, cache.layers), remat="none")
        return self.norm(x), cache_lib.grown(cache, layers, count)

    def logits(self, states: jax.Array) -> jax.Array:
        """Compute logits [..., D] -> [..., V] float32."""
        rows = self.embedding[...].astype(self.cfg.dtype)
        return jnp.einsum("...d,vd->...v", states.astype(rows.dtype), rows, preferred_element_type=jnp.float32)


def rope(cfg: Gemma3Config, kind: Kind, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute cos and sin [B, L, K/2] float32 for a kind of layer."""
    theta, factor = (
        (cfg.rope_theta, cfg.rope_factor) if kind == "full" else (cfg.local_rope_theta, cfg.local_rope_factor)
    )
    flat = einops.rearrange(positions.astype(jnp.float32), "b l -> (b l)") / factor
    cos, sin = rotary_tables((flat,), (cfg.head_dim,), theta)
    cos, sin = (einops.rearrange(table, "(b l) k -> b l k", b=len(positions)) for table in (cos, sin))
    return cos, sin
