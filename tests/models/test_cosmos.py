"""The Cosmos-Predict2 transformer: published sizes, and disturbances that a parity test must detect."""

import functools
import math
import pathlib
from typing import Any

import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parity_checks import cosmos as parity

from conversion import cosmos, cosmos_diffusers, engine
from jworld.models.cosmos.config import PUBLISHED, CosmosConfig
from jworld.models.cosmos.transformer import CosmosInputs, CosmosTransformer
from jworld.parallel import mesh
from jworld.training import optimizers, state
from jworld.utils import errors

forward = jax.jit(CosmosTransformer.__call__)


def abstract_params(cfg: CosmosConfig) -> dict[str, Any]:
    """Return abstract parameters by path."""
    with nnx.use_eager_sharding(False):
        model = nnx.eval_shape(lambda: CosmosTransformer(cfg, rngs=nnx.Rngs(0)))
    return {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}


# Published sizes


@pytest.mark.parametrize(("name", "count"), [("2b", 1_956_413_440), ("14b", 14_265_285_632)])
def test_published_model(name: str, count: int) -> None:
    """Parameters match; every tensor of the original maps to one place, and their shapes determine the config."""
    cfg = CosmosConfig(**PUBLISHED[name])
    shapes = {path: leaf.shape for path, leaf in abstract_params(cfg).items()}
    assert sum(math.prod(shape) for shape in shapes.values()) == count
    for table, read in (
        (cosmos.rules(cfg), cosmos.from_shapes),
        (cosmos_diffusers.rules(cfg), cosmos_diffusers.from_shapes),
    ):
        places = engine.plan(shapes, table)
        assert {place.path for place in places.values()} == set(shapes)
        found = {key: place.source_shape for key, place in places.items()}
        assert sum(math.prod(shape) for shape in found.values()) == count
        assert CosmosConfig(**read(found), rope_scale=cfg.rope_scale) == cfg
    settings = cosmos_diffusers.from_config(cosmos_diffusers.to_config(cfg), "config.json")
    assert CosmosConfig(**settings) == cfg


def test_sizes_of_the_variants_are_recovered() -> None:
    """The variants are action-conditioned, multiview (25 input channels as published) and text2image."""
    for changes in (
        {"action_dim": 84},
        {"views": 7, "fps_modulation": True},
        {"width": 1280, "num_heads": 20, "num_layers": 20, "condition_mask": False},
        {"text_dim": 100_352},
        {"modulation_rank": None},
    ):
        cfg = CosmosConfig(**changes)
        shapes = {path: leaf.shape for path, leaf in abstract_params(cfg).items()}
        places = engine.plan(shapes, cosmos.rules(cfg))
        assert {place.path for place in places.values()} == set(shapes)
        assert CosmosConfig(**cosmos.from_shapes({key: x.source_shape for key, x in places.items()})) == cfg
        if not cfg.condition_mask:
            assert cosmos_diffusers.to_config(cfg)["in_channels"] == 16
            continue
        with pytest.raises(errors.UserError, match="CosmosTransformer3DModel"):
            cosmos_diffusers.to_config(cfg)
    assert CosmosConfig(views=7).in_channels == 25


@pytest.mark.parametrize("sizes", [(1, 4, 2), (1, 8, 1), (1, 2, 4)])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_model_fits_meshes(name: str, sizes: tuple[int, int, int]) -> None:
    """Every parameter that counts is split; `abstract_state` refuses one that does not divide."""
    data, fsdp, sequence = sizes
    devices = mesh.make_mesh(data=data, fsdp=fsdp, sequence=sequence)
    cfg = CosmosConfig(**PUBLISHED[name], action_dim=84)
    optimizer = optimizers.make_optimizer(optimizers.OptimizerConfig(), steps=1)
    _, abstract, shardings = state.abstract_state(
        lambda rngs: CosmosTransformer(cfg, rngs=rngs), trainable=nnx.Param, optimizer=optimizer, mesh=devices
    )
    pairs = list(zip(jax.tree.leaves(abstract.params), jax.tree.leaves(shardings.params), strict=True))
    total = sum(leaf.size for leaf, _ in pairs)
    local = sum(math.prod(sharding.shard_shape(leaf.shape)) for leaf, sharding in pairs)
    assert local < 1.02 * total / (fsdp * sequence)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 24}, "width 2048 is not a multiple of num_heads 24"),
        ({"num_heads": 256}, "head size 8 must be even and at least 12"),
        ({"patch_size": (2, 2, 2)}, "must have 1 in time"),
        ({"rope_scale": (0.0, 1.0, 1.0)}, "each a number above 0"),
        ({"action_dim": 84, "modulation_rank": None}, "action_dim needs a modulation_rank"),
        ({"remat": "half"}, "remat is 'half'"),
    ],
)
def test_wrong_sizes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CosmosConfig(**changes)


# Disturbances that a parity test must detect


