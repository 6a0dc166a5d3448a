"""The published autoencoders, without memory: parameters, and the tensors of every key layout."""

import math
from typing import Any

import pytest
from flax import nnx

from conversion import cogvideox_vae, engine, hunyuan_vae, wan_vae
from jworld.models.autoencoders import cogvideox, hunyuan15, wan


# Parameters and tensors as in diffusers 0.42.1.
@pytest.mark.parametrize(
    ("autoencoder", "config", "tables", "parameters", "tensors", "latent"),
    [
        (
            wan.WanAutoencoder,
            wan.WanConfig(),
            (wan_vae.original, wan_vae.diffusers),
            126_892_531,
            194,
            (20, 60, 104, 16),
        ),
        (
            hunyuan15.Hunyuan15Autoencoder,
            hunyuan15.Hunyuan15Config(),
            (hunyuan_vae.original, hunyuan_vae.diffusers),
            1_260_634_115,
            218,
            (20, 30, 52, 32),
        ),
        (
            cogvideox.CogVideoXAutoencoder,
            cogvideox.CogVideoXConfig(),
            (cogvideox_vae.rules,),
            215_583_907,
            436,
            (20, 60, 104, 16),
        ),
    ],
    ids=["wan", "hunyuan15", "cogvideox"],
)
def test_published(
    autoencoder: Any, config: Any, tables: tuple[Any, ...], parameters: int, tensors: int, latent: tuple[int, ...]
) -> None:
    model = nnx.eval_shape(lambda: autoencoder(config, rngs=nnx.Rngs(0)))
    shapes = engine.parameter_shapes(nnx.state(model, nnx.Param))
    assert sum(math.prod(shape) for shape in shapes.values()) == parameters
    assert model.latent_shape(77, 480, 832) == latent
    for table in tables:
        places = engine.plan(shapes, table(config))
        assert len(places) == tensors
        assert engine.problems({name: place.source_shape for name, place in places.items()}, shapes, places) == []
