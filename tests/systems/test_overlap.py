"""The correction of patches by the latents around them, fitted in closed form."""

import pathlib

import numpy as np
import pytest
from flax import nnx

from jworld.models.autoencoders import linear, patch
from jworld.systems.autoencoder import overlap

CHANNELS, RATIO, FRAMES = 4, 8, 4


@pytest.fixture(scope="module")
def groups() -> np.ndarray:
    """Smooth groups of 24 x 32 pixels, uint8 [40, 4, 24, 32, 3]: a patch predicts the next."""
    rng = np.random.default_rng(0)
    y, x, t = (np.arange(n) for n in (24, 32, FRAMES))
    videos = []
    for _ in range(40):
        waves = [
            np.sin(a * y[None, :, None] + b * x[None, None, :] + c * t[:, None, None] + p)
            for a, b, c, p in zip(*(rng.uniform(-0.4, 0.4, (3, 3))), rng.uniform(0, 6, 3), strict=True)
        ]
        videos.append(np.stack(waves, axis=-1))
    return np.uint8(np.round(127.5 + 100 * np.array(videos)))


@pytest.fixture(scope="module")
def fitted(groups: np.ndarray) -> linear.LinearAutoencoder:
    config = linear.LinearConfig(channels=CHANNELS, spatial_ratio=RATIO, temporal_ratio=FRAMES)
    clips = [np.concatenate([group[:1], group]) for group in groups]
    return linear.fit(clips, config, seed=0, whitening=1.0)


def features_and_missing(groups: np.ndarray, fitted: linear.LinearAutoencoder) -> tuple[np.ndarray, np.ndarray]:
    """Return what the correction reads and what it should add, patch by patch in plain loops."""
    basis, scale, mean = (np.asarray(x[...]) for x in (fitted.group.basis, fitted.group.scale, fitted.group.mean))
    features, missing = [], []
    for group in groups:
        pixels = group.astype(np.float64) / 127.5 - 1
        cut = [
            [pixels[:, i : i + RATIO, j : j + RATIO].reshape(-1) - mean for j in range(0, 32, RATIO)]
            for i in range(0, 24, RATIO)
        ]
        latents = [[p @ basis / scale for p in row] for row in cut]
        for i in range(3):
            for j in range(4):
                near = [latents[min(max(i + k, 0), 2)][min(max(j + m, 0), 3)] for k in (-1, 0, 1) for m in (-1, 0, 1)]
                features.append(np.concatenate([*near, [1.0]]))
                missing.append(cut[i][j] - (latents[i][j] * scale) @ basis.T)
    return np.array(features), np.array(missing)


def error(found: overlap.Overlap, features: np.ndarray, missing: np.ndarray) -> float:
    added = (features[:, :-1] @ found.around + found.bias) @ found.overlap
    return float(np.mean(np.square(missing - added)))


def test_it_is_the_best_of_its_rank(groups: np.ndarray, fitted: linear.LinearAutoencoder) -> None:
    features, missing = features_and_missing(groups, fitted)
    best = np.linalg.lstsq(features, missing, rcond=None)[0]
    predicted = features @ best
    strengths = np.square(np.linalg.svd(predicted, compute_uv=False))
    rest = np.mean(np.square(missing - predicted))
    for rank in (2, 5, 37):
        found = overlap.fit([groups[:25], groups[25:]], fitted, rank=rank)
        assert found.around.shape == (9 * CHANNELS, rank)
        # Eckart and Young: the error that the best rank leaves is the sum of the other singular values' squares.
        expected = rest + strengths[rank:].sum() / missing.size
        assert error(found, features, missing) == pytest.approx(expected, rel=2e-3)
    assert rest < 0.7 * np.mean(np.square(missing))


def test_the_decoder_adds_it(groups: np.ndarray, fitted: linear.LinearAutoencoder, tmp_path: pathlib.Path) -> None:
    """Before training, the decoder is the transform and the stored correction, in the same order of neighbors."""
    found = overlap.fit([groups], fitted, rank=5)
    found.save(tmp_path / "overlap.safetensors")
    read = overlap.Overlap.load(tmp_path / "overlap.safetensors")
    config = patch.PatchConfig(
        latent_channels=CHANNELS,
        blocks=1,
        width=8,
        rank=5,
        spatial_ratio=RATIO,
        temporal_ratio=FRAMES,
        dtype=np.float32,
    )
    model = patch.PatchAutoencoder(config, rngs=nnx.Rngs(0))
    model.transform.fit(fitted)
    model.decoder.fit(around=read.around, overlap=read.overlap, bias=read.bias)
    video = groups[3]
    clip = np.concatenate([video[:1], video])[None]
    decoded = np.asarray(model.decode(model.encode(clip)))[0, 1:]
    features, missing = features_and_missing(groups[3:4], fitted)
    expected = error(found, features, missing)
    assert np.mean(np.square(decoded - (video / 127.5 - 1))) == pytest.approx(expected, rel=1e-3)
    assert expected < 0.8 * np.mean(np.square(missing))
