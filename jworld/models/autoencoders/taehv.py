"""Tiny decoders of latents of published video autoencoders, for previews: 11M parameters with their unused encoders.

Every block sees a frame and the frame before it, so the frames of a video do not depend on how it is split into calls.

Source: `taehv.py` of https://github.com/madebyollin/taehv (TAEHV, MIT license).
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jworld.models.autoencoders.blocks import Cache
from jworld.models.autoencoders.latents import Normalization
from jworld.models.autoencoders.network import constrain_video, in_pieces
from jworld.models.autoencoders.samplers import enlarge
from jworld.models.layers.linear import default_init
from jworld.utils import ranges
from jworld.utils.errors import UserError

#: Memory blocks of a level.
BLOCKS = 3
#: The identity, for decoders of the latents of diffusion models.
NORMALIZED = Normalization()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """A published file.

    Attributes:
      title: the models whose latents it decodes, for messages.
      family: family of their autoencoder in jworld; None if jworld has none of it.
      latent_channels: C.
      patch: pixels, in height and in width, of one position of the last convolution.
      raw: True if it decodes latents as the autoencoder encodes them, without the normalization of diffusion models.
      even_whole: True if an even number of latents decodes to `temporal_ratio` frames each, also the first.
    """

    title: str
    family: str | None
    latent_channels: int
    patch: int
    raw: bool = False
    even_whole: bool = False


#: Published files by the name without its suffix.
VARIANTS: Mapping[str, Variant] = {
    "taehv": Variant(title="HunyuanVideo", family=None, latent_channels=16, patch=1),
    "taehv1_5": Variant(title="HunyuanVideo-1.5", family="hunyuan15", latent_channels=32, patch=2),
    "taew2_1": Variant(title="Wan 2.1", family="wan", latent_channels=16, patch=1),
    "taew2_2": Variant(title="Wan 2.2", family="wan", latent_channels=48, patch=2),
    # The original's example divides the latents of CogVideoX by their scaling factor before it decodes them.
    "taecvx": Variant(title="CogVideoX", family="cogvideox", latent_channels=16, patch=1, raw=True, even_whole=True),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TinyConfig:
    """Hyper-parameters of a decoder; the widths and the growth are by default the published ones.

    Attributes:
      latent_channels: C.
      patch: pixels, in height and in width, of one position of the last convolution.
      widths: of the three levels, and of the last convolution's input.
      growth: frames that each level makes of one.
      normalization: normalization that is inverted first; the identity for decoders of normalized latents.
      even_whole: see `Variant`.
      chunk: latent frames computed at once, which bounds memory; None decodes a clip in one piece.
      image_channels: color channels of a frame.
      dtype: activations and convolutions; latents and frames are float32.
      param_dtype: weights.
    """

    latent_channels: ranges.Size
    patch: ranges.Patch = 1
    widths: tuple[ranges.Size, ...] = (256, 128, 64, 64)
    growth: tuple[ranges.Ratio, ...] = (1, 2, 2)
    normalization: Normalization = NORMALIZED
    even_whole: bool = False
    chunk: ranges.Size | None = 1
    image_channels: ranges.Patch = 3
    dtype: ranges.DType = jnp.bfloat16
    param_dtype: ranges.DType = jnp.float32

    @property
    def spatial_ratio(self) -> int:
        """Pixels per latent, in height and in width."""
        return int(self.patch * 2 ** len(self.growth))

    @property
    def temporal_ratio(self) -> int:
        """Frames per latent frame after the first."""
        return int(np.prod(self.growth))

    def __post_init__(self) -> None:
        try:
            ranges.check(self)
        except ValueError as error:
            raise UserError(str(error)) from error
        if len(self.widths) != len(self.growth) + 1:
            raise UserError(
                f"widths has {len(self.widths)} entries, expected {len(self.growth) + 1}: one per level + 1"
            )


class TinyDecoder(nnx.Module):
    """Decoder of latents [B, F, H', W', C] to frames [B, T, H, W, 3], float32 in [-1, 1].

    The first `temporal_ratio` - 1 frames of a video have no meaning and are left out, see `decode`.
    """

    def __init__(self, config: TinyConfig, *, rngs: nnx.Rngs):
        self.config = config
        widths, pixels = config.widths, config.image_channels * config.patch**2
        self.enter = _conv(config, config.latent_channels, widths[0], rngs=rngs)
        self.levels = nnx.List(
            [Level(config, widths[i], widths[i + 1], growth, rngs=rngs) for i, growth in enumerate(config.growth)]
        )
        self.leave = _conv(config, widths[-1], pixels, rngs=rngs)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Decode the latents of a whole video, which diffusion models have normalized.

        F latents are 1 + ratio (F - 1) frames; with `even_whole`, an even number of them is ratio F frames.
        """
        return self._pieces(latents, None, whole=self.config.even_whole and latents.shape[1] % 2 == 0)[0]

    def decode_step(self, latents: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Decode the next latents of a video; `cache` None starts one, later calls pass that of the previous call.

        The first call makes ratio - 1 frames less than later ones; with `even_whole` as many.
        """
        return self._pieces(latents, cache, whole=self.config.even_whole)

    def hash(self) -> str:
        """Return the SHA-256 of the config and of the weights with names and shapes."""
        text = json.dumps(dataclasses.asdict(self.config), default=lambda dtype: jnp.dtype(dtype).name)
        digest = hashlib.sha256(text.encode())
        for path, leaf in nnx.to_flat_state(nnx.state(self, nnx.Param)):
            value = np.asarray(leaf[...])
            digest.update(f"{path}{value.shape}{value.dtype}".encode() + value.tobytes())
        return digest.hexdigest()

    def _pieces(self, latents: jax.Array, cache: Cache, *, whole: bool) -> tuple[jax.Array, Cache]:
        channels = self.config.latent_channels
        if latents.ndim != 5 or not latents.shape[1] or latents.shape[-1] != channels:
            raise UserError(
                f"latents have shape {list(latents.shape)}, expected [B, F, H, W, {channels}]: use the preview decoder "
                "of their autoencoder"
            )

        def step(latents: jax.Array, cache: Cache, i: jax.Array | None = None) -> tuple[jax.Array, Cache]:
            left_out = 0 if whole or cache is not None else self.config.temporal_ratio - 1
            frames, cache = self._frames(constrain_video(latents), cache)
            return constrain_video(frames[:, left_out:]), cache

        return in_pieces(step, latents, cache, chunk=self.config.chunk, first_alone=True)

    def _frames(self, latents: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Decode to ratio F frames; the cache has that of each level."""
        cfg = self.config
        x = jnp.tanh(cfg.normalization.invert(latents) / 3) * 3
        x = nnx.relu(self.enter(x))
        caches = []
        for level, own in zip(self.levels, (None,) * len(self.levels) if cache is None else cache, strict=True):
            x, own = level(x, own)
            caches.append(own)
        x = self.leave(nnx.relu(x)).astype(jnp.float32)
        x = einops.rearrange(x, "b f h w (c p q) -> b f (h p) (w q) c", p=cfg.patch, q=cfg.patch)
        return jnp.clip(x, 0, 1) * 2 - 1, tuple(caches)


class Level(nnx.Module):
    """Memory blocks of one resolution, then `growth` frames for each frame and twice the height and width.

    (x [B, F, H, W, I], cache) -> (y [B, growth F, 2 H, 2 W, O], cache).
    """

    def __init__(self, config: TinyConfig, in_channels: int, out_channels: int, growth: int, *, rngs: nnx.Rngs):
        self.growth = growth
        self.blocks = nnx.List([MemoryBlock(config, in_channels, rngs=rngs) for _ in range(BLOCKS)])
        self.grow = nnx.Linear(
            in_channels,
            growth * in_channels,
            use_bias=False,
            kernel_init=default_init,
            dtype=config.dtype,
            param_dtype=config.param_dtype,
            rngs=rngs,
        )
        self.leave = _conv(config, in_channels, out_channels, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        caches = []
        for block, past in zip(self.blocks, (None,) * BLOCKS if cache is None else cache, strict=True):
            x, past = block(x, past)
            caches.append(past)
        # The original enlarges first. A linear map of each pixel gives the same after it, with four times the work.
        x = einops.rearrange(self.grow(x), "b f h w (t c) -> b (f t) h w c", t=self.growth)
        return self.leave(enlarge(x)), tuple(caches)


class MemoryBlock(nnx.Module):
    """Residual block of three convolutions of a frame and the frame before it, [B, F, H, W, C] -> the same shape.

    The cache is the last frame of the input, [B, 1, H, W, C]; None, the start of a video, is a frame of zeros.
    """

    def __init__(self, config: TinyConfig, channels: int, *, rngs: nnx.Rngs):
        self.convs = nnx.List([_conv(config, inputs * channels, channels, rngs=rngs) for inputs in (2, 1, 1)])

    def __call__(self, x: jax.Array, past: Cache) -> tuple[jax.Array, Cache]:
        past = jnp.zeros_like(x[:, :1]) if past is None else past
        first, second, third = self.convs
        y = jnp.concatenate([x, jnp.concatenate([past, x[:, :-1]], axis=1)], axis=-1)
        y = third(nnx.relu(second(nnx.relu(first(y)))))
        return nnx.relu(y + x), x[:, -1:]


def _conv(
    config: TinyConfig, in_channels: int, out_channels: int, *, use_bias: bool = True, rngs: nnx.Rngs
) -> nnx.Conv:
    """Create a convolution of 3 x 3 pixels of each frame, with zeros outside of it."""
    return nnx.Conv(
        in_channels,
        out_channels,
        (3, 3),
        padding=1,
        use_bias=use_bias,
        kernel_init=default_init,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        rngs=rngs,
    )
