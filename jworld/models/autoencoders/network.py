"""Base of all video autoencoder networks: frames to normalized latents and back, in one call or in pieces.

Pixels are uint8, or floats in [-1, 1], channels last: [B, T, H, W, 3]. Latents are [B, F, H', W', C] float32. A video
has T = ratio * k + 1 frames: the first frame becomes one latent frame, every `ratio` further frames another one.

Methods are pure functions of the module, to be compiled as in `jax.jit(WanAutoencoder.decode)(model, latents)`. Under a
mesh the batch and the width of the frames are sharded if they divide.
"""

import abc
import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jworld.models.autoencoders import linear
from jworld.models.autoencoders.blocks import Cache, Coder
from jworld.models.autoencoders.latents import Normalization, Posterior
from jworld.models.autoencoders.tiling import Tiling, tiled
from jworld.models.layers.stack import unhoisted
from jworld.parallel import axes
from jworld.utils import ranges
from jworld.utils.errors import UserError

Pieces = Callable[[jax.Array, Cache], tuple[jax.Array, Cache]]


class Step(Protocol):
    """Function of a piece and the cache; `i` is the number of a piece within a loop, None outside of one."""

    def __call__(self, x: jax.Array, cache: Cache, i: jax.Array | None = None, /) -> tuple[jax.Array, Cache]: ...


#: Metadata of settings that change the computation of latents but not their values.
HOW_ONLY = {"how_only": True}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(abc.ABC):
    """Hyper-parameters of all families.

    Attributes:
      latent_channels: C.
      blocks: residual blocks per level of the encoder; a level of the decoder has one more.
      normalisation: from the encoder's latents to the returned ones.
      chunk: latent frames computed at once, which bounds memory; None processes a clip in one piece.
      image_channels: color channels of a frame.
      dtype: activations and convolutions; norms, softmax and latents are float32.
      param_dtype: weights.
    """

    latent_channels: ranges.Size
    blocks: ranges.LayersOrZero
    normalisation: Normalization
    chunk: ranges.Size | None = dataclasses.field(default=1, metadata=HOW_ONLY)
    image_channels: ranges.Patch = 3
    dtype: ranges.DType = dataclasses.field(default=jnp.bfloat16, metadata=HOW_ONLY)
    param_dtype: ranges.DType = dataclasses.field(default=jnp.float32, metadata=HOW_ONLY)

    @property
    @abc.abstractmethod
    def spatial_ratio(self) -> int:
        """Pixels per latent, in height and in width."""

    @property
    @abc.abstractmethod
    def temporal_ratio(self) -> int:
        """Frames per latent frame after the first."""

    def __post_init__(self) -> None:
        try:
            ranges.check(self)
        except ValueError as error:
            raise UserError(str(error)) from error
        for name in ("shift", "scale"):
            found = len(getattr(self.normalisation, name))
            if found not in (1, self.latent_channels):
                raise UserError(f"normalisation.{name} has {found} numbers, expected 1 or {self.latent_channels}")


