"""Gemma-3: tokens and images to logits."""

import einops
import jax
import jax.numpy as jnp
from flax import nnx

from jworld.models.gemma3.config import Gemma3Config
from jworld.models.gemma3.masks import Images
from jworld.models.gemma3.text import TextModel
from jworld.models.gemma3.vision import Projector, VisionTower


class Gemma3(nnx.Module):
    """Language model and, if `vision_layers` is not 0, vision tower and projector."""

    def __init__(self, cfg: Gemma3Config, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.language = TextModel(cfg, rngs=rngs)
        if cfg.vision_layers:
            self.vision = VisionTower(cfg, rngs=rngs)
            self.projector = Projector(cfg, rngs=rngs)

    def image_features(self, pixels: jax.Array) -> jax.Array:
        """Embed images [B, I, H, W, 3] in -1..1 -> [B, I * T, D]: the tokens of each row's images in order."""
        features = self.projector(self.vision(einops.rearrange(pixels, "b i h w c -> (b i) h w c")))
        return einops.rearrange(features, "(b i) t d -> b (i t) d", b=len(pixels))

    def embed(self, tokens: jax.Array, pixels: jax.Array | None) -> jax.Array:
        """Embed token ids [B, L] and images [B, I, H, W, 3] or None -> [B, L, D].

        The i-th image token of a row is the i-th token of its images; a row may have fewer than I images.
        """
        embeds = self.language.embed(jnp.where(tokens >= self.cfg.vocabulary, 0, tokens))
        if pixels is None or not pixels.shape[1]:
            return embeds
        features = self.image_features(pixels)
        is_image = tokens == self.cfg.image_token
        source = jnp.clip(jnp.cumsum(is_image, axis=1) - 1, 0, features.shape[1] - 1)
        found = jnp.take_along_axis(features, source[..., None], axis=1)
        return jnp.where(is_image[..., None], found.astype(embeds.dtype), embeds)

    def __call__(
        self,
        tokens: jax.Array,
        pixels: jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
        images: Images | None = None,
    ) -> jax.Array:
        """Compute logits [B, L, V] float32 of token ids [B, L] and images; `mask` and `images` as in `TextModel`."""
        states = self.language(self.embed(tokens, pixels), mask=mask, images=images)
        return self.language.logits(states)
