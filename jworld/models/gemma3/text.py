"""Language model of Gemma-3: a stack of layers with sliding and full attention."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jworld.models.gemma3 import cache as cache_lib
from jworld.models.gemma3 import masks
from jworld.models.gemma3.cache import Cache, KeyValues
from jworld.models.gemma3.config import Gemma3Config, Kind
from jworld.models.gemma3.masks import Images
from jworld.models.layers.attention import Intervals, Mask, attention, base
from jworld.models.layers.linear import linear
from jworld.models.layers.mlp import gelu_tanh
from jworld.models.layers.norms import OffsetRMSNorm
from jworld.models.layers.rotary import rotary_tables, rotate_halves
from jworld.models.layers.stack import scan_layers, stack, unhoisted
from jworld.parallel.axes import constrain_if_divisible

normal = nnx.initializers.normal(0.02)
#: Number of parts in which logits are computed on CPUs.
LOGIT_PARTS = 64


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


#: Context of every kind of layer, in the order of `Place.kind`.
Contexts = dict[Kind, Context]


class Place(NamedTuple):
    """Place of a layer among the kinds, or of all layers with a leading axis.

    Attributes:
      kind: number of its kind in `Contexts`, int32.
      numbers: [kinds] int32, its number among the layers of each kind; that of an earlier layer for other kinds.
    """

    kind: jax.Array
    numbers: jax.Array


def places(kinds: Sequence[Kind]) -> Place:
    """Return the places of layers of these kinds."""
    own = np.array([sorted(set(kinds)).index(kind) for kind in kinds], np.int32)
    counts = np.cumsum(own[:, None] == np.arange(len(set(kinds))), axis=0, dtype=np.int32)
    return Place(jnp.asarray(own), jnp.asarray(np.maximum(counts - 1, 0)))


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
        self, x: jax.Array, place: Place, contexts: Contexts, cache: Cache | None = None
    ) -> tuple[jax.Array, dict[Kind, KeyValues]]:
        """Apply the layer; return the tokens, and the keys and values of `cache` with those of the tokens.

        Args:
          x: tokens.
          place: of the layer.
          contexts: of every kind of layer.
          cache: KV cache to extend, or None.
        """
        rope = jax.tree.map(lambda *tables: jax.lax.select_n(place.kind, *tables), *(c.rope for c in contexts.values()))
        q, k, v = self.attention.heads(self.attention_in_norm(x), rope)
        stores: dict[Kind, KeyValues] = {}
        if cache is not None:
            for i, kind in enumerate(contexts):
                written = place.kind == i
                stores[kind] = cache_lib.write(cache.layers[kind], place.numbers[i], k, v, cache.length, written)

        def attend(q: jax.Array, k: jax.Array, v: jax.Array, *, kind: Kind, number: jax.Array) -> jax.Array:
            context = contexts[kind]
            if context.mask is None:
                k, v = (jax.lax.dynamic_index_in_dim(part, number, keepdims=False) for part in stores[kind])
            return attention(q, k, v, mask=context.mask, key_mask=context.key_mask, implementation=self.implementation)

        # Only attention depends on the kind; a loop per kind would need a copy of the weights of its layers.
        branches = [functools.partial(attend, kind=kind, number=place.numbers[i]) for i, kind in enumerate(contexts)]
        out = jax.lax.switch(place.kind, branches, q, k, v)
        out = self.attention.out(einops.rearrange(out, "b l n k -> b l (n k)"))
        x = x + self.attention_out_norm(out)
        return x + self.mlp_out_norm(self.mlp(self.mlp_in_norm(x))), stores


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
        rows = jnp.take(unhoisted(self.embedding[...], tokens), tokens, axis=0).astype(self.cfg.dtype)
        return constrain_if_divisible(
            rows * jnp.asarray(self.cfg.width**0.5, self.cfg.dtype), "batch", "sequence", None
        )

    def contexts(self, positions: jax.Array, among: Mapping[Kind, tuple[Any, jax.Array | None]]) -> Contexts:
        """Return the context of every kind for tokens at `positions` [B, L].

        `among` holds (mask, key mask) per kind.
        """
        return {kind: Context(rope(self.cfg, kind, positions), *among[kind]) for kind in sorted(set(self.cfg.kinds))}

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

        def layer(layer: Layer, x: jax.Array, place: Place) -> tuple[jax.Array, None]:
            return layer(x, place, contexts)[0], None

        return self.norm(scan_layers(self.layers, layer, x, places(self.cfg.kinds), remat=self.cfg.remat)[0])

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
    ) -> tuple[jax.Array, Contexts]:
        """Return the first layer's input and the context of every kind of layer; arguments as in `__call__`."""
        length = embeds.shape[1]
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(length), embeds.shape[:2])
        among = masks.masks(self.cfg, length, images)
        contexts = self.contexts(positions, {kind: (among[kind], mask) for kind in among})
        return constrain_if_divisible(embeds.astype(self.cfg.dtype), "batch", "sequence", None), contexts

    def _cached(self, x: jax.Array, contexts: Contexts, cache: Cache) -> tuple[jax.Array, Cache]:
        def layer(layer: Layer, carry: Any, place: Place) -> tuple[Any, None]:
            x, layers = carry
            return layer(x, place, contexts, cache._replace(layers=layers)), None

        (x, layers), _ = scan_layers(self.layers, layer, (x, cache.layers), places(self.cfg.kinds), remat="none")
        return self.norm(x), cache_lib.grown(cache, layers, x.shape[1])

    def logits(self, states: jax.Array) -> jax.Array:
        """Compute logits [..., D] -> [..., V] float32."""
        rows, narrow = self.embedding[...], states.astype(self.cfg.dtype)

        def part(rows: jax.Array) -> jax.Array:
            rows = rows.astype(narrow.dtype)
            return jnp.einsum("...d,vd->...v", narrow, rows, preferred_element_type=jnp.float32)

        if base.target_platform() != "cpu" or rows.dtype == narrow.dtype == jnp.float32:
            return part(rows)
        # Without products in bfloat16, a CPU needs a float32 copy of the rows: of one part at a time.
        length = len(rows)
        size = -(-length // LOGIT_PARTS)

        def narrow_part(start: jax.Array) -> jax.Array:
            return part(jax.lax.dynamic_slice_in_dim(unhoisted(rows, start), start, size))

        starts = np.arange(0, length, size)
        # The last part begins earlier, so that it has the same length.
        found = jax.lax.map(jax.checkpoint(narrow_part), jnp.minimum(starts, length - size))
        last = found[-1, ..., starts[-1] - length :]
        return jnp.concatenate([einops.rearrange(found[:-1], "n ... v -> ... (n v)"), last], axis=-1)


def rope(cfg: Gemma3Config, kind: Kind, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute cos and sin [B, L, K/2] float32 for a kind of layer."""
    theta, factor = (
        (cfg.rope_theta, cfg.rope_factor) if kind == "full" else (cfg.local_rope_theta, cfg.local_rope_factor)
    )
    flat = einops.rearrange(positions.astype(jnp.float32), "b l -> (b l)") / factor
    cos, sin = rotary_tables((flat,), (cfg.head_dim,), theta)
    cos, sin = (einops.rearrange(table, "(b l) k -> b l k", b=len(positions)) for table in (cos, sin))
    return cos, sin
