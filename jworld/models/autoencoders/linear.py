"""Linear video autoencoder, fitted in closed form: PCA over patches, causal in time.

The first frame is encoded alone (patches of ratio x ratio pixels). Every later group of `temporal_ratio` frames has
another basis (patches of temporal_ratio x ratio x ratio pixels). So T = 1 + 4k frames become F = 1 + k latent frames,
and a latent never depends on later frames. It needs no published weights and has the interface of the networks
(`network.VideoAutoencoder`), except for the posterior.

Normalization: coefficients are centered by the mean patch and divided by ONE number per basis, their common standard
deviation. The bases are orthonormal, so a squared error in the latents is the squared error in the pixels times a
constant. Dividing every channel by its own deviation (whitening 1) would weight faint detail as much as the layout of
the scene. Values in between are closer to a learned autoencoder, whose channels all vanish at similar noise levels.

Pixels are uint8, or floats in [-1, 1].
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable
from typing import Any, ClassVar, TypeVar

import einops
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import scipy.linalg
from flax import nnx

from jworld.utils import files, resources, tensor_files
from jworld.utils.errors import UserError

Video = TypeVar("Video", np.ndarray, jax.Array)

FAMILY = "linear"
_WEIGHTS = ("basis", "mean", "scale", "std")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearConfig:
    channels: int
    spatial_ratio: int = 8
    temporal_ratio: int = 4
    image_channels: int = 3

    def __post_init__(self) -> None:
        if self.spatial_ratio not in (8, 16):
            raise UserError(f"spatial_ratio is {self.spatial_ratio}, expected 8 or 16: choose one of them")
        if self.temporal_ratio < 1 or self.image_channels < 1:
            raise UserError(
                f"temporal_ratio {self.temporal_ratio} and image_channels {self.image_channels} must be positive"
            )
        if not 1 <= self.channels <= self.patch_size(first=True):
            raise UserError(
                f"channels is {self.channels}, expected 1..{self.patch_size(first=True)} (the values of one "
                f"{self.spatial_ratio}x{self.spatial_ratio} patch): choose fewer channels"
            )

    def patch_size(self, *, first: bool) -> int:
        """Return the number of values in one patch."""
        return (1 if first else self.temporal_ratio) * self.spatial_ratio**2 * self.image_channels


class Basis(nnx.Module):
    """Basis [P, C], mean [P], scale [] or [C], and std [C] of the latents, float32."""

    def __init__(self, weights: dict[str, np.ndarray]):
        self.basis, self.mean, self.scale, self.std = (nnx.Param(jnp.asarray(weights[name])) for name in _WEIGHTS)

    def project(self, patches: jax.Array) -> jax.Array:
        """Project [..., P] -> [..., C]."""
        return _matmul(patches - self.mean[...], self.basis[...] / self.scale[...])

    def reconstruct(self, latents: jax.Array) -> jax.Array:
        """Reconstruct [..., C] -> [..., P]."""
        return _matmul(latents, (self.basis[...] * self.scale[...]).T) + self.mean[...]


class LinearAutoencoder(nnx.Module):
    """Linear autoencoder with a basis for the first frame and one for the groups.

    `weights` are those of both, named "first.basis" and so on.
    """

    family: ClassVar[str] = FAMILY
    first_frame_alone: ClassVar[bool] = True
    config: LinearConfig

    def __init__(self, config: LinearConfig, weights: dict[str, np.ndarray]) -> None:
        self.config = config
        for kind in ("first", "group"):
            size = config.patch_size(first=kind == "first")
            shapes = {"basis": (size, config.channels), "mean": (size,), "scale": (), "std": (config.channels,)}
            if np.ndim(weights.get(f"{kind}.scale", 0)):  # one scale per channel if whitened
                shapes["scale"] = shapes["std"]
            for name in _WEIGHTS:
                found = weights.get(f"{kind}.{name}")
                if found is None or found.shape != shapes[name] or found.dtype != np.float32:
                    text = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
                    expected = f"float32 {list(shapes[name])}"
                    raise UserError(
                        f"linear autoencoder, weight '{kind}.{name}': found {text}, expected {expected}: fit it again"
                    )
        self.first, self.group = (
            Basis({name: weights[f"{kind}.{name}"] for name in _WEIGHTS}) for kind in ("first", "group")
        )

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """Weights by name, as in the file."""
        kinds = {"first": self.first, "group": self.group}
        return {
            f"{kind}.{name}": np.asarray(getattr(basis, name)[...])
            for kind, basis in kinds.items()
            for name in _WEIGHTS
        }

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return [F, H', W', C] of a video.

        Raises:
          UserError: the sizes do not divide.
        """
        ratio, step = self.config.spatial_ratio, self.config.temporal_ratio
        if frames < 1 or (frames - 1) % step:
            raise UserError(
                f"video has {frames} frames, expected {step}k+1: cut {(frames - 1) % step if frames else 0} frames"
            )
        if height % ratio or width % ratio:
            raise UserError(f"video is {width}x{height}, expected multiples of {ratio}: resize the frames")
        return 1 + (frames - 1) // step, height // ratio, width // ratio, self.config.channels

    def encode(self, video: jax.Array) -> jax.Array:
        """Encode video [B, T, H, W, 3] (T = 4k+1) -> normalized latents [B, F, H', W', C] float32."""
        if video.ndim != 5 or video.shape[-1] != self.config.image_channels:
            raise UserError(f"video has shape {list(video.shape)}, expected [B, T, H, W, {self.config.image_channels}]")
        self.latent_shape(*video.shape[1:4])
        pixels = to_float(video)
        first, group = (
            basis.project(_to_patches(part, step, self.config.spatial_ratio))
            for basis, part, step in (
                (self.first, pixels[:, :1], 1),
                (self.group, pixels[:, 1:], self.config.temporal_ratio),
            )
        )
        return jnp.concatenate([first, group], axis=1)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Decode latents [B, F, H', W', C] -> video [B, T, H, W, 3], float32 in [-1, 1]."""
        return self.decode_step(latents, None)[0]

    def decode_step(self, latents: jax.Array, cache: tuple[()] | None) -> tuple[jax.Array, tuple[()]]:
        """Decode the next latents of a stream to frames; `cache` None starts a stream, later it is empty."""
        if latents.ndim != 5 or latents.shape[-1] != self.config.channels:
            raise UserError(
                f"latents have shape {list(latents.shape)}, expected [B, F, H, W, {self.config.channels}]: "
                "use the autoencoder that encoded them"
            )
        latents = latents.astype(jnp.float32)
        lead = 1 if cache is None else 0
        first, group = (
            _from_patches(basis.reconstruct(part), step, self.config.spatial_ratio, self.config.image_channels)
            for basis, part, step in (
                (self.first, latents[:, :lead], 1),
                (self.group, latents[:, lead:], self.config.temporal_ratio),
            )
        )
        return jnp.clip(jnp.concatenate([first, group], axis=1), -1.0, 1.0), ()

    def latent_statistics(self) -> dict[str, np.ndarray]:
        """Return mean and deviation of the normalized latents over the fitted clips: [2, C], first frame and groups."""
        std = np.stack([self.weights["first.std"], self.weights["group.std"]])
        return {"mean": np.zeros_like(std), "std": std}

    def manifest_entry(self) -> dict[str, Any]:
        """Return the autoencoder's entry in the manifest of a data set."""
        return {"family": FAMILY, "normalised": True, "hash": self.hash(), **dataclasses.asdict(self.config)}

    def hash(self) -> str:
        """Return the SHA-256 of the config and of every weight's name, shape and bytes."""
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self.config), sort_keys=True).encode())
        for name, value in sorted(self.weights.items()):
            digest.update(f"{name}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value, "<f4").tobytes())
        return digest.hexdigest()

    def save(self, path: str | pathlib.Path) -> None:
        """Write one safetensors file atomically."""
        # One key only: safetensors writes several in random order, and equal autoencoders should be equal files.
        metadata = {"autoencoder": json.dumps({"family": FAMILY, **dataclasses.asdict(self.config)}, sort_keys=True)}
        with files.replacing(path) as temporary:
            temporary.write_bytes(safetensors.numpy.save(self.weights, metadata=metadata))

    @classmethod
    def load(cls, path: str | pathlib.Path) -> "LinearAutoencoder":
        """Load a file of `save`, or the same in half precision.

        Raises:
          UserError: the file is absent or of another kind.
        """
        path = resources.find(path)
        fix = "give the autoencoder.safetensors of a data set, or fit it again"
        with tensor_files.opened(path, fix=fix, name=f"linear autoencoder file {path}") as file:
            settings = tensor_files.header(file, "autoencoder", path, fix=fix)
            weights = {
                name: tensor_files.check_finite(file.get_tensor(name), name, path, fix=fix)
                for name in file.keys()  # noqa: SIM118, not a dict
            }
        weights = {name: x.astype(np.float32) if x.dtype == np.float16 else x for name, x in weights.items()}
        try:
            family = settings.pop("family")
            if family != FAMILY:
                raise UserError(
                    f"autoencoder file {path}: family is {family!r}, expected '{FAMILY}': give a linear autoencoder"
                )
            config = LinearConfig(**settings)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is not a saved linear autoencoder ({error!r}): {fix}") from error
        return cls(config, weights)


class _Moments:
    """Count, sum and second moment of patches [n, P], accumulated in float64."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self.total = np.zeros(size)
        self.products = np.zeros((size, size))

    def add(self, patches: np.ndarray) -> None:
        self.count += len(patches)
        self.total += patches.sum(axis=0, dtype=np.float64)
        self.products += patches.T @ patches

    def weights(self, kind: str, channels: int, whitening: float) -> dict[str, np.ndarray]:
        """Return the leading eigenvectors of the covariance, largest first; the largest entry of each is positive."""
        mean = self.total / self.count
        covariance = self.products / self.count - np.outer(mean, mean)
        size = len(mean)
        variances, vectors = scipy.linalg.eigh(covariance, subset_by_index=(size - channels, size - 1))
        variances, vectors = np.maximum(variances[::-1], 0.0), vectors[:, ::-1]
        largest = np.abs(vectors).argmax(axis=0)
        vectors = vectors * np.sign(vectors[largest, np.arange(channels)])
        scale = np.sqrt(variances.mean())
        if scale < 1e-4:  # only rounding noise, from a video without any variation
            scale = np.ones_like(scale)
        elif whitening:
            uneven = np.maximum(np.sqrt(variances), 1e-4) ** whitening
            scale = uneven * np.sqrt(np.mean(variances / uneven**2))
        values = {"basis": vectors, "mean": mean, "scale": scale, "std": np.sqrt(variances) / scale}
        # safetensors stores memory without reordering, so it must be in C order.
        return {f"{kind}.{name}": np.array(value, np.float32, order="C") for name, value in values.items()}


def fit(
    clips: Iterable[np.ndarray],
    config: LinearConfig,
    *,
    seed: int,
    whitening: float = 0.0,
    patches_per_clip: int = 1024,
) -> LinearAutoencoder:
    """Fit both bases in one pass over uint8 clips [T, H, W, 3] (T = 4k+1).

    The deviation of every channel is divided by its power of `whitening`: 0 keeps the deviations, 1 makes all equal. At
    most `patches_per_clip` patches of every clip, drawn from `seed`, enter each basis. The first-frame basis is fitted
    on all frames: any frame may be the first of a clip.
    """
    steps = {"first": 1, "group": config.temporal_ratio}
    moments = {kind: _Moments(config.patch_size(first=kind == "first")) for kind in steps}
    generator = np.random.default_rng(seed)
    for clip in clips:
        frames = {"first": clip, "group": clip[1:]}
        for kind, step in steps.items():
            patches = einops.rearrange(_to_patches(frames[kind], step, config.spatial_ratio), "... p -> (...) p")
            if len(patches) > patches_per_clip:
                patches = patches[generator.choice(len(patches), patches_per_clip, replace=False)]
            moments[kind].add(to_float(patches))
    empty = [kind for kind in steps if not moments[kind].count]
    if empty:
        raise UserError(
            f"no frames to fit the linear autoencoder, expected clips of at least {config.temporal_ratio + 1} frames: "
            "record training episodes first"
        )
    weights: dict[str, np.ndarray] = {}
    for kind in steps:
        weights |= moments[kind].weights(kind, config.channels, whitening)
    return LinearAutoencoder(config, weights)


def to_float(video: Any) -> Any:
    """Convert uint8 0..255 to float32 in [-1, 1]; floats are cast to float32."""
    if video.dtype == np.uint8:
        return video.astype(np.float32) / 127.5 - 1.0
    return video.astype(np.float32)


def to_uint8(video: Video) -> Video:
    """Convert floats in [-1, 1] to uint8 0..255, rounded."""
    xp: Any = video.__array_namespace__()
    result: Video = xp.clip(xp.round((video.astype(np.float32) + 1.0) * 127.5), 0, 255).astype(np.uint8)
    return result


def psnr(reference: np.ndarray, video: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB of two uint8 arrays of one shape; infinity if they are equal."""
    if reference.dtype != np.uint8 or video.dtype != np.uint8 or reference.shape != video.shape:
        raise ValueError(f"psnr compares uint8 arrays of one shape, found {reference.shape} and {video.shape}")
    error = np.mean(np.square(reference.astype(np.float32) - video.astype(np.float32)), dtype=np.float64)
    return float("inf") if error == 0 else float(10.0 * np.log10(255.0**2 / error))


def _matmul(rows: jax.Array, matrix: jax.Array) -> jax.Array:
    """Multiply in float32 on every device, because the faintest detail is a thousandth of the pixels."""
    return jnp.matmul(rows, matrix, precision=jax.lax.Precision.HIGHEST)


def _to_patches(video: Any, step: int, ratio: int) -> Any:
    """Cut a video into patches: [..., G*step, H'*ratio, W'*ratio, c] -> [..., G, H', W', step*ratio*ratio*c]."""
    pattern = "... (g t) (h p) (w q) c -> ... g h w (t p q c)"
    return einops.rearrange(video, pattern, t=step, p=ratio, q=ratio)


def _from_patches(patches: Any, step: int, ratio: int, channels: int) -> Any:
    """Join patches to a video, the inverse of `_to_patches`."""
    pattern = "... g h w (t p q c) -> ... (g t) (h p) (w q) c"
    return einops.rearrange(patches, pattern, t=step, p=ratio, q=ratio, c=channels)
