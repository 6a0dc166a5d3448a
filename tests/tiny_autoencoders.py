"""Video autoencoders with a few thousand random weights: 4x4 pixels and 4 frames per latent."""

import functools
import pathlib

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jworld.models.autoencoders import cogvideox, files, hunyuan15, network, wan

CONFIGS = {
    "wan": wan.WanConfig(blocks=1, channels=8, multipliers=(1, 2, 2), time_levels=(True, True), dtype=jnp.float32),
    "hunyuan15": hunyuan15.Hunyuan15Config(
        latent_channels=4, blocks=1, widths=(8, 16, 16), spatial_ratio=4, dtype=jnp.float32
    ),
    "cogvideox": cogvideox.CogVideoXConfig(
        latent_channels=4, blocks=1, widths=(8, 16, 16), groups=4, dtype=jnp.float32
    ),
}


@functools.cache
def make(family: str, *, seed: int = 0) -> network.VideoAutoencoder:
    return drawn(family, CONFIGS[family], seed=seed)


def drawn(family: str, config: network.AutoencoderConfig, *, seed: int = 0) -> network.VideoAutoencoder:
    """Draw the weights of an autoencoder of this config."""
    kind, _ = files.NETWORKS[family]
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0))))
    generator = np.random.default_rng(seed)
    state = []
    for path, leaf in nnx.to_flat_state(abstract):
        deviation = 0.1 if len(leaf.shape) == 1 else float(np.prod(leaf.shape[:-1])) ** -0.5
        value = float(path[-1] == "scale") + deviation * generator.standard_normal(leaf.shape)
        state.append((path, leaf.replace(jnp.asarray(value, jnp.float32))))
    return nnx.merge(graphdef, nnx.from_flat_state(state))


def save(folder: pathlib.Path, family: str, *, seed: int = 0) -> pathlib.Path:
    """Write an autoencoder's folder, as an import does."""
    folder.mkdir(parents=True)
    files.save(make(family, seed=seed), folder / "autoencoder.safetensors")
    return folder
