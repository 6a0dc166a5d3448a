"""Text encoder of the HunyuanVideo-1.5 transformer: language, glyph and image embeddings as one token sequence."""

from typing import Any, NamedTuple

import einops
import jax
import jax.numpy as jnp
from flax import nnx

from jworld.models.hunyuan.config import HunyuanConfig
from jworld.models.layers.attention import attention
from jworld.models.layers.embeddings import ScalarEmbedding
from jworld.models.layers.linear import linear
from jworld.models.layers.mlp import MLP, gelu_exact
from jworld.models.layers.modulation import Modulation, gated
from jworld.models.layers.norms import layer_norm


class TextInputs(NamedTuple):
    """Outputs of the conditioning encoders, padded; masks are True for valid tokens.

    Attributes:
      text, text_mask: [B, S, text_dim], [B, S] of the language model.
      vision: [B, V, vision_dim] of the image encoder.
      glyph, glyph_mask: [B, G, glyph_dim], [B, G] of the glyph encoder, None if the model has no such input.
      vision_mask: [B, V], None if every vision token is valid.
    """

    text: jax.Array
    text_mask: jax.Array
    vision: jax.Array
    glyph: jax.Array | None = None
    glyph_mask: jax.Array | None = None
    vision_mask: jax.Array | None = None


class RefinerBlock(nnx.Module):
    """Self-attention and MLP over text tokens, gated by the pooled prompt and the time; no rotary, no q/k norm."""

    def __init__(self, cfg: HunyuanConfig, *, rngs: nnx.Rngs):
        self.num_heads, self.implementation = cfg.num_heads, cfg.attention
        common: dict[str, Any] = {"dtype": cfg.dtype, "param_dtype": cfg.param_dtype, "rngs": rngs}
        self.norm1 = layer_norm(cfg.width, eps=1e-6, param_dtype=cfg.param_dtype, rngs=rngs)
        self.norm2 = layer_norm(cfg.width, eps=1e-6, param_dtype=cfg.param_dtype, rngs=rngs)
        self.qkv = linear(cfg.width, 3 * cfg.width, ("embed", "heads"), **common)
        self.out = linear(cfg.width, cfg.width, ("heads", "embed"), **common)
        self.mlp = MLP(cfg.width, int(cfg.width * cfg.mlp_ratio), nnx.silu, **common)
        self.modulation = Modulation(cfg.width, cfg.width, 2, param_dtype=cfg.param_dtype, rngs=rngs)

    def __call__(self, x: jax.Array, condition: jax.Array, mask: jax.Array) -> jax.Array:
        """Refine x [B, S, D] with condition [B, 1, D] and mask [B, S] -> [B, S, D]."""
        gate_attention, gate_mlp = self.modulation(condition)
        q, k, v = (
            einops.rearrange(part, "b s (n k) -> b s n k", n=self.num_heads)
            for part in jnp.split(self.qkv(self.norm1(x).astype(x.dtype)), 3, axis=-1)
        )
        update = attention(q, k, v, key_mask=mask, implementation=self.implementation)
        x = gated(x, self.out(einops.rearrange(update, "b s n k -> b s (n k)")), gate_attention)
        return gated(x, self.mlp(self.norm2(x).astype(x.dtype)), gate_mlp)


class TextRefiner(nnx.Module):
    """Refiner of language-model states [B, S, text_dim] to tokens [B, S, D] in the width of the transformer."""

    def __init__(self, cfg: HunyuanConfig, *, rngs: nnx.Rngs):
        common: dict[str, Any] = {"dtype": cfg.dtype, "param_dtype": cfg.param_dtype, "rngs": rngs}
        self.input = linear(cfg.text_dim, cfg.width, (None, "embed"), **common)
        self.time = ScalarEmbedding(cfg.width, param_dtype=cfg.param_dtype, rngs=rngs)
        self.pooled_in = linear(cfg.text_dim, cfg.width, (None, "embed"), **common)
        self.pooled_out = linear(cfg.width, cfg.width, ("embed", "mlp"), **common)
        self.blocks = nnx.List([RefinerBlock(cfg, rngs=rngs) for _ in range(cfg.refiner_layers)])

    def __call__(self, states: jax.Array, timestep: jax.Array, mask: jax.Array) -> jax.Array:
        """Refine states [B, S, text_dim] with timestep [B] and mask [B, S] -> [B, S, D]."""
        weights = mask.astype(jnp.float32)[..., None]
        mean = jnp.sum(states.astype(jnp.float32) * weights, axis=1) / jnp.maximum(jnp.sum(weights, axis=1), 1)
        condition = self.time(timestep) + self.pooled_out(nnx.silu(self.pooled_in(mean))).astype(jnp.float32)
        x = self.input(states)
        # Not `mask.at[:, 0].set(True)`: where XLA splits the tokens over devices, such a scatter can also change an
        # element of another device (https://github.com/openxla/xla/issues/49121).
        mask = mask | (jnp.arange(mask.shape[1]) == 0)
        for block in self.blocks:
            x = block(x, condition[:, None], mask)
        return x


