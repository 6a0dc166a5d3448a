"""Gemma-3 as a whole: tokens and images in, logits out."""

import jax
import jax.numpy as jnp
from flax import nnx

from jworld.models.gemma3.config import Gemma3Config
from jworld.models.gemma3.masks import Images
from jworld.models.gemma3.text import TextModel
from jworld.models.gemma3.vision import Projector, VisionTower


class Gemma3(nnx.Module):
    """The language model, the vision tower, and the projector between them."""

    def __init__(self, cfg: Gemma3Config, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.language = TextModel(cfg, rngs=rngs)
        self.vision = VisionTower(cfg, rngs=rngs)
        self.projector = Projector(cfg, rngs=rngs)

    def image_features(self, pixels: jax.Array) -> jax.Array:
        """Images [B, I, H, W, 3] in -1..1 -> [B, I * T, D]: the tokens of each row's images, one after the other."""
        features = self.projector(self.vision(pixels.reshape(-1, *pixels.shape[2:])))
        return features.reshape(pixels.shape[0], -1, features.shape[-1])

    def embed(self, tokens: jax.Array, pixels: jax.Array | None) -> jax.Array:
        """Token ids [B, L] and images [B, I, H, W, 3] or None -> embeddings [B, L, D].

        The i-th image token of a row is the i-th token of its images; a row may have fewer images than there is room.
        """
        embeds = self.language.embed(jnp.where(tokens >= self.cfg.vocabulary, 0, tokens))
        if pixels is None:
            return embeds
        features = self.image_features(pixels)
        is_image = tokens == self.cfg.image_token
        place = jnp.clip(jnp.cumsum(is_image, axis=1) - 1, 0, features.shape[1] - 1)
        found = jnp.take_along_axis(features, place[..., None], axis=1)
        return jnp.where(is_image[..., None], found.astype(embeds.dtype), embeds)

    def __call__(
        self,
        tokens: jax.Array,
        pixels: jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
        images: Images | None = None,
    ) -> jax.Array:
        """Token ids [B, L] and images -> logits [B, L, V] float32; `mask` and `images` as of `TextModel`."""
        states = self.language(self.embed(tokens, pixels), mask=mask, images=images)
        return self.language.logits(states)
