"""Files of autoencoders."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from jworld.models.autoencoders import files, linear, patch, wan
from jworld.models.autoencoders.latents import Normalization
from jworld.utils.errors import UserError


def test_a_network_survives_a_round_trip(tmp_path: pathlib.Path) -> None:
    normalisation = Normalization(shift=(0.1, 0.2), scale=(3.0, 1 / 3))
    config = wan.WanConfig(latent_channels=2, channels=4, blocks=1, normalisation=normalisation, dtype=jnp.float32)
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: wan.WanAutoencoder(config, rngs=nnx.Rngs(0))))
    # Random numbers of NumPy: those of JAX are compiled for every shape.
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), abstract)
    model = nnx.merge(graphdef, state)
    path = tmp_path / "autoencoder.safetensors"
    files.save(model, path)
    again = files.load(path)
    assert isinstance(again, wan.WanAutoencoder)
    assert again.config == config
    assert again.hash() == model.hash()
    changed = dataclasses.replace(config, chunk=None, dtype=jnp.bfloat16)
    assert files.read_config(path, chunk=None, dtype=jnp.bfloat16) == ("wan", changed)
    assert files.load(path, chunk=None).config.chunk is None
    assert not list(tmp_path.glob("*.tmp"))


def test_half_precision_halves_the_file(tmp_path: pathlib.Path) -> None:
    model = patch.PatchAutoencoder(patch.PatchConfig(width=8), rngs=nnx.Rngs(0))
    paths = {dtype: tmp_path / f"{dtype}.safetensors" for dtype in ("float32", "float16")}
    for dtype, path in paths.items():
        files.save(model, path, dtype=dtype)
    half, whole = (path.stat().st_size for path in (paths["float16"], paths["float32"]))
    assert half < 0.55 * whole
    video = np.random.default_rng(0).integers(0, 256, (1, 5, 32, 32, 3)).astype(np.uint8)
    read = files.load(paths["float16"])
    assert isinstance(read, patch.PatchAutoencoder)
    assert read.transform.basis[...].dtype == np.float32
    np.testing.assert_allclose(read.encode(video), model.encode(video), atol=2e-3)
    model.transform.basis[...] = 1e7 * model.transform.basis[...]
    with pytest.raises(UserError, match="transform/basis has values that float16 cannot hold: choose float32"):
        files.save(model, tmp_path / "large.safetensors", dtype="float16")
    assert not (tmp_path / "large.safetensors").exists()


def test_the_linear_autoencoder_has_a_file_of_the_same_kind(tmp_path: pathlib.Path) -> None:
    clip = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    fitted = linear.fit([clip], linear.LinearConfig(channels=2), seed=0)
    fitted.save(tmp_path / "fitted.safetensors")
    assert files.load(tmp_path / "fitted.safetensors").hash() == fitted.hash()


def test_damaged_files(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "autoencoder.safetensors"
    with pytest.raises(UserError, match="is absent"):
        files.load(path)
    path.write_bytes(b"no tensors")
    with pytest.raises(UserError, match="is not a safetensors file"):
        files.load(path)
    header = {"family": "wan", "normalisation": {"shift": [0.0], "scale": [1.0]}}
    header |= {"dtype": "float32", "param_dtype": "float32"}
    for fields, message in (
        (header, "other tensors than its config"),
        (header | {"family": "x"}, "not a saved"),
    ):
        safetensors.numpy.save_file({"a": np.zeros(1, np.float32)}, path, metadata={"autoencoder": json.dumps(fields)})
        with pytest.raises(UserError, match=message):
            files.load(path)
