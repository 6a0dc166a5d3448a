"""Closed form of the decoder's map from the latents around a patch to its pixels (`models.autoencoders.patch`).

A linear transform of patches errs most at their borders, where it knows nothing of the next patch. The best linear
correction from the 3 x 3 latents around is a regression, and its best approximation of a given rank a truncated
singular value decomposition in the regression's own metric (reduced-rank regression: Izenman, 1975).
"""

import dataclasses
import pathlib
from collections.abc import Iterable

import einops
import numpy as np
import safetensors.numpy
import scipy.linalg

from jworld.models.autoencoders import linear
from jworld.utils import tensor_files

#: Added to the features' squares, as a share of their mean, so that channels that never vary do no harm.
RIDGE = 1e-5


@dataclasses.dataclass(frozen=True)
class Overlap:
    """around [9 C, rank], overlap [rank, P] and bias [rank], float32: pixels += (latents @ around + bias) @ overlap."""

    around: np.ndarray
    overlap: np.ndarray
    bias: np.ndarray

    def save(self, path: pathlib.Path) -> None:
        tensor_files.save(dataclasses.asdict(self), path)

    @classmethod
    def load(cls, path: pathlib.Path) -> "Overlap":
        return cls(**safetensors.numpy.load_file(path))


def fit(groups: Iterable[np.ndarray], autoencoder: linear.LinearAutoencoder, *, rank: int) -> Overlap:
    """Fit the correction of `autoencoder` on groups of its frames, uint8 [N, temporal ratio, H, W, 3] each."""
    basis = autoencoder.group
    analysis, mean = np.asarray(basis.basis[...] / basis.scale[...]), np.asarray(basis.mean[...])
    synthesis = np.asarray((basis.basis[...] * basis.scale[...]).T)
    squares, products = np.zeros(()), np.zeros(())
    for group in groups:
        patches = _patches(group, autoencoder.config) - mean
        latents = patches @ analysis
        missing = einops.rearrange(patches - latents @ synthesis, "n h w p -> (n h w) p")
        features = _around(latents)
        squares = squares + features.T @ features
        products = products + features.T @ missing
    squares += np.eye(len(squares)) * RIDGE * np.trace(squares) / len(squares)
    factor = scipy.linalg.cholesky(squares, lower=True)
    full = scipy.linalg.cho_solve((factor, True), products)
    _, _, directions = scipy.linalg.svd(factor.T @ full, full_matrices=False)
    overlap = directions[:rank]
    *around, bias = full @ overlap.T
    return Overlap(*(np.array(value, np.float32, order="C") for value in (around, overlap, bias)))


def _patches(groups: np.ndarray, config: linear.LinearConfig) -> np.ndarray:
    ratio = config.spatial_ratio
    patches: np.ndarray = einops.rearrange(
        linear.to_float(groups), "n t (h p) (w q) c -> n h w (t p q c)", p=ratio, q=ratio
    )
    return patches


def _around(latents: np.ndarray) -> np.ndarray:
    """Return the latents around each, row by row, and a one: [N, H, W, C] -> [N * H * W, 9 C + 1]."""
    height, width = latents.shape[1:3]
    padded = np.pad(latents, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    features = einops.rearrange(np.concatenate(shifted, axis=-1), "n h w c -> (n h w) c")
    return np.concatenate([features, np.ones_like(features[:, :1])], axis=-1)
