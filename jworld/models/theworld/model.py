"""Gemma-3 with world tokens, of current and predicted frames, between its first token and the rest."""

from typing import Any, NamedTuple

import einops
import jax
import jax.numpy as jnp
from flax import nnx

from jworld.models.autoencoders import files as autoencoder_files
from jworld.models.autoencoders.linear import LinearAutoencoder, LinearConfig
from jworld.models.autoencoders.network import VideoAutoencoder
from jworld.models.autoencoders.wan import WanAutoencoder
from jworld.models.cosmos.transformer import CosmosTransformer
from jworld.models.gemma3.masks import Images
from jworld.models.gemma3.model import Gemma3
from jworld.models.layers.linear import linear
from jworld.models.layers.mlp import gelu_exact
from jworld.models.theworld.config import TheWorldConfig, WorldConfig
from jworld.utils import resources
from jworld.utils.errors import UserError


class Fused(NamedTuple):
    """Input sequence of the language model; L' = L, or L + 2 + W with W world tokens.

    Attributes:
      embeds: [B, L', D].
      mask: [B, L'] bool, False for padding, and before the first token of a row without a world.
      positions: [B, L'] of the rotary embedding, or None to count the tokens.
      images: tokens that attend to each other in both directions, or None.
    """

    embeds: jax.Array
    mask: jax.Array
    positions: jax.Array | None
    images: Images | None


class WorldProjector(nnx.Module):
    """Projector of latents [B, F, H, W, C] to tokens [B, F * T, D].

    With world steps a vector is added to all tokens of a frame, one for the image and one for each predicted frame,
    zero-initialized.
    """

    def __init__(self, cfg: TheWorldConfig, *, rngs: nnx.Rngs):
        assert cfg.world is not None
        self.world, gemma = cfg.world, cfg.gemma
        common: dict[str, Any] = {"dtype": gemma.dtype, "param_dtype": gemma.param_dtype, "rngs": rngs}
        inputs = self.world.features
        if self.world.projection != "linear":
            self.hidden = linear(inputs, gemma.width, (None, "embed"), **common)
            inputs = gemma.width
        self.output = linear(inputs, gemma.width, (None, "embed"), **common)
        if self.world.steps:
            table = jnp.zeros((self.world.frames, gemma.width), gemma.param_dtype)
            self.temporal = nnx.Param(table, out_sharding=(None, "embed"))

    def tokens(self, latents: jax.Array) -> jax.Array:
        """Rearrange [B, F, H, W, C] -> [B, F, T, features]; positions row by row."""
        layout = "b f (h w) c" if self.world.layout == "spatial" else "b f c (h w)"
        return einops.rearrange(latents, f"b f h w c -> {layout}")

    def __call__(self, latents: jax.Array) -> jax.Array:
        x = self.tokens(latents).astype(self.output.dtype)
        if self.world.projection != "linear":
            x = gelu_exact(self.hidden(x))
        x = self.output(x)
        if self.world.projection == "mlp":
            x = gelu_exact(x)
        if self.world.steps:
            x += self.temporal[: x.shape[1], None].astype(x.dtype)
        return einops.rearrange(x, "b f t d -> b (f t) d")


