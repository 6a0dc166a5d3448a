"""Wan 2.1 video autoencoder of Cosmos-Predict2 and TheWorld: 16 channels, 8x8 pixels and 4 frames per latent.

A video may be split into calls and chunks of any length: latents and frames do not depend on the split.

Source: Wan 2.1 and cosmos-predict2 `cosmos_predict2/tokenizers/tokenizer.py`.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
from flax import nnx

from jworld.models.autoencoders import network
from jworld.models.autoencoders.blocks import Cache, ChannelNorm, Coder, Head, Level, Style, middle
from jworld.models.autoencoders.latents import Normalization
from jworld.models.autoencoders.samplers import LearnedDown, LearnedUp
from jworld.utils import ranges
from jworld.utils.errors import UserError

_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
NORMALIZATION = Normalization.from_statistics(_MEAN, _STD)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WanConfig(network.AutoencoderConfig):
    """Hyper-parameters, by default of the published autoencoder: 126.9M parameters.

    Attributes:
      channels: width at full resolution.
      multipliers: width of each level of the encoder, in `channels`; from level to level the size halves.
      time_levels: for each of these steps, whether the frames are halved too.
    """

    latent_channels: ranges.Size = 16
    blocks: ranges.LayersOrZero = 2
    normalisation: Normalization = NORMALIZATION
    channels: ranges.Size = 96
    multipliers: tuple[ranges.Patch, ...] = (1, 2, 4, 4)
    time_levels: tuple[bool, ...] = (False, True, True)

    @property
    def spatial_ratio(self) -> int:
        return int(2 ** (len(self.multipliers) - 1))

    @property
    def temporal_ratio(self) -> int:
        return int(2 ** sum(self.time_levels))

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.time_levels) != len(self.multipliers) - 1:
            raise UserError(
                f"time_levels has {len(self.time_levels)} entries, expected {len(self.multipliers) - 1}: "
                "one for each step between two levels"
            )


class WanAutoencoder(network.CoderAutoencoder):
    """Wan 2.1 autoencoder; see `network.VideoAutoencoder`."""

    family: ClassVar[str] = "wan"
    config: WanConfig

    def __init__(self, config: WanConfig, *, rngs: nnx.Rngs):
        self.config = config
        style = Style(
            past="zeros",
            border="zeros",
            norm=functools.partial(ChannelNorm, param_dtype=config.param_dtype),
            dtype=config.dtype,
            param_dtype=config.param_dtype,
        )
        moments = 2 * config.latent_channels
        self.encoder = _encoder(config, style, rngs)
        self.moments = style.linear(moments, moments, rngs=rngs)
        self.latents = style.linear(config.latent_channels, config.latent_channels, rngs=rngs)
        self.decoder = _decoder(config, style, rngs)

    @property
    def moments_bias(self) -> nnx.Param[jax.Array]:
        bias = self.moments.bias
        assert bias is not None
        return bias

    def _encode_chunk(self, video: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        moments, cache = super()._encode_chunk(video, cache)
        return self.moments(moments), cache

    def _decode_chunk(self, latents: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        return super()._decode_chunk(self.latents(latents), cache)


def _encoder(config: WanConfig, style: Style, rngs: nnx.Rngs) -> Coder:
    widths = [config.channels * factor for factor in (1, *config.multipliers)]
    levels = []
    for i, width in enumerate(widths[1:]):
        down = None
        if i < len(config.time_levels):
            down = LearnedDown(width, time=config.time_levels[i], style=style, rngs=rngs)
        levels.append(Level(widths[i], width, config.blocks, down, style=style, rngs=rngs))
    return Coder(
        conv_in=style.causal(config.image_channels, widths[0], rngs=rngs),
        levels=levels,
        middle=middle(widths[-1], "frame", style=style, rngs=rngs),
        head=Head(widths[-1], 2 * config.latent_channels, style=style, rngs=rngs),
        decoder=False,
    )


def _decoder(config: WanConfig, style: Style, rngs: nnx.Rngs) -> Coder:
    widths = [config.channels * factor for factor in config.multipliers[::-1]]
    times = config.time_levels[::-1]
    levels = []
    incoming = widths[0]
    for i, width in enumerate(widths):
        up = None
        if i < len(times):
            up = LearnedUp(width, width // 2, time=times[i], style=style, rngs=rngs)
        levels.append(Level(incoming, width, config.blocks + 1, up, style=style, rngs=rngs))
        incoming = width // 2
    return Coder(
        conv_in=style.causal(config.latent_channels, widths[0], rngs=rngs),
        levels=levels,
        middle=middle(widths[0], "frame", style=style, rngs=rngs),
        head=Head(widths[-1], config.image_channels, style=style, rngs=rngs),
        decoder=True,
    )
