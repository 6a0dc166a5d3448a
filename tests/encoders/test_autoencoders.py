"""Autoencoders as compiled programs: latents of records, streams, meshes and files."""

import jax
import numpy as np
import pytest
import tiny_autoencoders

from jworld.encoders import autoencoders
from jworld.models.autoencoders import linear
from jworld.parallel import mesh
from jworld.utils.errors import UserError

SHAPE = (2, 9, 12, 16, 3)


def video(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, SHAPE).astype(np.uint8)


@pytest.fixture(scope="module")
def linear_autoencoder() -> linear.LinearAutoencoder:
    clips = np.random.default_rng(0).integers(0, 256, (4, 9, 16, 16, 3)).astype(np.uint8)
    return linear.fit(clips, linear.LinearConfig(channels=8), seed=0)


def test_the_linear_autoencoder_streams_and_decodes_to_pixels(linear_autoencoder):
    autoencoder = autoencoders.Autoencoder(linear_autoencoder)
    frames = np.random.default_rng(1).integers(0, 256, (1, 9, 16, 24, 3)).astype(np.uint8)
    latents = autoencoder.encode_clips(frames)
    assert latents.latent.shape[1:] == autoencoder.latent_shape(9, 16, 24) == (3, 2, 3, 8)
    np.testing.assert_array_equal(latents.image_cond, latents.latent[:, :1])
    assert latents.logvar is None
    decoded = autoencoder.decode(latents.latent)
    assert decoded.dtype == np.uint8
    stream = autoencoder.stream()
    parts = [stream.step(part) for part in np.split(latents.latent[0], [1])]
    assert [len(part) for part in parts] == [1, 8]
    assert np.abs(np.concatenate(parts).astype(int) - decoded[0]).max() <= 1
    assert not autoencoder.has_posterior
    assert autoencoder.manifest_entry() == linear_autoencoder.manifest_entry()


def test_a_network_on_a_mesh_decodes_as_a_stream_on_one_device(tmp_path):
    """Wan decodes in pieces, so a stream equals one call."""
    path = tiny_autoencoders.save(tmp_path / "wan", "wan")
    sharded = autoencoders.load(path, mesh=mesh.make_mesh(fsdp=1, sequence=2, devices=jax.devices()[:2]))
    alone = autoencoders.Autoencoder(tiny_autoencoders.make("wan"))
    assert sharded.hash == alone.hash
    latents = np.random.default_rng(1).standard_normal((1, 3, 3, 4, 16)).astype(np.float32)
    decoded = sharded.decode(latents)
    assert decoded.shape == (1, *SHAPE[1:])
    stream = alone.stream()
    parts = [stream.step(latents[0, i : i + 1]) for i in range(3)]
    assert [len(part) for part in parts] == [1, 4, 4]
    assert np.abs(np.concatenate(parts).astype(int) - decoded[0]).max() <= 1
    assert sharded.manifest_entry()["source"] == str(path / "autoencoder.safetensors")
    assert "source" not in alone.manifest_entry()


def test_a_first_frame_that_depends_on_later_ones_is_encoded_alone():
    """The norms of CogVideoX span the frames of a chunk."""
    autoencoder = autoencoders.Autoencoder(tiny_autoencoders.make("cogvideox"))
    latents = autoencoder.encode_clips(video())
    alone = autoencoder.encode(video()[:, :1])
    np.testing.assert_allclose(latents.image_cond, alone, atol=1e-5)
    assert np.abs(latents.image_cond - latents.latent[:, :1]).max() > 0.05


def test_load_finds_the_file_in_a_folder(tmp_path, linear_autoencoder):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"folder/autoencoder\.safetensors is absent"):
        autoencoders.load(tmp_path / "folder")
    linear_autoencoder.save(tmp_path / "folder" / "autoencoder.safetensors")
    assert autoencoders.load(tmp_path / "folder").hash == linear_autoencoder.hash()
