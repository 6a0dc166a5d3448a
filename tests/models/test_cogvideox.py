"""The CogVideoX transformer: published sizes, disturbances that a parity test must detect, meshes."""

import math
from typing import Any

import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parity_checks import cogvideox as parity

from conversion import cogvideox, engine
from jworld.models.cogvideox import blocks
from jworld.models.cogvideox.config import CogVideoXConfig
from jworld.models.cogvideox.transformer import CogVideoXTransformer
from jworld.parallel import axes, mesh

CASE = golden_cases.GoldenCase(golden_cases.DEFAULT_ROOT / "matrix" / "s3_train_loss")


@pytest.mark.parametrize(
    ("control", "layers", "count", "controlling"),
    [
        (None, (15, 30), 1_693_783_872, 0),
        (768, (15, 30), 2_009_546_304, 315_762_432),
        (768, (0, 30), 2_319_553_344, 625_769_472),
    ],
)
def test_published_model(control: int | None, layers: tuple[int, int], count: int, controlling: int) -> None:
    """Parameters match in total and in the control adapter; every tensor of the original maps to one place."""
    cfg = CogVideoXConfig(control_dim=control, control_layers=layers)
    with nnx.use_eager_sharding(False):
        model = nnx.eval_shape(lambda: CogVideoXTransformer(cfg, rngs=nnx.Rngs(0)))
    shapes = engine.parameter_shapes(nnx.state(model, nnx.Param))
    assert sum(map(math.prod, shapes.values())) == count
    assert sum(math.prod(shape) for path, shape in shapes.items() if "control" in path) == controlling
    places = engine.plan(shapes, cogvideox.rules(cfg))
    assert {place.path for place in places.values()} == set(shapes)


def passed(model: CogVideoXTransformer, inputs: dict[str, np.ndarray], **changes: Any) -> np.ndarray:
    values = {name: jnp.asarray(inputs[name]) for name in ("encoder_hidden_states", "control_emb", "timesteps")}
    values |= {"latents": jnp.asarray(parity.channels_last(inputs["latents"]))} | changes
    return np.asarray(
        parity.forward(
            model,
            values["latents"],
            values["encoder_hidden_states"],
            values["timesteps"],
            control=values["control_emb"],
        )
    )


def test_disturbances_change_the_output() -> None:
    """A head, a frame's time, the order of frames and a token's row in the control mask each change the output."""
    model = parity.load_model(CASE)
    right = passed(model, CASE.inputs)
    times = jnp.asarray(CASE.inputs["timesteps"])
    wrong = {"time": passed(model, CASE.inputs, timesteps=times.at[:, 1].set(times[:, 2]))}
    control = jnp.asarray(CASE.inputs["control_emb"])
    wrong["control"] = passed(model, CASE.inputs, control_emb=control.at[:, 0].set(control[:, 1]))
    kernel = model.blocks.attention.out.kernel
    kernel.set_value(jnp.asarray(kernel[...]).at[0, : model.cfg.head_dim].set(0))
    wrong["head"] = passed(model, CASE.inputs)
    assert min(golden_cases.relative_error(value, right) for value in wrong.values()) > 1e-3


def test_control_mask_equals_the_repeated_causal_one() -> None:
    """Softmax over F keys with log counts equals softmax over F * S repeated keys with a triangular mask."""
    frames, tokens = 3, 4
    logits = np.random.default_rng(0).standard_normal((frames * tokens, frames))
    repeated = np.repeat(logits, tokens, axis=1) + np.where(np.tri(frames * tokens), 0, -np.inf)
    weights = np.exp(repeated) / np.exp(repeated).sum(axis=1, keepdims=True)
    expected = weights.reshape(frames * tokens, frames, tokens).sum(axis=2)
    counts = np.asarray(blocks.causal_counts(frames, tokens)).reshape(frames * tokens, frames)
    np.testing.assert_allclose(jax.nn.softmax(logits + counts, axis=-1), expected, atol=1e-6)


def test_control_is_causal() -> None:
    """The last frame's control vector changes only the last frame."""
    model = parity.load_model(CASE)
    graphdef, params = nnx.split(model.control_blocks)
    block = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[0], params))
    video, control, time = (
        jax.random.normal(jax.random.key(i), shape)
        for i, shape in enumerate([(1, 3, 4, model.cfg.width), (1, 3, model.cfg.width), (1, 3, model.cfg.time_dim)])
    )
    # The norm of the control stream has the parameters of the last frame's time, not of its vector.
    run = jax.jit(lambda block, control: block(video, control, time))
    first, second = (run(block, value) for value in (control, control.at[:, -1].multiply(-1.0)))
    np.testing.assert_array_equal(first[:, :-1], second[:, :-1])
    assert np.abs(first[:, -1] - second[:, -1]).max() > 1e-3


def test_mesh_equals_one_device() -> None:
    """Batch, weights and the tokens of a frame are sharded; 8 devices compute the same as one."""
    model = parity.load_model(CASE)
    expected = passed(model, CASE.inputs)
    devices = mesh.make_mesh(data=2, fsdp=2, sequence=2)
    graphdef, state = nnx.split(model)
    with jax.set_mesh(devices), nnx.logical_axis_rules(axes.RULES):
        placed = jax.device_put(state, nnx.get_named_sharding(state, devices))
        inputs = {name: np.tile(value, (2,) + (1,) * (value.ndim - 1)) for name, value in CASE.inputs.items()}
        actual = passed(nnx.merge(graphdef, placed), inputs)
    assert golden_cases.relative_error(actual[:2], expected) < 1e-5
    np.testing.assert_allclose(actual[:2], actual[2:], atol=1e-5)


def test_text_of_another_length_is_refused() -> None:
    text = jnp.zeros((2, 7, CASE.inputs["encoder_hidden_states"].shape[2]))
    with pytest.raises(ValueError, match="text has 7 tokens"):
        passed(parity.load_model(CASE), CASE.inputs, encoder_hidden_states=text)
