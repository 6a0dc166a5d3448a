"""HunyuanVideo-1.5 video autoencoder: 32 channels, 16x16 pixels and 4 frames per latent.

Results of its convolutions do not depend on how a video is split into calls and chunks. Nor do those of its attention
within one latent frame, as in HY-WorldPlay (training data, training, rollouts). With attention to all earlier frames,
as in HunyuanVideo-1.5, only a single pass over the clip (or over the whole clip in tiles) equals the published model,
and everything after the first frame differs from WorldPlay.

Source: HunyuanVideo-1.5 `hunyuanvideo_15_vae.py`, HY-WorldPlay `hunyuanvideo_15_vae_w_cache.py`.
"""

import dataclasses
import functools
import math
from typing import ClassVar, Literal

import jax
from flax import nnx

from jworld.models.autoencoders import network
from jworld.models.autoencoders.blocks import Cache, ChannelNorm, Coder, Head, Level, Style, middle
from jworld.models.autoencoders.latents import Normalization
from jworld.models.autoencoders.samplers import ShuffleDown, ShuffleUp, repeated
from jworld.models.layers.causal_conv import CausalConv
from jworld.utils import ranges
from jworld.utils.errors import UserError

NORMALIZATION = Normalization(scale=(1.03682,))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hunyuan15Config(network.AutoencoderConfig):
    """Hyper-parameters, by default of the published autoencoder: 1,260.6M parameters.

    Attributes:
      widths: of each level of the encoder; from level to level the size halves until the ratios are reached.
      spatial_ratio: pixels per latent, in height and in width.
      temporal_ratio: frames per latent frame after the first.
      attention: context of the middle's attention: "frame" (WorldPlay), or "causal", this and all earlier latent
        frames, which needs chunk=None and does not stream.
    """

    latent_channels: ranges.Size = 32
    blocks: ranges.LayersOrZero = 2
    normalisation: Normalization = NORMALIZATION
    widths: tuple[ranges.Size, ...] = (128, 256, 512, 1024, 1024)
    spatial_ratio: ranges.Ratio = 16
    temporal_ratio: ranges.Ratio = 4
    attention: Literal["frame", "causal"] = "frame"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("spatial_ratio", "temporal_ratio"):
            if not math.log2(getattr(self, name)).is_integer():
                raise UserError(f"{name} is {getattr(self, name)}, expected a power of 2")
        if not self.temporal_ratio <= self.spatial_ratio <= 2 ** (len(self.widths) - 1):
            raise UserError(
                f"{len(self.widths)} widths allow a spatial_ratio of at most {2 ** (len(self.widths) - 1)} and a "
                f"temporal_ratio of at most that: found {self.spatial_ratio} and {self.temporal_ratio}"
            )
        if self.widths[-1] % (2 * self.latent_channels):
            raise UserError(
                f"the last width {self.widths[-1]} is not a multiple of 2 x {self.latent_channels} channels: "
                "choose another width"
            )
        if self.attention == "causal" and self.chunk is not None:
            raise UserError("attention 'causal' needs the whole clip: set chunk to None")


class Hunyuan15Autoencoder(network.CoderAutoencoder):
    """HunyuanVideo-1.5 autoencoder; see `network.VideoAutoencoder`."""

    family: ClassVar[str] = "hunyuan15"
    config: Hunyuan15Config

    def __init__(self, config: Hunyuan15Config, *, rngs: nnx.Rngs):
        self.config = config
        style = Style(
            past="edge",
            border="edge",
            norm=functools.partial(ChannelNorm, param_dtype=config.param_dtype),
            dtype=config.dtype,
            param_dtype=config.param_dtype,
        )
        self.encoder = _encoder(config, style, rngs)
        self.decoder = _decoder(config, style, rngs)

    def encode_step(self, video: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        self._check_streams()
        return super().encode_step(video, cache)

    def decode_step(self, latents: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        self._check_streams()
        return super().decode_step(latents, cache)

    def _check_streams(self) -> None:
        if self.config.attention == "causal":
            raise UserError("attention is 'causal', which needs the whole clip: stream with attention 'frame'")


class WideningConv(CausalConv):
    """Causal convolution to more channels, plus the input with every channel repeated."""

    def __call__(
        self, x: jax.Array, cache: jax.Array | None, latents: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        y, new = super().__call__(x, cache)
        return y + repeated(x.astype(y.dtype), y.shape[-1]), new


def _encoder(config: Hunyuan15Config, style: Style, rngs: nnx.Rngs) -> Coder:
    widths = config.widths
    halvings = int(math.log2(config.spatial_ratio))
    levels = []
    for i, width in enumerate(widths):
        time = i >= halvings - int(math.log2(config.temporal_ratio))
        down = ShuffleDown(width, widths[i + 1], time=time, style=style, rngs=rngs) if i < halvings else None
        levels.append(Level(width, width, config.blocks, down, style=style, rngs=rngs))
    return Coder(
        conv_in=style.causal(config.image_channels, widths[0], rngs=rngs),
        levels=levels,
        middle=middle(widths[-1], config.attention, style=style, rngs=rngs),
        head=Head(widths[-1], 2 * config.latent_channels, shortcut=True, style=style, rngs=rngs),
        decoder=False,
    )


def _decoder(config: Hunyuan15Config, style: Style, rngs: nnx.Rngs) -> Coder:
    widths = config.widths[::-1]
    levels = []
    for i, width in enumerate(widths):
        time = 2**i < config.temporal_ratio
        up = None
        if 2**i < config.spatial_ratio:
            up = ShuffleUp(width, widths[i + 1], time=time, style=style, rngs=rngs)
        levels.append(Level(width, width, config.blocks + 1, up, style=style, rngs=rngs))
    return Coder(
        conv_in=style.causal(config.latent_channels, widths[0], kind=WideningConv, rngs=rngs),
        levels=levels,
        middle=middle(widths[0], config.attention, style=style, rngs=rngs),
        head=Head(widths[-1], config.image_channels, style=style, rngs=rngs),
        decoder=True,
    )
