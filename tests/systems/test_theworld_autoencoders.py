"""The autoencoder of TheWorld's world input: one from a file, of any family."""

import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx

from jworld import systems
from jworld.data import records
from jworld.models.autoencoders import linear
from jworld.models.theworld.model import TheWorld
from jworld.training import state as train_state
from jworld.utils import config as run_config
from jworld.utils.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
SHIPPED = {"autoencoder_file": "assets/starter/encoders/autoencoder.safetensors", "latent_channels": 128}


def make_config(**world: object) -> ml_collections.ConfigDict:
    """Load the tiny recipe with one layer per network and, unless `world` says otherwise, the shipped autoencoder."""
    config = run_config.load_recipe(str(ROOT / "configs" / "theworld.py"))
    config.model.update({"num_layers": 1, "pattern": ("full",), "vision_layers": 1})
    config.model.world.update(SHIPPED | world)
    return config


def make_model(config: ml_collections.ConfigDict) -> TheWorld:
    with nnx.use_eager_sharding(False):
        model = systems.create(config).init(nnx.Rngs(0))
    assert isinstance(model, TheWorld)
    return model


def images() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8))


def save_linear(path: pathlib.Path, channels: int) -> str:
    """Write a linear autoencoder with orthonormal bases."""
    config, rng = linear.LinearConfig(channels=channels, spatial_ratio=16), np.random.default_rng(0)
    weights = {}
    for kind in ("first", "group"):
        size = config.patch_size(first=kind == "first")
        basis = np.linalg.qr(rng.normal(size=(size, channels)))[0]
        values = {"basis": basis, "mean": np.zeros(size), "scale": np.ones(()), "std": np.ones(channels)}
        weights |= {f"{kind}.{name}": value.astype(np.float32) for name, value in values.items()}
    linear.LinearAutoencoder(config, weights).save(path)
    return str(path)


def test_the_latents_of_the_starter_weights() -> None:
    model = make_model(make_config())
    manifest = records.read_manifest(ROOT / "assets" / "starter" / "encoders")["autoencoder"]
    assert (model.autoencoder.family, model.autoencoder.hash()) == (manifest["family"], manifest["hash"])
    latents = model.latents(images())
    assert latents.shape == (2, 1, 4, 4, 128)
    expected = model.autoencoder.encode(images()[:, None])
    np.testing.assert_allclose(latents, expected, atol=1e-5)


def test_a_linear_autoencoder(tmp_path: pathlib.Path) -> None:
    file = save_linear(tmp_path / "linear.safetensors", 24)
    model = make_model(make_config(autoencoder_file=file, latent_channels=24))
    latents = model.latents(images())
    np.testing.assert_allclose(latents, linear.LinearAutoencoder.load(file).encode(images()[:, None]), atol=1e-5)
    with pytest.raises(UserError, match=r"has 24 channels and 16 pixels per latent, but latent_channels is 128"):
        make_model(make_config(autoencoder_file=file))
    with pytest.raises(UserError, match=r"absent.safetensors"):
        make_model(make_config(autoencoder_file=str(tmp_path / "absent.safetensors")))


def test_its_encoder_can_be_trained() -> None:
    """The transform has gradients, though it is fitted in closed form; the decoder, which is not used, has none."""
    config = make_config()
    config.optimizer.trainable = r"world/.*|autoencoder/(transform/.*|moments)"
    model = make_model(config)

    @jax.jit
    def gradients(state: nnx.State) -> nnx.State:
        return jax.grad(lambda state: jnp.square(nnx.merge(graphdef, state).latents(images())).sum())(state)

    graphdef, state = nnx.split(model)
    is_trained = train_state.path_filter(config.optimizer.trainable)
    found = {path: leaf for path, leaf in nnx.to_flat_state(gradients(state)) if path[0] == "autoencoder"}
    moved = {path[1:] for path, leaf in found.items() if np.any(leaf[...])}
    assert moved == {("transform", "basis"), ("transform", "deviation"), ("transform", "mean"), ("moments",)}
    assert moved == {path[1:] for path, leaf in found.items() if is_trained(path, leaf)}
