"""Small video autoencoder for two CPU cores: a linear transform of patches, refined by convolutions.

A video is coded in groups of `temporal_ratio` frames; the first frame is coded alone, as a group in which it stands
still. The frames of a group are channels of one image, which is cut into cells of `CELL` x `CELL` pixels. All
convolutions are over that image, so they run at 1 / `CELL` of the resolution, once per group.

Encoder: an orthonormal transform of the patches, plus a residual from convolutions. Decoder: the transpose of the
transform, plus a residual from convolutions over the decoded patches, the latents, and the latents of the group
before. The last layers of both residuals start at zero, so training starts from the transform: `set_transform` takes
that of a fitted linear autoencoder (PCA). A latent never depends on later frames.
"""

import dataclasses
from typing import ClassVar

import einops
import jax
import jax.numpy as jnp
from flax import nnx

from jworld.models.autoencoders import linear, network
from jworld.models.autoencoders.blocks import Cache
from jworld.models.autoencoders.latents import Normalization
from jworld.models.layers.causal_conv import Conv
from jworld.models.layers.linear import zeros_init
from jworld.utils import ranges
from jworld.utils.errors import UserError

#: Pixels, in height and in width, of one position of the convolutions.
CELL = 4
#: The identity: the release of a trained autoencoder measures its own.
NORMALIZATION = Normalization()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchConfig(network.AutoencoderConfig):
    """Hyper-parameters, by default of the shipped autoencoder.

    Attributes:
      blocks: residual blocks of the encoder; the decoder has twice as many.
      width: channels of the residual blocks.
      spatial_ratio: pixels per latent, in height and in width.
      temporal_ratio: frames of a group.
    """

    latent_channels: ranges.Size = 48
    blocks: ranges.LayersOrZero = 2
    normalisation: Normalization = NORMALIZATION
    width: ranges.Size = 72
    spatial_ratio: ranges.Ratio = 16
    temporal_ratio: ranges.Ratio = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.spatial_ratio % CELL:
            raise UserError(f"spatial_ratio is {self.spatial_ratio}, expected a multiple of {CELL}")
        if not self.latent_channels <= self.patch_size:
            raise UserError(
                f"latent_channels is {self.latent_channels}, expected 1..{self.patch_size} (the values of a patch)"
            )

    @property
    def patch_size(self) -> int:
        """Number of values in a patch."""
        return self.temporal_ratio * self.spatial_ratio**2 * self.image_channels

    @property
    def cell_size(self) -> int:
        """Number of values in a cell."""
        return self.temporal_ratio * CELL**2 * self.image_channels

    @property
    def cells(self) -> int:
        """Cells in a patch."""
        return (self.spatial_ratio // CELL) ** 2


class PatchAutoencoder(network.VideoAutoencoder):
    """Autoencoder of patches; see `network.VideoAutoencoder`."""

    family: ClassVar[str] = "patch"
    config: PatchConfig

    def __init__(self, config: PatchConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)

    @property
    def moments_bias(self) -> nnx.Param[jax.Array]:
        return self.encoder.bias

    def set_transform(self, autoencoder: linear.LinearAutoencoder) -> None:
        """Take the transform of groups from a linear autoencoder with the same ratios and channels."""
        group = autoencoder.group
        basis, mean, scale = group.basis[...], group.mean[...], group.scale[...]
        channels = self.config.latent_channels
        self.encoder.basis[...] = basis / scale
        self.encoder.bias[...] = self.encoder.bias[...].at[:channels].set(-mean @ (basis / scale))
        self.decoder.basis[...] = (basis * scale).T
        self.decoder.bias[...] = mean

    def _encode_chunk(self, video: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        pixels = linear.to_float(video)
        if cache is None:
            still = jnp.repeat(pixels[:, :1], self.config.temporal_ratio, axis=1)
            pixels = jnp.concatenate([still, pixels[:, 1:]], axis=1)
        return self.encoder(pixels), ()

    def _decode_chunk(self, latents: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        before = latents[:, :1] if cache is None else cache
        earlier = jnp.concatenate([before, latents[:, :-1]], axis=1)
        frames = self.decoder(latents, earlier)
        return frames if cache is not None else frames[:, self.config.temporal_ratio - 1 :], latents[:, -1:]


class Encoder(nnx.Module):
    """Groups [B, T, H, W, 3] of T = ratio * k frames in [-1, 1] -> mean and log variance [B, k, H', W', 2C]."""

    def __init__(self, config: PatchConfig, *, rngs: nnx.Rngs):
        self.config = config
        width, outputs = config.width, config.latent_channels
        self.basis = nnx.Param(nnx.initializers.orthogonal()(rngs.params(), (config.patch_size, outputs)))
        self.bias = nnx.Param(jnp.zeros((2 * outputs,)))
        self.enter = _conv(config, config.cell_size, width, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.blocks)])
        self.leave = nnx.Param(zeros_init(rngs.params(), (config.cells * width, 2 * outputs), config.param_dtype))

    def __call__(self, video: jax.Array) -> jax.Array:
        cfg = self.config
        groups = einops.rearrange(
            video,
            "b (g t) (h i p) (w j q) c -> b g h w (t i p j q c)",
            t=cfg.temporal_ratio,
            p=CELL,
            q=CELL,
            i=cfg.spatial_ratio // CELL,
            j=cfg.spatial_ratio // CELL,
        )
        cells = einops.rearrange(
            video, "b (g t) (h p) (w q) c -> b g h w (t p q c)", t=cfg.temporal_ratio, p=CELL, q=CELL
        )
        x = self.enter(cells)
        for block in self.blocks:
            x = block(x)
        side = cfg.spatial_ratio // CELL
        x = einops.rearrange(jax.nn.silu(x), "b g (h i) (w j) c -> b g h w (i j c)", i=side, j=side)
        mean = groups @ self.basis[...]
        mean = jnp.concatenate([mean, jnp.zeros_like(mean)], axis=-1)
        return mean + x @ self.leave[...].astype(cfg.dtype) + self.bias[...]


class Decoder(nnx.Module):
    """Latents [B, k, H', W', C] and those of the group before each -> frames [B, ratio * k, H, W, 3]."""

    def __init__(self, config: PatchConfig, *, rngs: nnx.Rngs):
        self.config = config
        width, side = config.width, config.spatial_ratio // CELL
        self.basis = nnx.Param(
            nnx.initializers.orthogonal()(rngs.params(), (config.latent_channels, config.patch_size))
        )
        self.bias = nnx.Param(jnp.zeros((config.patch_size,)))
        self.hints = _conv(config, 2 * config.latent_channels, width // 4 * side**2, kernel=1, rngs=rngs)
        self.enter = _conv(config, config.cell_size + width // 4, width, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(2 * config.blocks)])
        self.leave = _conv(config, width, config.cell_size, rngs=rngs)
        self.leave.kernel[...] = jnp.zeros_like(self.leave.kernel[...])

    def __call__(self, latents: jax.Array, earlier: jax.Array) -> jax.Array:
        cfg = self.config
        side = cfg.spatial_ratio // CELL
        patches = latents @ self.basis[...] + self.bias[...]
        base = einops.rearrange(
            patches,
            "b g h w (t i p j q c) -> b g (h i) (w j) (t p q c)",
            t=cfg.temporal_ratio,
            p=CELL,
            q=CELL,
            i=side,
            j=side,
        )
        hints = self.hints(jnp.concatenate([latents, earlier], axis=-1))
        hints = einops.rearrange(hints, "b g h w (i j c) -> b g (h i) (w j) c", i=side, j=side)
        x = self.enter(jnp.concatenate([base.astype(hints.dtype), hints], axis=-1))
        for block in self.blocks:
            x = block(x)
        cells = base + self.leave(jax.nn.silu(x))
        return einops.rearrange(
            cells, "b g h w (t p q c) -> b (g t) (h p) (w q) c", t=cfg.temporal_ratio, p=CELL, q=CELL
        )


class Block(nnx.Module):
    """Residual block of two convolutions, [B, k, h, w, width] -> the same shape."""

    def __init__(self, config: PatchConfig, *, rngs: nnx.Rngs):
        self.first = _conv(config, config.width, config.width, rngs=rngs)
        self.second = _conv(config, config.width, config.width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.second(jax.nn.silu(self.first(jax.nn.silu(x))))


def _conv(config: PatchConfig, inputs: int, outputs: int, *, kernel: int = 3, rngs: nnx.Rngs) -> Conv:
    return Conv(
        inputs, outputs, (kernel, kernel), border="edge", dtype=config.dtype, param_dtype=config.param_dtype, rngs=rngs
    )
