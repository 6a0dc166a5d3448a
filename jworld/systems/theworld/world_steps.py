"""World steps: latent frames that a frozen Cosmos Video2World network predicts from the image.

Source: theworld's documentation describes them; its code does not have them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from jworld.data import records
from jworld.diffusion import adams_bashforth, rectified_flow
from jworld.encoders import model_encoders
from jworld.models.autoencoders import files as autoencoder_files
from jworld.models.autoencoders.wan import WanAutoencoder
from jworld.models.cosmos.config import CosmosConfig
from jworld.models.cosmos.transformer import CosmosInputs
from jworld.models.theworld.config import WorldConfig
from jworld.models.theworld.model import TheWorld
from jworld.systems import adapters
from jworld.training import state as train_state
from jworld.utils import config as run_config
from jworld.utils import errors, hub_folders, resources

#: Name of the network in the model, and of its hyper-parameters in `config.model`.
PREDICTOR = "predictor"


def world_latents(model: TheWorld, pixels: jax.Array, frames: int | None = None) -> jax.Array:
    """Encode images uint8 [B, H, W, 3] and predict future frames: latents [B, F, H', W', C] float32.

    The prediction has no text, and the same noise for every image. So it depends only on the image, not on the rest of
    the batch. Predicted frames have no gradient.

    Args:
      model: model with a world.
      pixels: images, 0..255.
      frames: 1 for the image alone, without a prediction; None for all.
    """
    world, image = model.config.world, model.latents(pixels)
    assert world is not None
    if world.steps == 0 or frames == 1:
        return image
    future = predict(model, model.valid_latents(pixels) if world.original else image)[:, 1:]
    if world.original and isinstance(model.autoencoder, WanAutoencoder):
        future = model.autoencoder.config.normalisation.invert(future)
    return jnp.concatenate([image, future], axis=1)


def predict(model: TheWorld, first: jax.Array) -> jax.Array:
    """Predict normalized latents [B, 1 + steps, H, W, C] float32 from those of images, [B, 1, H, W, C].

    The first frame is unchanged.
    """
    world, cfg = model.config.world, model.config.predictor
    assert world is not None
    assert cfg is not None
    first = jax.lax.stop_gradient(first.astype(jnp.float32))
    batch, _, *frame = first.shape
    shape = (batch, world.frames, *frame)
    mask = jnp.broadcast_to(jnp.arange(world.frames) < 1, shape[:2]).astype(jnp.float32)
    given = rectified_flow.ConditioningFrames(jnp.broadcast_to(first, shape), mask)
    # All tokens of an empty text are zero, so one token gives the same attention output as many.
    text = jnp.zeros((batch, 1, cfg.text_dim))

    def network(video: jax.Array, time: jax.Array) -> jax.Array:
        return model.predictor(CosmosInputs(video, time, text, given=mask))

    def denoise(x: jax.Array, sigma: jax.Array) -> jax.Array:
        return rectified_flow.denoise(network, x, sigma, given)

    noise = jnp.broadcast_to(start_noise(world.frames, *frame), shape)
    predicted = adams_bashforth.sample(denoise, noise, adams_bashforth.noise_levels(world.predictor_steps))
    return jax.lax.stop_gradient(predicted)


def start_noise(frames: int, height: int, width: int, channels: int) -> jax.Array:
    """Return constant standard normal noise [1, F, H, W, C]."""
    return jax.random.normal(jax.random.key(0, impl="threefry2x32"), (1, frames, height, width, channels))


# The network's hyper-parameters


def completed(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Return the config with `config.model.predictor`, which is read from the predictor's folder if absent.

    Raises:
      UserError: see `read`.
    """
    world = config.model.get("world")
    if not world or not world.get("steps") or PREDICTOR in config.model:
        return config
    values = config.copy_and_resolve_references()
    with values.unlocked():
        values.model[PREDICTOR] = read(world.to_dict())
    return values


def read(world: dict[str, Any]) -> dict[str, Any]:
    """Read the hyper-parameters of the network in the folder `world["predictor"]` from its config.json.

    Raises:
      UserError: the folder has no config, is a run of another system, or predicts latents of another autoencoder.
    """
    key, name = "config.model.world.predictor", world.get("predictor", "")
    folder = hub_folders.find(name)
    if not name or not (folder / run_config.FILE_NAME).is_file():
        raise errors.UserError(
            f"{key}: {name or 'no folder'} has no {run_config.FILE_NAME}, but config.model.world.steps is "
            f"{world['steps']}: train or import a Cosmos Video2World model and set {key} to its folder "
            "(docs/theworld.md, World steps)"
        )
    config = run_config.load(folder)
    if config.system != "cosmos":
        raise errors.UserError(f"{key}: {folder} holds a model of {config.system!r}, expected one of 'cosmos'")
    if (folder / model_encoders.FOLDER / records.MANIFEST).is_file():
        found = records.read_manifest(folder / model_encoders.FOLDER)["autoencoder"]
        file = world.get("autoencoder_file")
        expected = {"family": WanAutoencoder.family}
        if file:
            expected = autoencoder_files.load(resources.find(file)).manifest_entry()
        compared = ("family", "hash") if file else ("family",)
        if any(found.get(name) != expected[name] for name in compared):
            raise errors.UserError(
                f"{key}: {folder} predicts latents of the autoencoder {_describe(found)}, but the world's is "
                f"{_describe(expected)}: choose a predictor that was trained with it"
            )
    values: dict[str, Any] = ml_collections.ConfigDict(adapters.network(config)).to_dict()
    return values


def _describe(entry: dict[str, Any]) -> str:
    return f"{entry.get('family')!r}" + (f" ({entry['hash'][:8]})" if "hash" in entry else "")


def section(config: ml_collections.ConfigDict, world: WorldConfig | None) -> CosmosConfig | None:
    """Return the network's hyper-parameters, checked against the world, or None without world steps.

    Raises:
      UserError: they contradict each other.
    """
    if world is None or world.steps == 0:
        return None
    cfg = run_config.section(CosmosConfig, config.model[PREDICTOR], f"model.{PREDICTOR}")
    where = "config.model.world.predictor"
    if cfg.channels != world.latent_channels:
        raise errors.UserError(
            f"{where}: it predicts latents of {cfg.channels} channels, but config.model.world.latent_channels is "
            f"{world.latent_channels}"
        )
    if cfg.action_dim is not None or cfg.views is not None:
        raise errors.UserError(
            f"{where}: it needs actions or several cameras (action_dim {cfg.action_dim}, views {cfg.views}), but the "
            "input is one image: choose a predictor without them"
        )
    if any(world.side % patch for patch in cfg.patch_size[1:]):
        raise errors.UserError(
            f"{where}: its patches have {cfg.patch_size[1:]} latents, which do not divide the {world.side} along a "
            "side of config.model.world.image_size: choose another size"
        )
    sequence = config.mesh.sequence
    if sequence > 0 and world.frames % sequence:
        raise errors.UserError(
            f"config.mesh.sequence is {sequence}, which does not divide the {world.frames} frames of the image and "
            "config.model.world.steps: choose a divisor of it"
        )
    if train_state.path_filter(config.optimizer.trainable)((PREDICTOR, "patch_in", "kernel"), None):
        raise errors.UserError(
            f"config.optimizer.trainable is {config.optimizer.trainable!r}, which trains the predictor too, but it has "
            f"no gradient: exclude it, for example with '(?!{PREDICTOR}/).*'"
        )
    return cfg
