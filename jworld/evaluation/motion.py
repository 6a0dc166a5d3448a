"""Motion in videos, as an inverse-dynamics network reads it; see `models.motion`."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from jworld.cameras import actions, poses
from jworld.data.inputs import fitting
from jworld.models import motion

_STRIDE = actions.FRAMES_PER_LATENT


@dataclasses.dataclass(frozen=True)
class Found:
    """Motions in a video of F latents, one per latent after the first.

    Attributes:
      labels: action labels int32 [F - 1].
      numbers: steps to the right and forward (world units) and turn to the right (degrees), [F - 1, 3].
      features: [F - 1, D].
    """

    labels: np.ndarray
    numbers: np.ndarray
    features: np.ndarray

    def part(self, start: int, stop: int) -> "Found":
        """Return the motions `start` to `stop`."""
        return Found(self.labels[start:stop], self.numbers[start:stop], self.features[start:stop])


class MotionMeter:
    """A trained network, compiled once per length of a video."""

    def __init__(self, network: motion.MotionNetwork) -> None:
        self._config = network.config
        self._run = functools.partial(_run, network)

    @classmethod
    def load(cls, path: str | pathlib.Path) -> "MotionMeter":
        """Open a file of the network; a `UserError` if it is damaged."""
        return cls(motion.load(path))

    def __call__(self, frames: np.ndarray) -> Found:
        """Return the motions in frames uint8 [1 + 4 (F - 1), H, W, 3]."""
        small = resized(frames, self._config)
        found = jax.device_get(self._run(jnp.asarray(windows(small))))
        labels = actions.NUM_CLASSES * found.move.argmax(axis=-1) + found.turn.argmax(axis=-1)
        return Found(labels.astype(np.int32), found.numbers, found.features)


@jax.jit
def _run(network: motion.MotionNetwork, images: jax.Array) -> motion.Motion:
    return network(images.astype(jnp.float32) / 127.5 - 1)


def resized(frames: np.ndarray, config: motion.MotionConfig) -> np.ndarray:
    """Resize frames to the network's size, by area."""
    fit = fitting.Fit(width=config.width, height=config.height, mode="stretch", resampling="area")
    return np.stack([fit.frame(frame) for frame in frames])


def windows(frames: np.ndarray) -> np.ndarray:
    """Cut frames [1 + 4k, H, W, 3] into the frames of every latent, [k, 5, H, W, 3]; neighbors share a frame."""
    starts = range(0, len(frames) - 1, _STRIDE)
    return np.stack([frames[start : start + motion.FRAMES] for start in starts])


def true_numbers(w2c: np.ndarray) -> np.ndarray:
    """Return the numbers of `Found` for the cameras of F latents: w2c [F, 4, 4] -> [F - 1, 3]."""
    steps = poses.steps(w2c)[1:]
    turns = np.degrees(np.arctan2(steps[:, 0, 2], steps[:, 2, 2]))
    return np.stack([steps[:, 0, 3], steps[:, 2, 3], turns], axis=1)


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the Frechet distance of Gaussians fitted to two sets of features [N, D].

    Source: Heusel et al. 2017, "GANs trained by a two time-scale update rule converge to a local Nash equilibrium".
    """
    means = [features.mean(axis=0) for features in (first, second)]
    covariances = [np.cov(features, rowvar=False) for features in (first, second)]
    # The trace of the root of a product is that of a symmetric matrix, which may be singular: few clips, many features.
    values, vectors = np.linalg.eigh(covariances[0])
    root = vectors * np.sqrt(values.clip(0))
    shared = np.sqrt(np.linalg.eigvalsh(root.T @ covariances[1] @ root).clip(0)).sum()
    distance = np.square(means[0] - means[1]).sum() + np.trace(covariances[0] + covariances[1]) - 2 * shared
    return float(max(distance, 0.0))