class TheWorld(Gemma3):
    """Gemma-3, the world projector, the autoencoder and, with world steps, the predictor.

    Without a world it is plain Gemma-3.
    """

    def __init__(self, cfg: TheWorldConfig, *, rngs: nnx.Rngs):
        super().__init__(cfg.gemma, rngs=rngs)
        self.config = cfg
        if cfg.world is not None:
            self.world = WorldProjector(cfg, rngs=rngs)
            self.autoencoder = _autoencoder(cfg, cfg.world, rngs)
        if cfg.predictor is not None:
            self.predictor = CosmosTransformer(cfg.predictor, rngs=rngs)

    def latents(self, pixels: jax.Array) -> jax.Array:
        """Encode images [B, H, W, 3] in 0..255 -> latents [B, 1, H', W', C] float32, the input of the projector."""
        original = self.config.world is not None and self.config.world.original
        if isinstance(self.autoencoder, WanAutoencoder) and original:
            return self.autoencoder.posterior(world_values(pixels, original=True)[:, None]).mean
        return self.valid_latents(pixels)

    def valid_latents(self, pixels: jax.Array) -> jax.Array:
        """Encode as `latents` does, but normalized for every `compat`: the input of the predictor."""
        return self.autoencoder.encode(world_values(pixels, original=False)[:, None])

    def fuse(
        self,
        tokens: jax.Array,
        mask: jax.Array,
        pixels: jax.Array | None,
        latents: jax.Array | None,
        has_world: jax.Array | None = None,
    ) -> Fused:
        """Build the input sequence of the language model.

        A row without a world is the same as a sequence of `tokens` alone, after masked columns.

        Args:
          tokens: [B, L] ids, padded at the end, without the brackets of the world.
          mask: [B, L] bool.
          pixels: [B, I, H, W, 3] in -1..1, the images of the prompt, or None.
          latents: [B, F, H', W', C] of the world, its first frames or all; None omits it and its brackets.
          has_world: [B] bool, False for rows without a world; None for a world in all rows.
        """
        embeds, world = self.embed(tokens, pixels), self.config.world
        images, positions = tokens == self.cfg.image_token, None
        if latents is not None:
            assert world is not None
            brackets = jnp.broadcast_to(jnp.array([world.start_token, world.end_token]), (tokens.shape[0], 2))
            start, end = jnp.split(self.language.embed(brackets), 2, axis=1)
            inserted = self.world(latents).astype(embeds.dtype)
            embeds = jnp.concatenate([embeds[:, :1], start, inserted, end, embeds[:, 1:]], axis=1)
            mask, images = (
                insert(x, world, inside, tokens=inserted.shape[1]) for x, inside in ((mask, True), (images, False))
            )
            if has_world is not None:
                first = inserted.shape[1] + 2
                embeds, mask = without_world(embeds, has_world, first), mask & world_mask(mask, has_world, first)
                positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
        if pixels is None or not pixels.shape[1] or (latents is not None and world is not None and world.original):
            return Fused(embeds, mask, positions, None)
        return Fused(embeds, mask, positions, Images(images, longest=pixels.shape[1] * self.cfg.image_tokens))


def world_values(pixels: jax.Array, *, original: bool) -> jax.Array:
    """Convert images from uint8 to float32, the input of the autoencoder: in -1..1, or in 0..255 for the original."""
    values = pixels.astype(jnp.float32)
    return values if original else values / 127.5 - 1


def _autoencoder(cfg: TheWorldConfig, world: WorldConfig, rngs: nnx.Rngs) -> LinearAutoencoder | VideoAutoencoder:
    if not world.autoencoder_file:
        dtypes = {"dtype": cfg.gemma.dtype, "param_dtype": cfg.gemma.param_dtype}
        return WanAutoencoder(world.autoencoder(**dtypes), rngs=rngs)
    autoencoder = autoencoder_files.load(resources.find(world.autoencoder_file))
    sizes = autoencoder.config
    channels = sizes.channels if isinstance(sizes, LinearConfig) else sizes.latent_channels
    found = channels, sizes.spatial_ratio
    if found != (world.latent_channels, world.ratio):
        raise UserError(
            f"config.model.world.autoencoder_file {world.autoencoder_file} has {found[0]} channels and "
            f"{found[1]} pixels per latent, but latent_channels is {world.latent_channels} and "
            f"autoencoder_ratio {world.ratio}: set them to its values"
        )
    return autoencoder


def without_world(values: jax.Array, has_world: jax.Array, first: int) -> jax.Array:
    """Move the first column of rows without a world to column `first`, the end bracket's: [B, L', ...] -> the same."""
    chosen = has_world.reshape(-1, *[1] * (values.ndim - 1))
    # Not a scatter, see `models.hunyuan.text`.
    is_bracket = (jnp.arange(values.shape[1]) == first).reshape(1, -1, *[1] * (values.ndim - 2))
    return jnp.where(is_bracket & ~chosen, values[:, :1], values)


def world_mask(mask: jax.Array, has_world: jax.Array, first: int) -> jax.Array:
    """Return [B, L'] bool, False for the columns before `first` of rows without a world."""
    return has_world[:, None] | (jnp.arange(mask.shape[1]) >= first)


def insert(
    values: jax.Array,
    world: WorldConfig,
    inside: Any,
    brackets: tuple[Any, Any] | None = None,
    *,
    tokens: int | None = None,
) -> jax.Array:
    """Insert values for the world after the first column: [B, L] -> [B, L + 2 + W].

    `inside` is the value of its W tokens, `brackets` those around them. W is `tokens`, by default all of the world's.
    """
    start, end = (inside, inside) if brackets is None else brackets
    count = world.tokens if tokens is None else tokens
    row = jnp.array([start, *([inside] * count), end], values.dtype)
    rows = jnp.broadcast_to(row, (values.shape[0], len(row)))
    return jnp.concatenate([values[:, :1], rows, values[:, 1:]], axis=1)
