"""Quantized weights: values against numpy, the choice of parameters, and layers that dequantize them in their loop."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import qwix
import tiny_systems
from flax import nnx

from jworld import systems
from jworld.models.layers import quantized, stack
from jworld.models.layers.linear import linear
from jworld.training import weights
from jworld.utils import config as run_config
from jworld.utils import errors

RECIPES = ("ar_mem.py", "matrix_control.py", "cosmos_video2world.py")


def symmetric(x: np.ndarray, kind: str) -> np.ndarray:
    """Quantize and dequantize [..., inputs, outputs] by output channel, in numpy alone."""
    largest = np.abs(x).max(axis=-2, keepdims=True)
    if kind == "fp8":
        # The largest number of float8_e4m3fn is 448.
        scale = np.where(largest > 0, largest / np.float32(448), 1)
        return (x / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
    scale = np.where(largest > 0, largest / np.float32(127), 1)
    return np.clip(np.rint(x / scale), -127, 127) * scale


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", quantized.KINDS)
def test_values_equal_those_of_numpy(kind: str, dtype: str) -> None:
    x = np.random.default_rng(0).standard_normal((3, 40, 7)).astype(np.float32) * 10.0 ** np.arange(-3, 4)
    x[1, :, 2] = 0
    x = x.astype(dtype)
    found = quantized.quantized(jnp.asarray(x), kind)
    assert (found.qvalue.dtype, found.scale.dtype) == (quantized.DTYPES[kind], jnp.float32)
    assert (found.qvalue.shape, found.scale.shape) == (x.shape, (3, 1, 7))
    x = x.astype(np.float32)
    expected, steps = symmetric(x, kind), x / found.scale
    # A number in the middle between two of int8, such as half of the largest magnitude, may become either.
    tied = (kind == "int8") & (np.abs(steps - np.floor(steps) - 0.5) < 1e-4)
    assert tied.mean() < 0.01
    np.testing.assert_allclose(quantized.dequantized(found)[~tied], expected[~tied], rtol=1e-6)
    # At most half a step: of int8 1/254 of the largest magnitude of its channel, of fp8 1/16 of itself.
    bound = np.abs(x).max(axis=1, keepdims=True) / 254 if kind == "int8" else np.abs(x) / 16 + found.scale / 2**9
    error = np.abs(np.asarray(quantized.dequantized(found)) - x)
    assert (error <= 1.001 * bound).all()
    assert error.max() > 0.4 * np.max(bound)


def test_a_tree_without_quantized_arrays_is_returned_as_it_is() -> None:
    tree = {"a": jnp.ones(2), "b": None}
    assert jax.tree.leaves(quantized.dequantized(tree))[0] is tree["a"]


def test_layers_of_a_stack_are_dequantized_in_their_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    with nnx.use_eager_sharding(False):
        layers = stack.stack(lambda rngs: linear(8, 8, ("embed", "mlp"), dtype=jnp.float32, rngs=rngs), 3, nnx.Rngs(0))
    seen: list[tuple[int, ...]] = []
    own = qwix.dequantize
    monkeypatch.setattr(qwix, "dequantize", lambda x: (seen.append(x.shape), own(x))[1])

    def run(layers: Any, x: jax.Array) -> jax.Array:
        return stack.scan_layers(layers, lambda layer, x, _: (layer(x), None), x, remat="none")[0]

    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 8)), jnp.float32)
    found = run(with_weights(layers, "int8"), x)
    expected = np.asarray(x)
    for kernel in symmetric(np.asarray(layers.kernel[...]), "int8"):
        expected = expected @ kernel
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    # One layer's weights, never [3, 8, 8].
    assert set(seen) == {(8, 8)}


def with_weights(model: Any, kind: str) -> Any:
    """Return the model with quantized weights."""
    graphdef, params = nnx.split(model)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
    quantizer = quantized.Quantizer.of(shapes, kind)
    # It deletes what it has quantized.
    return nnx.merge(graphdef, weights.replaced(jax.tree.map(jnp.copy, params), quantizer))


def with_numpy_weights(model: Any, kind: str) -> Any:
    """Return the model with float32 weights that numpy has quantized and dequantized."""
    graphdef, params = nnx.split(model)
    leaves = [
        (path, leaf.replace(jnp.asarray(symmetric(np.asarray(leaf.get_value()), kind))))
        if path[0] in ("blocks", "control_blocks") and path[-1] == "kernel"
        else (path, leaf)
        for path, leaf in nnx.to_flat_state(params)
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(leaves))


@pytest.mark.parametrize("name", RECIPES)
def test_which_parameters_are_quantized(name: str) -> None:
    """All matrices of the layers; no norm, bias, embedding or output, of which there is one."""
    system: Any = systems.create(run_config.load_recipe(f"configs/{name}"))
    with nnx.use_eager_sharding(False):
        model = nnx.eval_shape(lambda: system.init(nnx.Rngs(0)))
    quantizer = quantized.Quantizer.of(nnx.state(model), "int8")
    paths = {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(model))}
    expected = {
        path for path in paths if path.split("/")[0] in ("blocks", "control_blocks") and path.endswith("/kernel")
    }
    assert set(quantizer.targets) == expected
    assert {path.split("/")[-2] for path in expected} >= {"query", "key", "value", "out", "up", "down", "linear"}
    # Most of the weights, already in a tiny network.
    size = {path: int(np.prod(leaf.shape)) for path, leaf in paths.items()}
    assert sum(size[path] for path in expected) > 0.5 * sum(size.values())


@pytest.mark.parametrize(
    "name, kind",
    [
        pytest.param(name, kind, marks=[] if (name, kind) == ("cosmos_video2world.py", "int8") else pytest.mark.slow)
        for name in RECIPES
        for kind in quantized.KINDS
    ],
)
def test_a_quantized_network_computes_with_the_weights_of_numpy(name: str, kind: str) -> None:
    config = run_config.load_recipe(f"configs/{name}")
    if name.startswith("matrix"):
        # The mean over all latents of the recipe hides what the quantization changes.
        config.model.update(
            {"channels": 32, "patch_size": 1, "width": 128, "prediction": "velocity", "output_kernel": 1}
        )
        config.data.clip.latent_size = (3, 4)
    system: Any = systems.create(config)
    model, batch = tiny_systems.make_model(system), tiny_systems.make_batch(system, 1)

    def loss(model: Any) -> float:
        return float(system.loss(model, batch, jax.random.key(0))[0])

    exact, found, expected = map(loss, (model, with_weights(model, kind), with_numpy_weights(model, kind)))
    assert found == pytest.approx(expected, rel=2e-5)
    assert abs(found - exact) > 1e-4 * abs(exact)
    assert abs(found - exact) > 50 * abs(found - expected)


def test_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    with nnx.use_eager_sharding(False):
        model = nnx.eval_shape(lambda: nnx.Linear(4, 4, rngs=nnx.Rngs(0)))
    with pytest.raises(errors.UserError, match="--quantize int8: this model has no stacks of layers"):
        quantized.Quantizer.of(nnx.state(model), "int8")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(errors.UserError, match=r"qwix is not installed, .*: pip install 'jworld\[quantize\]'"):
        quantized.Quantizer.of(nnx.state(model), "int8")
