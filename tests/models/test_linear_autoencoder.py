"""The linear autoencoder: exactness on low-rank video, causality, streaming, files and refusals."""

import jax
import numpy as np
import pytest
import safetensors.numpy

from jworld.models.autoencoders import linear
from jworld.utils.errors import UserError

CONFIG = linear.LinearConfig(channels=16)


def low_rank_clip(seed: int, frames: int = 13, height: int = 24, width: int = 32) -> np.ndarray:
    """Make a clip in which every 8x8 patch mixes two fixed patterns, constant in the four frames of a group."""
    patterns = np.random.default_rng(0).integers(-1, 2, size=(2, 8, 8, 3))
    groups = (frames + 2) // 4 + 1
    mix = np.random.default_rng(seed).integers(-40, 41, size=(groups, height // 8, width // 8, 2))
    blocks = 128 + np.einsum("ghwk,krsc->ghrwsc", mix, patterns).reshape(groups, height, width, 3)
    held = np.concatenate([blocks[:1], np.repeat(blocks[1:], 4, axis=0)])[:frames]
    return held.astype(np.uint8)


@pytest.fixture(scope="module")
def autoencoder() -> linear.LinearAutoencoder:
    return linear.fit([low_rank_clip(seed) for seed in range(8)], CONFIG, seed=0)


def test_low_rank_video_is_reconstructed(autoencoder):
    clip = low_rank_clip(100)
    latents = autoencoder.encode(clip[None])
    assert latents.shape[1:] == autoencoder.latent_shape(*clip.shape[:3]) == (4, 3, 4, 16)
    assert latents.dtype == np.float32
    decoded = np.asarray(autoencoder.decode(latents))[0]
    assert decoded.dtype == np.float32
    error = np.mean((decoded - linear.to_float(clip)) ** 2)
    assert 10 * np.log10(4 / error) > 60
    assert linear.psnr(clip, linear.to_uint8(decoded)) > 60


def test_latents_are_causal(autoencoder):
    clip = low_rank_clip(100)[None]
    latents = autoencoder.encode(clip)
    changed = clip.copy()
    changed[:, 5:] = 255 - changed[:, 5:]
    np.testing.assert_allclose(autoencoder.encode(changed)[:, :2], latents[:, :2], atol=1e-6)
    assert not np.allclose(autoencoder.encode(changed)[:, 2:], latents[:, 2:])
    np.testing.assert_allclose(autoencoder.encode(clip[:, :1]), latents[:, :1], atol=1e-6)


def test_streaming_decode_is_whole_decode(autoencoder):
    latents = np.random.default_rng(1).normal(size=(1, 4, 3, 4, 16)).astype(np.float32)
    steps, cache = [], None
    for i in range(4):
        frames, cache = autoencoder.decode_step(latents[:, i : i + 1], cache)
        steps.append(frames)
    assert [frames.shape[1] for frames in steps] == [1, 4, 4, 4]
    np.testing.assert_allclose(np.concatenate(steps, axis=1), autoencoder.decode(latents), atol=1e-6)


def test_common_scale_keeps_pixel_error():
    """Unit variance overall, channels in order of their variance, latent error proportional to pixel error."""
    clips = np.random.default_rng(0).normal(size=(4, 9, 3, 4, 3)).repeat(8, axis=2).repeat(8, axis=3)
    clips = (128 + 30 * clips + np.random.default_rng(1).normal(size=clips.shape)).clip(0, 255).astype(np.uint8)
    autoencoder = linear.fit(clips, CONFIG, seed=0, patches_per_clip=10**6)
    latents = np.asarray(autoencoder.encode(clips))
    assert latents.shape == (4, 3, 3, 4, 16)
    assert 0.99 < np.mean(latents[:, 1:] ** 2) < 1.01
    std = autoencoder.latent_statistics()["std"]
    assert (np.diff(std[1]) <= 0).all()
    np.testing.assert_allclose(std[1], latents[:, 1:].reshape(-1, 16).std(axis=0), rtol=1e-3)
    step = np.zeros_like(latents)
    errors = []
    for channel in (0, 15):
        step[...] = 0
        step[:, 1:, ..., channel] = 0.01
        errors.append(np.mean((autoencoder.decode(latents + step) - autoencoder.decode(latents))[:, 1:] ** 2))
    np.testing.assert_allclose(errors[0], errors[1], rtol=0.02)


def test_whitening_evens_the_channels_and_nothing_else(autoencoder, tmp_path):
    clips = [low_rank_clip(seed) for seed in range(8)]
    plain, clip = autoencoder.latent_statistics()["std"], np.stack(clips)
    for whitening in (0.5, 1.0):
        white = linear.fit(clips, CONFIG, seed=0, whitening=whitening)
        std = white.latent_statistics()["std"]
        # Deviations follow the power law of `whitening`; the overall variance stays 1.
        spread = np.log(std[1, 1:4] / std[1, 0]) / np.log(plain[1, 1:4] / plain[1, 0])
        np.testing.assert_allclose(spread, 1 - whitening, atol=1e-3)
        np.testing.assert_allclose(np.mean(std**2, axis=1), 1, rtol=1e-3)
        np.testing.assert_allclose(
            white.decode(white.encode(clip)), autoencoder.decode(autoencoder.encode(clip)), atol=1e-4
        )
        white.save(tmp_path / "white.safetensors")
        assert linear.LinearAutoencoder.load(tmp_path / "white.safetensors").hash() == white.hash()


def test_fit_is_deterministic_and_subsamples(autoencoder):
    clips = [low_rank_clip(seed) for seed in range(8)]
    assert linear.fit(clips, CONFIG, seed=0).hash() == autoencoder.hash()
    few = [linear.fit(clips, CONFIG, seed=seed, patches_per_clip=7).hash() for seed in (0, 0, 1)]
    assert few[0] == few[1] != few[2]


def test_compiled_as_an_argument(autoencoder):
    """As for the networks, new weights need no new compilation."""
    clip = low_rank_clip(100)[None]
    encode = jax.jit(linear.LinearAutoencoder.encode)
    np.testing.assert_allclose(encode(autoencoder, clip), autoencoder.encode(clip), atol=1e-5)
    doubled = {name: 2 * value if name.endswith("scale") else value for name, value in autoencoder.weights.items()}
    half = encode(linear.LinearAutoencoder(CONFIG, doubled), clip)
    np.testing.assert_allclose(2 * half, autoencoder.encode(clip), atol=1e-5)


def test_constant_video_has_zero_latents():
    clip = np.full((5, 16, 16, 3), 77, np.uint8)
    autoencoder = linear.fit([clip], CONFIG, seed=0)
    latents = autoencoder.encode(clip[None])
    assert np.abs(latents).max() < 1e-4
    assert linear.psnr(clip, np.asarray(linear.to_uint8(autoencoder.decode(latents)))[0]) == float("inf")


def test_save_and_load(autoencoder, tmp_path):
    path = tmp_path / "autoencoder.safetensors"
    autoencoder.save(path)
    loaded = linear.LinearAutoencoder.load(path)
    assert loaded.manifest_entry() == autoencoder.manifest_entry()
    assert loaded.manifest_entry()["normalised"] is True
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    for name, value in autoencoder.weights.items():
        np.testing.assert_array_equal(loaded.weights[name], value)


def test_half_precision(autoencoder, tmp_path):
    """Stored weights are rounded; what is computed is float32."""
    path = tmp_path / "half.safetensors"
    autoencoder.save(path)
    with safetensors.safe_open(path, "np") as file:
        header, weights = file.metadata(), {name: file.get_tensor(name).astype(np.float16) for name in file.keys()}  # noqa: SIM118
    safetensors.numpy.save_file(weights, path, metadata=header)
    loaded = linear.LinearAutoencoder.load(path)
    for name, value in autoencoder.weights.items():
        assert loaded.weights[name].dtype == np.float32
        np.testing.assert_allclose(loaded.weights[name], value, rtol=1e-3, atol=1e-6)


def test_refused_files(autoencoder, tmp_path):
    path = tmp_path / "file.safetensors"
    with pytest.raises(UserError, match="is absent"):
        linear.LinearAutoencoder.load(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match="is not a safetensors file"):
        linear.LinearAutoencoder.load(path)
    safetensors.numpy.save_file(autoencoder.weights, path)
    with pytest.raises(UserError, match="has no entry 'autoencoder' in its header"):
        linear.LinearAutoencoder.load(path)
    safetensors.numpy.save_file(autoencoder.weights, path, metadata={"autoencoder": '{"family": "other"}'})
    with pytest.raises(UserError, match="family is 'other'"):
        linear.LinearAutoencoder.load(path)
    wrong = {**autoencoder.weights, "first.mean": np.zeros(3, np.float32)}
    with pytest.raises(UserError, match=r"first\.mean.*\[3\].*\[192\]"):
        linear.LinearAutoencoder(CONFIG, wrong)


def test_refused_sizes(autoencoder):
    with pytest.raises(UserError, match=r"12 frames, expected 4k\+1"):
        autoencoder.encode(low_rank_clip(0, frames=12)[None])
    with pytest.raises(UserError, match="30x24"):
        autoencoder.encode(low_rank_clip(0)[None, :, :, :30])
    with pytest.raises(UserError, match=r"expected \[B, T, H, W, 3\]"):
        autoencoder.encode(low_rank_clip(0))
    with pytest.raises(UserError, match="use the autoencoder"):
        autoencoder.decode(np.zeros((1, 1, 3, 4, 8), np.float32))
    with pytest.raises(UserError, match="spatial_ratio is 4"):
        linear.LinearConfig(channels=4, spatial_ratio=4)
    with pytest.raises(UserError, match="channels is 200"):
        linear.LinearConfig(channels=200)
    with pytest.raises(UserError, match="no frames to fit"):
        linear.fit([], CONFIG, seed=0)
