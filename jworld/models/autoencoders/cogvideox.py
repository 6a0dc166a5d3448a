"""CogVideoX video autoencoder of The Matrix: 16 channels, 8x8 pixels and 4 frames per latent.

Its group norms span the frames of a chunk, so the chunk is part of the model. A chunk has 2 latent frames; the first
one of a call also takes the remainder. Clips of 1 to 3 latent frames are one chunk; longer ones differ from one pass.
Calls with [3, 2, 2] latents equal one with 7; calls with one latent do not, and they decode to 4 frames each.
An even number F of latent frames decodes to 4 F frames, an odd one to 4 F - 3.

Source: diffusers `autoencoder_kl_cogvideox.py`, The Matrix `stage{1,3}/cogvideox/autoencoder.py`.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jworld.models.autoencoders import network
from jworld.models.autoencoders.blocks import Cache, Coder, Head, Level, Style, middle
from jworld.models.autoencoders.latents import Normalization
from jworld.models.autoencoders.samplers import AverageDown, NearestUp, enlarge, split_odd
from jworld.models.layers.linear import default_init
from jworld.utils import ranges
from jworld.utils.errors import UserError

NORMALIZATION = Normalization(scale=(1.15258426,))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CogVideoXConfig(network.AutoencoderConfig):
    """Hyper-parameters, by default of the published autoencoder (of the 2B model): 215.6M parameters.

    Attributes:
      widths: of each level of the encoder; from level to level the size halves.
      temporal_ratio: frames per latent frame; the first levels halve the frames.
      groups: of channels in the group norms.
      double_lone_frame: a call with one latent frame decodes to 4 frames, as in The Matrix from stage 3 on, instead of
        1.
    """

    latent_channels: ranges.Size = 16
    blocks: ranges.LayersOrZero = 3
    normalisation: Normalization = NORMALIZATION
    chunk: ranges.Size | None = 2
    widths: tuple[ranges.Size, ...] = (128, 256, 256, 512)
    temporal_ratio: ranges.Ratio = 4
    groups: ranges.Size = 32
    eps: ranges.Epsilon = 1e-6
    double_lone_frame: bool = True

    @property
    def spatial_ratio(self) -> int:
        return int(2 ** (len(self.widths) - 1))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temporal_ratio not in [2**i for i in range(len(self.widths))]:
            raise UserError(
                f"temporal_ratio is {self.temporal_ratio}, expected a power of 2 up to {self.spatial_ratio}, the "
                f"spatial ratio of {len(self.widths)} widths"
            )
        if any(width % self.groups for width in self.widths):
            raise UserError(f"widths {self.widths} must be multiples of the {self.groups} groups")


class CogVideoXAutoencoder(network.CoderAutoencoder):
    """CogVideoX autoencoder; see `network.VideoAutoencoder`."""

    family: ClassVar[str] = "cogvideox"
    first_frame_alone: ClassVar[bool] = False
    config: CogVideoXConfig

    def __init__(self, config: CogVideoXConfig, *, rngs: nnx.Rngs):
        self.config = config
        norm: dict[str, Any] = {"num_groups": config.groups, "epsilon": config.eps, "param_dtype": config.param_dtype}
        style = functools.partial(
            Style, past="edge", border="zeros", dtype=config.dtype, param_dtype=config.param_dtype
        )
        self.encoder = _encoder(config, style(norm=functools.partial(GroupNorm, **norm)), rngs)
        conditioned = functools.partial(LatentNorm, config.latent_channels, dtype=config.dtype, **norm)
        self.decoder = _decoder(config, style(norm=conditioned), rngs)

    def frames_of(self, latent_frames: int, *, first: bool = True) -> int:
        """Return the frames of one call; `first` is ignored, only the number of latent frames matters."""
        if latent_frames == 1:
            return self.config.temporal_ratio if self.config.double_lone_frame else 1
        return super().frames_of(latent_frames, first=latent_frames % 2 == 1)

    def _decode_chunk(self, latents: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        return self.decoder(latents, cache, latents)


class GroupNorm(nnx.GroupNorm):
    """Group norm over the frames and pixels of a chunk and the channels of a group, [B, F, H, W, C], in float32."""

    def __init__(self, channels: int, **kwargs: Any):
        super().__init__(channels, dtype=jnp.float32, use_fast_variance=False, **kwargs)

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        normed: jax.Array = super().__call__(x)
        return normed.astype(x.dtype)


class LatentNorm(nnx.Module):
    """Group norm, scaled and shifted by linear functions of the latent at the same pixel and frame."""

    def __init__(
        self, latent_channels: int, channels: int, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs, **kwargs: Any
    ):
        self.norm = GroupNorm(channels, param_dtype=param_dtype, rngs=rngs, **kwargs)
        common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "kernel_init": default_init, "rngs": rngs}
        self.scale = nnx.Linear(latent_channels, channels, **common)
        self.shift = nnx.Linear(latent_channels, channels, **common)

    def __call__(self, x: jax.Array, latents: jax.Array) -> jax.Array:
        scale, shift = (_resized(function(latents), x) for function in (self.scale, self.shift))
        return self.norm(x) * scale + shift


def _resized(values: jax.Array, x: jax.Array) -> jax.Array:
    """Resize [B, f, h, w, C] to the frames and pixels of x [B, F, H, W, C]; with odd F the first frame stays single."""
    single, rest = split_odd(x) if x.shape[1] > 1 else (x[:, :0], x)
    first, others = values[:, : single.shape[1]], values[:, single.shape[1] :]
    values = jnp.concatenate([first, jnp.repeat(others, rest.shape[1] // others.shape[1], axis=1)], axis=1)
    return enlarge(values, x.shape[2] // values.shape[2])


def _encoder(config: CogVideoXConfig, style: Style, rngs: nnx.Rngs) -> Coder:
    widths = (config.widths[0], *config.widths)
    levels = []
    for i, width in enumerate(config.widths):
        down = None
        if i < len(config.widths) - 1:
            down = AverageDown(width, time=2**i < config.temporal_ratio, style=style, rngs=rngs)
        levels.append(Level(widths[i], width, config.blocks, down, style=style, rngs=rngs))
    return Coder(
        conv_in=style.causal(config.image_channels, widths[0], rngs=rngs),
        levels=levels,
        middle=middle(widths[-1], None, style=style, rngs=rngs),
        head=Head(widths[-1], 2 * config.latent_channels, style=style, rngs=rngs),
        decoder=False,
    )


def _decoder(config: CogVideoXConfig, style: Style, rngs: nnx.Rngs) -> Coder:
    widths = (config.widths[-1], *config.widths[::-1])
    levels = []
    for i, width in enumerate(widths[1:]):
        up = None
        if i < len(config.widths) - 1:
            time = 2**i < config.temporal_ratio
            lone = config.double_lone_frame
            up = NearestUp(width, time=time, double_lone_frame=lone, style=style, rngs=rngs)
        levels.append(Level(widths[i], width, config.blocks + 1, up, style=style, rngs=rngs))
    return Coder(
        conv_in=style.causal(config.latent_channels, widths[0], rngs=rngs),
        levels=levels,
        middle=middle(widths[0], None, style=style, rngs=rngs),
        head=Head(widths[-1], config.image_channels, style=style, rngs=rngs),
        decoder=True,
    )