class GlyphProjection(nnx.Module):
    """Projection of glyph (byT5) states [B, G, glyph_dim] -> [B, G, D]."""

    def __init__(self, cfg: HunyuanConfig, *, rngs: nnx.Rngs):
        assert cfg.glyph_dim is not None
        common: dict[str, Any] = {"dtype": cfg.dtype, "param_dtype": cfg.param_dtype, "rngs": rngs}
        self.norm = layer_norm(cfg.glyph_dim, eps=1e-5, param_dtype=cfg.param_dtype, rngs=rngs)
        self.linear1 = linear(cfg.glyph_dim, cfg.glyph_hidden, (None, "mlp"), **common)
        self.linear2 = linear(cfg.glyph_hidden, cfg.glyph_out, ("mlp", "embed"), **common)
        self.linear3 = linear(cfg.glyph_out, cfg.width, ("embed", "mlp"), **common)

    def __call__(self, states: jax.Array) -> jax.Array:
        x = gelu_exact(self.linear1(self.norm(states).astype(self.linear1.dtype)))
        return self.linear3(gelu_exact(self.linear2(x)))


class VisionProjection(nnx.Module):
    """Projection of image-encoder states [B, V, vision_dim] -> [B, V, D]."""

    def __init__(self, cfg: HunyuanConfig, *, rngs: nnx.Rngs):
        common: dict[str, Any] = {"dtype": cfg.dtype, "param_dtype": cfg.param_dtype, "rngs": rngs}
        self.norm_in = layer_norm(cfg.vision_dim, eps=1e-5, param_dtype=cfg.param_dtype, rngs=rngs)
        self.linear1 = linear(cfg.vision_dim, cfg.vision_dim, (None, None), **common)
        self.linear2 = linear(cfg.vision_dim, cfg.width, (None, "embed"), **common)
        self.norm_out = layer_norm(cfg.width, eps=1e-5, param_dtype=cfg.param_dtype, rngs=rngs)

    def __call__(self, states: jax.Array) -> jax.Array:
        x = gelu_exact(self.linear1(self.norm_in(states).astype(self.linear1.dtype)))
        projected: jax.Array = self.norm_out(self.linear2(x))
        return projected.astype(self.linear2.dtype)


class TextEncoder(nnx.Module):
    """Encoder of all text-side tokens of the blocks: [vision, glyph, language], each with its type embedding.

    The original moves padding to the end of the sequence. The text side has no positions, so the order of tokens has no
    effect; here padding stays in place and is masked in attention.
    """

    def __init__(self, cfg: HunyuanConfig, *, rngs: nnx.Rngs):
        self.dtype = cfg.dtype
        self.refiner = TextRefiner(cfg, rngs=rngs)
        self.glyph = None if cfg.glyph_dim is None else GlyphProjection(cfg, rngs=rngs)
        self.vision = VisionProjection(cfg, rngs=rngs)
        self.type_embedding = nnx.Embed(
            3,
            cfg.width,
            dtype=cfg.dtype,
            param_dtype=cfg.param_dtype,
            embedding_init=nnx.initializers.zeros_init(),
            embedding_metadata={"out_sharding": (None, "embed")},
            rngs=rngs,
        )

    def __call__(self, inputs: TextInputs, timestep: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Encode with timestep [B] -> tokens [B, V+G+S, D], mask [B, V+G+S]."""
        types = self.type_embedding(jnp.arange(3))
        vision_mask = inputs.vision_mask
        if vision_mask is None:
            vision_mask = jnp.ones(inputs.vision.shape[:2], bool)
        vision = self.vision(inputs.vision.astype(self.dtype)) * vision_mask[..., None]
        tokens, masks = [vision + types[2]], [vision_mask]
        if self.glyph is not None:
            assert inputs.glyph is not None
            assert inputs.glyph_mask is not None
            tokens.append(self.glyph(inputs.glyph.astype(self.dtype)) + types[1])
            masks.append(inputs.glyph_mask)
        tokens.append(self.refiner(inputs.text.astype(self.dtype), timestep, inputs.text_mask) + types[0])
        masks.append(inputs.text_mask)
        return jnp.concatenate(tokens, axis=1).astype(self.dtype), jnp.concatenate(masks, axis=1)