@functools.cache
def golden() -> tuple[golden_cases.GoldenCase, CosmosTransformer]:
    root = pathlib.Path(golden_cases.__file__).parent / "golden"
    case = golden_cases.GoldenCase(root / "cosmos" / "dit_v2w")
    return case, parity.load_model(case)


def golden_error(model: CosmosTransformer | None = None, inputs: CosmosInputs | None = None) -> float:
    case, golden_model = golden()
    output = forward(model or golden_model, inputs or parity.model_inputs(case.inputs))
    return golden_cases.relative_error(output, parity.channels_last(case.outputs["output"]))


def with_param(path: str, change: Any) -> CosmosTransformer:
    """Return the golden model with one parameter changed by a function of its array."""
    graphdef, params = nnx.split(golden()[1])
    arrays = {"/".join(map(str, key)): np.asarray(leaf[...]) for key, leaf in nnx.to_flat_state(params)}
    arrays[path] = change(arrays[path].copy())
    return nnx.merge(graphdef, engine.to_state(params, arrays))


def without_head(kernel: np.ndarray) -> np.ndarray:
    """Zero the second head of the last layer in a query kernel [layers, D, D]."""
    head_dim = golden()[1].cfg.head_dim
    kernel[-1, :, head_dim : 2 * head_dim] = 0
    return kernel


def test_undisturbed() -> None:
    assert golden_error() < golden_cases.DEFAULT_TOLERANCE


@pytest.mark.parametrize("attention", ["self", "cross"])
def test_parity_notices_a_missing_head(attention: str) -> None:
    assert golden_error(with_param(f"blocks/{attention}_attention/query/kernel", without_head)) > 1e-3


def test_parity_notices_exchanged_rotary_axes() -> None:
    """Height and width have equally many channels and differ only in their scales."""
    case, model = golden()
    time, height, width = model.cfg.rope_scale
    assert golden_error(parity.load_model(case, rope_scale=(time, width, height))) > 2e-4


@pytest.mark.parametrize("mask", ["given", "padding"])
def test_parity_notices_one_row_of_a_mask(mask: str) -> None:
    inputs = parity.model_inputs(golden()[0].inputs)
    row = getattr(inputs, mask)
    row = row.at[0, 0].set(1 - row[0, 0])
    assert golden_error(inputs=inputs._replace(**{mask: row})) > 1e-3


def test_parity_notices_a_dropped_row_of_text() -> None:
    """Rows of zeros are attended as well: they are not padding."""
    inputs = parity.model_inputs(golden()[0].inputs)
    padded = jnp.pad(inputs.text, ((0, 0), (0, 1), (0, 0)))
    assert golden_error(inputs=inputs._replace(text=padded)) > 1e-3


def test_parity_notices_frame_rates() -> None:
    """The published models ignore them; with modulation 16 frames per second change the output and 24 do not."""
    case, _ = golden()
    inputs = parity.model_inputs(case.inputs)
    modulated = parity.load_model(case, fps_modulation=True)
    assert golden_error(modulated, inputs._replace(fps=jnp.float32(24))) < golden_cases.DEFAULT_TOLERANCE
    assert golden_error(modulated, inputs._replace(fps=jnp.float32(16))) > 1e-3
    with pytest.raises(ValueError, match="needs the frame rate"):
        forward(modulated, inputs._replace(fps=None))


def test_videos_above_the_maximum_size_are_refused() -> None:
    case, _ = golden()
    small = parity.load_model(case, max_size=(128, 8, 8))
    with pytest.raises(ValueError, match="max_size allows"):
        forward(small, parity.model_inputs(case.inputs))


def test_new_actions_change_nothing_at_first() -> None:
    """Weights without actions are continued as they are."""
    sizes: dict[str, Any] = {"channels": 4, "width": 32, "num_heads": 2, "num_layers": 1, "modulation_rank": 4}
    sizes |= {"text_dim": 8, "text_width": 8, "dtype": jnp.float32}
    normal = np.random.default_rng(0).normal
    with nnx.use_eager_sharding(False):
        base = CosmosTransformer(CosmosConfig(**sizes), rngs=nnx.Rngs(0))
        steered = CosmosTransformer(CosmosConfig(**sizes, action_dim=6), rngs=nnx.Rngs(0))
    weights = jax.tree.map(lambda x: jnp.asarray(normal(size=x.shape), x.dtype), nnx.state(base, nnx.Param))
    for model in (base, steered):
        nnx.update(model, weights)
    video, text, action = (jnp.asarray(normal(size=size), jnp.float32) for size in ((1, 2, 4, 4, 4), (1, 3, 8), (1, 6)))
    inputs = CosmosInputs(video, jnp.full((1, 2), 0.5), text)
    expected = forward(base, inputs)
    np.testing.assert_array_equal(forward(steered, inputs._replace(action=action)), expected)
    steered.action.output.kernel[...] += 1
    assert not np.allclose(forward(steered, inputs._replace(action=action)), expected)
