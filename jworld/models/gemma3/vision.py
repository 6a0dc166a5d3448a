"""Gemma-3's vision tower (SigLIP) and the projector from patches to language-model tokens."""

from typing import Any

import einops
import jax
import jax.numpy as jnp
from flax import nnx

from jworld.models.gemma3.config import Gemma3Config
from jworld.models.layers.attention import attention
from jworld.models.layers.linear import linear
from jworld.models.layers.mlp import MLP, gelu_tanh
from jworld.models.layers.norms import OffsetRMSNorm, layer_norm
from jworld.models.layers.patches import to_patches
from jworld.models.layers.stack import scan_layers, stack
from jworld.parallel.axes import constrain_if_divisible


def vision_values(pixels: jax.Array) -> jax.Array:
    """Convert images from uint8 to float32 in -1..1, the input of the tower."""
    return (pixels.astype(jnp.float32) / 255 - 0.5) / 0.5


class VisionLayer(nnx.Module):
    """Layer of full attention among patches and an MLP: [N, P, D] -> [N, P, D]."""

    def __init__(self, cfg: Gemma3Config, *, rngs: nnx.Rngs):
        self.num_heads, self.implementation = cfg.vision_heads, cfg.attention
        width = cfg.vision_width
        common: dict[str, Any] = {"dtype": cfg.dtype, "param_dtype": cfg.param_dtype, "rngs": rngs}
        self.attention_norm = layer_norm(width, eps=cfg.vision_eps, param_dtype=cfg.param_dtype, rngs=rngs)
        self.query, self.key, self.value = (linear(width, width, ("embed", "heads"), **common) for _ in range(3))
        self.out = linear(width, width, ("heads", "embed"), **common)
        self.mlp_norm = layer_norm(width, eps=cfg.vision_eps, param_dtype=cfg.param_dtype, rngs=rngs)
        self.mlp = MLP(width, cfg.vision_mlp_width, gelu_tanh, **common)

    def __call__(self, x: jax.Array) -> jax.Array:
        normed = self.attention_norm(x).astype(x.dtype)
        q, k, v = (
            einops.rearrange(projection(normed), "b p (n k) -> b p n k", n=self.num_heads)
            for projection in (self.query, self.key, self.value)
        )
        q, k, v = (constrain_if_divisible(part, "batch", "sequence", None, None) for part in (q, k, v))
        out = attention(q, k, v, implementation=self.implementation)
        x = x + self.out(einops.rearrange(out, "b p n k -> b p (n k)"))
        return x + self.mlp(self.mlp_norm(x).astype(x.dtype))


class VisionTower(nnx.Module):
    """Vision transformer: images [N, H, W, 3] in -1..1 -> patches [N, P, D], row by row."""

    def __init__(self, cfg: Gemma3Config, *, rngs: nnx.Rngs):
        self.cfg = cfg
        common: dict[str, Any] = {"dtype": cfg.dtype, "param_dtype": cfg.param_dtype, "rngs": rngs}
        self.patch_in = linear(3 * cfg.patch_size**2, cfg.vision_width, (None, "embed"), **common)
        table = nnx.initializers.normal(cfg.vision_width**-0.5)(
            rngs.params(), (cfg.patches**2, cfg.vision_width), cfg.param_dtype
        )
        self.positions = nnx.Param(table, out_sharding=(None, "embed"))
        self.layers = stack(lambda rngs: VisionLayer(cfg, rngs=rngs), cfg.vision_layers, rngs)
        self.norm = layer_norm(cfg.vision_width, eps=cfg.vision_eps, param_dtype=cfg.param_dtype, rngs=rngs)

    def embed(self, pixels: jax.Array) -> jax.Array:
        """Embed the patches: the first layer's input."""
        patches = to_patches(pixels[:, None], (self.cfg.patch_size, self.cfg.patch_size))[:, 0]
        x = self.patch_in(patches.astype(self.cfg.dtype)) + self.positions[...].astype(self.cfg.dtype)
        return constrain_if_divisible(x, "batch", "sequence", None)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        x, _ = scan_layers(self.layers, lambda layer, x, _: (layer(x), None), self.embed(pixels), remat=self.cfg.remat)
        normed: jax.Array = self.norm(x)
        return normed.astype(self.cfg.dtype)


class Projector(nnx.Module):
    """Projector of patches [N, P, D] to language-model tokens [N, T, D]: mean pooling, norm, projection."""

    def __init__(self, cfg: Gemma3Config, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.norm = OffsetRMSNorm(cfg.vision_width, eps=cfg.vision_eps, param_dtype=cfg.param_dtype)
        self.linear = linear(
            cfg.vision_width,
            cfg.width,
            (None, "embed"),
            use_bias=False,
            dtype=cfg.dtype,
            param_dtype=cfg.param_dtype,
            rngs=rngs,
        )

    def __call__(self, patches: jax.Array) -> jax.Array:
        pool, side = self.cfg.pool, self.cfg.patches // self.cfg.pool
        values = patches.astype(jnp.float32)
        windows = einops.rearrange(values, "n (h p w q) d -> n h p w q d", h=side, p=pool, w=side, q=pool)
        # Not einops.reduce: its order of additions rounds differently.
        pooled = einops.rearrange(jnp.mean(windows, axis=(2, 4)), "n h w d -> n (h w) d")
        return self.linear(self.norm(pooled).astype(patches.dtype))
