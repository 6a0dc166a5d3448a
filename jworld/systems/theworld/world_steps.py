"""World steps: latent frames that a frozen Cosmos Video2World network predicts from the image.

Source: the idea is in theworld's documentation; its program has none.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from jworld.data import records
from jworld.diffusion import adams_bashforth, rectified_flow
from jworld.models.autoencoders.linear import LinearAutoencoder
from jworld.models.autoencoders.wan import WanAutoencoder
from jworld.models.cosmos.config import CosmosConfig
from jworld.models.cosmos.transformer import CosmosInputs
from jworld.models.theworld.config import WorldConfig
from jworld.models.theworld.model import TheWorld
from jworld.systems import adapters
from jworld.training import state as train_state
from jworld.utils import config as run_config
from jworld.utils import errors

#: Name of the network among the model's parts, and of its hyper-parameters in `config.model`.
PREDICTOR = "predictor"
#: What a run keeps of its data's encoders.
_ENCODERS = "encoders"


def world_latents(model: TheWorld, pixels: jax.Array, frames: int | None = None) -> jax.Array:
    """Images uint8 [B, H, W, 3] -> latents [B, F, H', W', C] float32: the image and what is predicted from it.

    Without text, with the same noise for every image: an image always shows the same, whatever else is in the batch.
    Nothing behind the image has a gradient.

    Args:
      model: with a world.
      pixels: 0..255.
      frames: 1 for the image alone, and nothing is predicted; None for all.
    """
    world, seen = model.config.world, model.latents(pixels)
    assert world is not None
    if world.steps == 0 or frames == 1:
        return seen
    future = predict(model, model.sound_latents(pixels) if world.original else seen)[:, 1:]
    if world.original and isinstance(model.autoencoder, WanAutoencoder):
        future = model.autoencoder.config.normalisation.invert(future)
    return jnp.concatenate([seen, future], axis=1)


def predict(model: TheWorld, first: jax.Array) -> jax.Array:
    """Normalised latents [B, 1, H, W, C] of images -> [B, 1 + steps, H, W, C] float32, the first as it was."""
    world, cfg = model.config.world, model.config.predictor
    assert world is not None
    assert cfg is not None
    first = jax.lax.stop_gradient(first.astype(jnp.float32))
    batch, _, *frame = first.shape
    shape = (batch, world.frames, *frame)
    mask = jnp.broadcast_to(jnp.arange(world.frames) < 1, shape[:2]).astype(jnp.float32)
    given = rectified_flow.ConditioningFrames(jnp.broadcast_to(first, shape), mask)
    # All rows of an empty text are zero: one says what many say.
    text = jnp.zeros((batch, 1, cfg.text_dim))

    def network(video: jax.Array, time: jax.Array) -> jax.Array:
        return model.predictor(CosmosInputs(video, time, text, given=mask))

    def denoise(x: jax.Array, sigma: jax.Array) -> jax.Array:
        return rectified_flow.denoise(network, x, sigma, given)

    noise = jnp.broadcast_to(start_noise(world.frames, *frame), shape)
    made = adams_bashforth.sample(denoise, noise, adams_bashforth.noise_levels(world.predictor_steps))
    return jax.lax.stop_gradient(made)


def start_noise(frames: int, height: int, width: int, channels: int) -> jax.Array:
    """[1, F, H, W, C] standard normal, always the same."""
    return jax.random.normal(jax.random.key(0, impl="threefry2x32"), (1, frames, height, width, channels))


# The network's hyper-parameters


def completed(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config with `config.model.predictor`, which it has where the predictor's folder was read before.

    Raises:
      UserError: as `read`.
    """
    world = config.model.get("world")
    if not world or not world.get("steps") or PREDICTOR in config.model:
        return config
    values = config.copy_and_resolve_references()
    with values.unlocked():
        values.model[PREDICTOR] = read(world.to_dict())
    return values


def read(world: dict[str, Any]) -> dict[str, Any]:
    """Hyper-parameters of the network in the folder `world["predictor"]`, by its config.json.

    Raises:
      UserError: the folder has none, or holds another system, or one that speaks of another autoencoder's latents.
    """
    key, name = "config.model.world.predictor", world.get("predictor", "")
    folder = pathlib.Path(name)
    if not name or not (folder / run_config.FILE_NAME).is_file():
        raise errors.UserError(
            f"{key}: {name or 'no folder'} has no {run_config.FILE_NAME}, but config.model.world.steps is "
            f"{world['steps']}: train or import a Cosmos Video2World first and name its folder (docs/theworld.md, "
            "World steps)"
        )
    config = run_config.load(folder)
    if config.system != "cosmos":
        raise errors.UserError(f"{key}: {folder} holds a model of {config.system!r}, expected one of 'cosmos'")
    if (folder / _ENCODERS / records.MANIFEST).is_file():
        found = records.read_manifest(folder / _ENCODERS)["autoencoder"]
        codec = world.get("codec")
        expected = LinearAutoencoder.load(codec).manifest_entry() if codec else {"family": WanAutoencoder.family}
        told = ("family", "hash") if codec else ("family",)
        if any(found.get(name) != expected[name] for name in told):
            raise errors.UserError(
                f"{key}: {folder} predicts latents of the autoencoder {_describe(found)}, but the world's is "
                f"{_describe(expected)}: name a predictor that was trained with that"
            )
    return ml_collections.ConfigDict(adapters.network(config)).to_dict()


def _describe(entry: dict[str, Any]) -> str:
    return f"{entry.get('family')!r}" + (f" ({entry['hash'][:8]})" if "hash" in entry else "")


def section(config: ml_collections.ConfigDict, world: WorldConfig | None) -> CosmosConfig | None:
    """The network's hyper-parameters, checked against the world; None without world steps.

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
            f"{where}: it needs actions or several cameras (action_dim {cfg.action_dim}, views {cfg.views}), but there "
            "is one picture and no action: name a predictor without"
        )
    if any(world.side % patch for patch in cfg.patch_size[1:]):
        raise errors.UserError(
            f"{where}: its patches are of {cfg.patch_size[1:]} latents, which do not divide the {world.side} along a "
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
            f"no gradient: leave it out, such as with '(?!{PREDICTOR}/).*'"
        )
    return cfg
