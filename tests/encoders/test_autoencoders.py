"""Autoencoders as compiled programs: what records hold, streams, meshes and files."""

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
def codec() -> linear.LinearAutoencoder:
    clips = np.random.default_rng(0).integers(0, 256, (4, 9, 16, 16, 3)).astype(np.uint8)
    return linear.fit(clips, linear.LinearConfig(channels=8), seed=0)


def test_the_linear_codec_streams_and_decodes_to_pixels(codec):
    autoencoder = autoencoders.Autoencoder(codec)
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
    assert autoencoder.manifest_entry() == codec.manifest_entry()


def test_a_network_decodes_on_a_mesh_as_it_streams_on_one_device(tmp_path):
    """Wan: pieces are the whole, so the stream must give what one call gives."""
    path = tiny_autoencoders.save(tmp_path / "wan", "wan")
    spread = autoencoders.load(path, mesh=mesh.make_mesh(fsdp=1, sequence=2, devices=jax.devices()[:2]))
    alone = autoencoders.Autoencoder(tiny_autoencoders.make("wan"))
    assert spread.hash == alone.hash
    latents = np.random.default_rng(1).standard_normal((1, 3, 3, 4, 16)).astype(np.float32)
    decoded = spread.decode(latents)
    assert decoded.shape == (1, *SHAPE[1:])
    stream = alone.stream()
    parts = [stream.step(latents[0, i : i + 1]) for i in range(3)]
    assert [len(part) for part in parts] == [1, 4, 4]
    assert np.abs(np.concatenate(parts).astype(int) - decoded[0]).max() <= 1
    assert spread.manifest_entry()["source"] == str(path / "autoencoder.safetensors")
    assert "source" not in alone.manifest_entry()


def test_a_first_frame_that_depends_on_what_follows_is_encoded_alone():
    """CogVideoX: its norms span the frames of a chunk."""
    autoencoder = autoencoders.Autoencoder(tiny_autoencoders.make("cogvideox"))
    latents = autoencoder.encode_clips(video())
    alone = autoencoder.encode(video()[:, :1])
    np.testing.assert_allclose(latents.image_cond, alone, atol=1e-5)
    assert np.abs(latents.image_cond - latents.latent[:, :1]).max() > 0.05


def test_what_cannot_be_opened(tmp_path, codec):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"folder/autoencoder\.safetensors does not exist"):
        autoencoders.load(tmp_path / "folder")
    codec.save(tmp_path / "folder" / "autoencoder.safetensors")
    assert autoencoders.load(tmp_path / "folder").hash == codec.hash()
