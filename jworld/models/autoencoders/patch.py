"""Small video autoencoder for two CPU cores: a linear transform of patches, and a decoder that joins the patches.

A video is coded in groups of `temporal_ratio` frames; the first frame is coded alone, as a group in which it stands
still. A latent never depends on later frames.

Encoder: an orthonormal transform of the patches of a group (PCA, as `linear` fits it), every channel divided by its
deviation. It has no other layer, so the latents of a video do not depend on the decoder's training.

Decoder: the transpose of that transform, which leaves seams between patches, plus two corrections:
  overlap: a linear map of the 3 x 3 latents around a patch, of low rank. Its best values have a closed form
    (`systems.autoencoder.overlap`) and take most of the seams away.
  convolutions over cells of `CELL` x `CELL` pixels of the corrected patches, the frames of a group as channels of one
    image, with hints from the latents and those of the group before. Their last layer starts at zero.
"""

import dataclasses
from typing import ClassVar

import einops
import jax
import jax.numpy as jnp
import numpy as np
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
#: The identity: the transform itself gives latents of unit deviation.
NORMALIZATION = Normalization()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchConfig(network.AutoencoderConfig):
    """Hyper-parameters, by default of the shipped autoencoder.

    Attributes:
      blocks: residual blocks of the decoder.
      width: channels of the residual blocks.
      rank: rank of the map from the latents around a patch to its pixels.
      spatial_ratio: pixels per latent, in height and in width.
      temporal_ratio: frames of a group.
      whitening: deviations of the latents as diffusion models see them: 1 makes those of all channels equal, 0 keeps
        those of the principal components. A model of equal channels spends as much on faint detail as on the layout.
    """

    latent_channels: ranges.Size = 128
    blocks: ranges.LayersOrZero = 4
    normalisation: Normalization = NORMALIZATION
    width: ranges.Size = 64
    rank: ranges.Size = 96
    spatial_ratio: ranges.Ratio = 16
    temporal_ratio: ranges.Ratio = 4
    # The normalization, which it determines, is what changes latents.
    whitening: ranges.Share = dataclasses.field(default=1.0, metadata=network.HOW_ONLY)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.spatial_ratio % CELL:
            raise UserError(f"spatial_ratio is {self.spatial_ratio}, expected a multiple of {CELL}")
        for name in ("latent_channels", "rank"):
            if getattr(self, name) > self.patch_size:
                raise UserError(
                    f"{name} is {getattr(self, name)}, expected 1..{self.patch_size} (the values of a patch)"
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
    def side(self) -> int:
        """Cells in a patch, in height and in width."""
        return self.spatial_ratio // CELL


class PatchAutoencoder(network.VideoAutoencoder):
    """Autoencoder of patches; see `network.VideoAutoencoder`."""

    family: ClassVar[str] = "patch"
    config: PatchConfig

    def __init__(self, config: PatchConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.transform = Transform(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)
        self.moments = nnx.Param(jnp.zeros((2 * config.latent_channels,)))

    @property
    def moments_bias(self) -> nnx.Param[jax.Array]:
        return self.moments

    def strengths(self, deviation: np.ndarray) -> np.ndarray:
        uneven = (np.asarray(self.transform.deviation[...], np.float64) * deviation) ** (1 - self.config.whitening)
        strengths: np.ndarray = uneven / np.sqrt(np.mean(np.square(uneven)))
        return strengths

    def _encode_chunk(self, video: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        pixels = linear.to_float(video)
        if cache is None:
            still = jnp.repeat(pixels[:, :1], self.config.temporal_ratio, axis=1)
            pixels = jnp.concatenate([still, pixels[:, 1:]], axis=1)
        mean = self.transform.project(self._patches(pixels))
        return jnp.concatenate([mean, jnp.zeros_like(mean)], axis=-1) + self.moments[...], ()

    def _decode_chunk(self, latents: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        latents = latents - self.moments[..., : self.config.latent_channels]
        before = latents[:, :1] if cache is None else cache
        earlier = jnp.concatenate([before, latents[:, :-1]], axis=1)
        frames = self.decoder(self.transform.reconstruct(latents), latents, earlier)
        return frames if cache is not None else frames[:, self.config.temporal_ratio - 1 :], latents[:, -1:]

    def _patches(self, video: jax.Array) -> jax.Array:
        cfg = self.config
        return einops.rearrange(
            video,
            "b (g t) (h p) (w q) c -> b g h w (t p q c)",
            t=cfg.temporal_ratio,
            p=cfg.spatial_ratio,
            q=cfg.spatial_ratio,
        )


class Transform(nnx.Module):
    """Patches [..., P] to latents [..., C] of unit deviation and back; the columns of `basis` are orthonormal."""

    def __init__(self, config: PatchConfig, *, rngs: nnx.Rngs):
        self.basis = nnx.Param(
            nnx.initializers.orthogonal()(rngs.params(), (config.patch_size, config.latent_channels))
        )
        self.deviation = nnx.Param(jnp.ones((config.latent_channels,)))
        self.mean = nnx.Param(jnp.zeros((config.patch_size,)))

    def fit(self, autoencoder: linear.LinearAutoencoder) -> None:
        """Take the transform of groups from a linear autoencoder with the same ratios and channels."""
        group = autoencoder.group
        self.basis[...], self.mean[...] = group.basis[...], group.mean[...]
        self.deviation[...] = jnp.broadcast_to(group.scale[...], self.deviation.shape)

    def project(self, patches: jax.Array) -> jax.Array:
        return (patches - self.mean[...]) @ self.basis[...] / self.deviation[...]

    def reconstruct(self, latents: jax.Array) -> jax.Array:
        return (latents * self.deviation[...]) @ self.basis[...].T + self.mean[...]


class Decoder(nnx.Module):
    """Patches [B, k, H', W', P], their latents [B, k, H', W', C] and those before -> frames [B, ratio * k, H, W, 3]."""

    def __init__(self, config: PatchConfig, *, rngs: nnx.Rngs):
        self.config = config
        width, hints = config.width, config.width // 4
        self.around = _conv(config, config.latent_channels, config.rank, rngs=rngs)
        self.overlap = nnx.Param(zeros_init(rngs.params(), (config.rank, config.patch_size), config.param_dtype))
        self.hints = _conv(config, 2 * config.latent_channels, hints * config.side**2, kernel=1, rngs=rngs)
        self.enter = _conv(config, config.cell_size + hints, width, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.blocks)])
        self.leave = _conv(config, width, config.cell_size, rngs=rngs)
        self.leave.kernel[...] = jnp.zeros_like(self.leave.kernel[...])

    def fit(self, around: jax.Array, overlap: jax.Array, bias: jax.Array) -> None:
        """Take a fitted map of the latents around a patch: [9 C, rank], [rank, P] and [rank]."""
        self.around.kernel[...] = around.reshape(self.around.kernel.shape)
        self.around.bias[...] = bias
        self.overlap[...] = overlap

    def __call__(self, patches: jax.Array, latents: jax.Array, earlier: jax.Array) -> jax.Array:
        cfg = self.config
        cut = {"t": cfg.temporal_ratio, "p": CELL, "q": CELL}
        patches += self.around(latents) @ self.overlap[...]
        cells = einops.rearrange(
            patches,
            "b g h w (t i p j q c) -> b g (h i) (w j) (t p q c)",
            i=cfg.side,
            j=cfg.side,
            **cut,
        )
        hints = self.hints(jnp.concatenate([latents, earlier], axis=-1))
        hints = einops.rearrange(hints, "b g h w (i j c) -> b g (h i) (w j) c", i=cfg.side, j=cfg.side)
        x = self.enter(jnp.concatenate([cells.astype(hints.dtype), hints], axis=-1))
        for block in self.blocks:
            x = block(x)
        cells += self.leave(jax.nn.silu(x))
        return einops.rearrange(cells, "b g h w (t p q c) -> b (g t) (h p) (w q) c", **cut)


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
