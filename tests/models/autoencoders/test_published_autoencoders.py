"""The published autoencoders, abstractly: parameters, and files in every key layout."""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import converted
import pytest
from flax import nnx

from conversion import engine, families, importing, sources
from jworld.models.autoencoders import cogvideox, hunyuan15, wan


# Parameters and tensors as in diffusers 0.42.1.
@pytest.mark.parametrize(
    ("autoencoder", "config", "parameters", "tensors", "latent", "assumed"),
    [
        (wan.WanAutoencoder, wan.WanConfig(), 126_892_531, 194, (20, 60, 104, 16), ["normalisation"]),
        (
            hunyuan15.Hunyuan15Autoencoder,
            hunyuan15.Hunyuan15Config(),
            1_260_634_115,
            218,
            (20, 30, 52, 32),
            ["attention", "normalisation"],
        ),
        (
            cogvideox.CogVideoXAutoencoder,
            cogvideox.CogVideoXConfig(),
            215_583_907,
            436,
            (20, 60, 104, 16),
            ["chunk", "double_lone_frame", "eps", "groups", "normalisation", "temporal_ratio"],
        ),
    ],
    ids=["wan", "hunyuan15", "cogvideox"],
)
def test_published(
    tmp_path: pathlib.Path,
    autoencoder: Any,
    config: Any,
    parameters: int,
    tensors: int,
    latent: tuple[int, ...],
    assumed: Sequence[str],
) -> None:
    model = nnx.eval_shape(lambda: autoencoder(config, rngs=nnx.Rngs(0)))
    shapes = engine.parameter_shapes(nnx.state(model, nnx.Param))
    assert sum(math.prod(shape) for shape in shapes.values()) == parameters
    assert model.latent_shape(77, 480, 832) == latent
    family = families.of_autoencoder(autoencoder.family)
    for layout in family.layouts.values():
        path = tmp_path / f"{layout.name}.safetensors"
        assert converted.headers_only(path, engine.plan(shapes, layout.rules(config))) == 2 * parameters
        with sources.open_source(path) as source:
            plan = importing.make_plan(source, importing.Options())
        assert (plan.family, plan.layout, plan.target.model_config) == (family, layout, config)
        assert sum(map(len, plan.places.values())) == tensors
        assert sorted(plan.published) == assumed