class VideoAutoencoder(nnx.Module):
    """Base class of the families."""

    family: ClassVar[str]
    #: True if the first piece of a clip is the first frame and the remainder, False if it has a whole chunk more.
    first_frame_alone: ClassVar[bool] = True

    config: AutoencoderConfig

    @property
    @abc.abstractmethod
    def moments_bias(self) -> nnx.Param[jax.Array]:
        """Bias [2C] of the layer that outputs mean and log variance."""

    def strengths(self, deviation: np.ndarray) -> np.ndarray:
        """Return the deviations [C] that normalized latents shall have, whose mean square is 1.

        Args:
          deviation: deviations [C] of the latents before normalization, on the training videos.
        """
        return np.ones_like(deviation)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return [F, H', W', C] of a video.

        Raises:
          UserError: the sizes do not fit.
        """
        space, time = self.config.spatial_ratio, self.config.temporal_ratio
        if frames < 1 or (frames - 1) % time:
            raise UserError(f"video has {frames} frames, expected {time}k+1: cut {(frames - 1) % time} frames")
        if height < 1 or width < 1 or height % space or width % space:
            raise UserError(f"video is {width}x{height}, expected multiples of {space}: resize the frames")
        return 1 + (frames - 1) // time, height // space, width // space, self.config.latent_channels

    def frames_of(self, latent_frames: int, *, first: bool = True) -> int:
        """Return the frames decoded in one call from `latent_frames`, at the start of a video (`first`) or later."""
        return self.config.temporal_ratio * (latent_frames - first) + first

    def posterior(self, video: jax.Array, *, tiling: Tiling | None = None) -> Posterior:
        """Encode video [B, T, H, W, 3] -> mean and log variance, not normalized."""
        self._check_video(video, first=True)
        return self._posterior(self._by_tiles(self._encode_pieces, video, tiling, encode=True))

    def encode(self, video: jax.Array, *, key: jax.Array | None = None, tiling: Tiling | None = None) -> jax.Array:
        """Encode video [B, T, H, W, 3] -> normalized latents: the posterior's mean or, with a key, a sample of it."""
        posterior = self.posterior(video, tiling=tiling)
        return self.config.normalisation.apply(posterior.mean if key is None else posterior.sample(key))

    def decode(self, latents: jax.Array, *, tiling: Tiling | None = None) -> jax.Array:
        """Decode normalized latents [B, F, H', W', C] -> video [B, T, H, W, 3] float32, not clipped."""
        self._check_latents(latents)
        return self._by_tiles(self._decode_pieces, latents, tiling, encode=False)

    def encode_step(self, video: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Encode the next frames of a video to normalized latents (means).

        `cache` None starts a video, with ratio * k + 1 frames. Later calls pass the cache of the previous call and
        ratio * k frames.
        """
        self._check_video(video, first=cache is None)
        moments, cache = self._encode_pieces(video, cache)
        return self.config.normalisation.apply(self._posterior(moments).mean), cache

    def decode_step(self, latents: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Decode the next normalized latents of a video to frames; `cache` as in `encode_step`."""
        self._check_latents(latents)
        return self._decode_pieces(latents, cache)

    def manifest_entry(self) -> dict[str, Any]:
        """Return the autoencoder's entry in the manifest of a data set."""
        return {"family": self.family, "normalised": True, "hash": self.hash(), **settings(self.config)}

    def hash(self) -> str:
        """Return the SHA-256 of the family, the settings that change latents, and the weights with names and shapes."""
        names = [f.name for f in dataclasses.fields(self.config) if f.metadata != HOW_ONLY]
        values = settings(self.config)
        digest = hashlib.sha256(json.dumps([self.family, {name: values[name] for name in names}]).encode())
        weights = {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(self, nnx.Param))}
        for path in sorted(weights):
            value = np.asarray(weights[path][...])
            digest.update(f"{path}{value.shape}{value.dtype}".encode() + value.tobytes())
        return digest.hexdigest()

    @abc.abstractmethod
    def _encode_chunk(self, video: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Encode frames -> moments [B, F, H', W', 2C]."""

    @abc.abstractmethod
    def _decode_chunk(self, latents: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Decode latents, not normalized, to frames."""

    def _encode_pieces(self, video: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        def step(frames: jax.Array, cache: Cache, i: jax.Array | None = None) -> tuple[jax.Array, Cache]:
            moments, cache = self._within(i)._encode_chunk(constrain_video(frames), cache)
            return constrain_video(moments.astype(jnp.float32)), cache

        chunk = self.config.chunk and self.config.chunk * self.config.temporal_ratio
        return in_pieces(step, video, cache, chunk=chunk, first_alone=self.first_frame_alone)

    def _decode_pieces(self, latents: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        def step(latents: jax.Array, cache: Cache, i: jax.Array | None = None) -> tuple[jax.Array, Cache]:
            latents = self.config.normalisation.invert(constrain_video(latents))
            video, cache = self._within(i)._decode_chunk(latents, cache)
            return constrain_video(video.astype(jnp.float32)), cache

        return in_pieces(step, latents, cache, chunk=self.config.chunk, first_alone=self.first_frame_alone)

    def _within(self, i: jax.Array | None) -> Self:
        """Return the network for use within a loop over `i`, outside of which no compiler copies its weights."""
        if i is None:
            return self
        graphdef, state = nnx.split(self)
        network: Self = nnx.merge(graphdef, jax.tree.map(lambda x: unhoisted(x, i, kernels=True), state))
        return network

    def _by_tiles(self, pieces: Pieces, x: jax.Array, tiling: Tiling | None, *, encode: bool) -> jax.Array:
        if tiling is None:
            return pieces(x, None)[0]
        latent = tiling.scaled(self.config.spatial_ratio)
        inputs, outputs = (tiling, latent) if encode else (latent, tiling)
        return tiled(lambda tile: pieces(tile, None)[0], x, inputs=inputs, outputs=outputs)

    def _posterior(self, moments: jax.Array) -> Posterior:
        return Posterior(*jnp.split(moments, 2, axis=-1))

    def _check_video(self, video: jax.Array, *, first: bool) -> None:
        if video.ndim != 5 or video.shape[-1] != self.config.image_channels:
            expected = f"[B, T, H, W, {self.config.image_channels}]"
            raise UserError(f"video has shape {list(video.shape)}, expected {expected}")
        frames, height, width = video.shape[1:4]
        ratio = self.config.temporal_ratio
        self.latent_shape(frames if first else 1, height, width)
        if not first and (frames < 1 or frames % ratio):
            raise UserError(f"a later part of a video has {frames} frames, expected a multiple of {ratio}")

    def _check_latents(self, latents: jax.Array) -> None:
        if latents.ndim != 5 or not latents.shape[1] or latents.shape[-1] != self.config.latent_channels:
            raise UserError(
                f"latents have shape {list(latents.shape)}, expected [B, F, H, W, {self.config.latent_channels}]: "
                "use the autoencoder that encoded them"
            )


class CoderAutoencoder(VideoAutoencoder):
    """Base class of the published families: an encoder and a decoder of the same building blocks."""

    encoder: Coder
    decoder: Coder

    @property
    def moments_bias(self) -> nnx.Param[jax.Array]:
        return self.encoder.head.conv.bias

    def _encode_chunk(self, video: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        return self.encoder(linear.to_float(video), cache)

    def _decode_chunk(self, latents: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        return self.decoder(latents, cache)


def in_pieces(
    step: Step, x: jax.Array, cache: Cache, *, chunk: int | None, first_alone: bool
) -> tuple[jax.Array, Cache]:
    """Run x [B, F, ...] through `step` in chunks along F; the first piece also takes the remainder.

    At the start of a video (`cache` None) and with `first_alone` the first piece is one frame and the remainder,
    otherwise one chunk and the remainder. The loop runs inside a compiled program and writes its results in place, so
    memory in addition to input and output does not grow with F.
    """
    length = x.shape[1]
    chunk = chunk or length
    lead = 1 if cache is None and first_alone else chunk
    head = lead + (length - lead) % chunk if length >= lead else length
    y, cache = step(x[:, :head], cache)
    count = (length - head) // chunk
    if not count:
        return y, cache

    def piece(i: jax.Array | int) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, head + i * chunk, chunk, axis=1)

    start, frames = y.shape[1], jax.eval_shape(step, piece(0), cache)[0].shape[1]
    out = jnp.zeros_like(y, shape=(y.shape[0], start + count * frames, *y.shape[2:]))
    out = jax.lax.dynamic_update_slice_in_dim(out, y, 0, axis=1)

    def body(i: jax.Array, carry: tuple[jax.Array, Cache]) -> tuple[jax.Array, Cache]:
        out, cache = carry
        y, cache = step(piece(i), cache, i)
        return jax.lax.dynamic_update_slice_in_dim(out, y, start + i * frames, axis=1), cache

    filled: tuple[jax.Array, Cache] = jax.lax.fori_loop(0, count, body, (out, cache))
    return filled


def constrain_video(x: jax.Array) -> jax.Array:
    """Shard batch and width of [B, F, H, W, C] over the mesh, each if it divides; a no-op outside a mesh."""
    return axes.constrain_if_divisible(x, "batch", None, None, "width", None)


def settings(config: AutoencoderConfig) -> dict[str, Any]:
    """Return the config as JSON values."""
    text = json.dumps(dataclasses.asdict(config), default=lambda dtype: jnp.dtype(dtype).name)
    values: dict[str, Any] = json.loads(text)
    return values
