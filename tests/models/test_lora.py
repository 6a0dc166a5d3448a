"""Adapters on any network: paths, trained parameters, initialization, merging, unmerging and errors."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from conversion import cosmos, engine
from conversion import lora as lora_keys
from jworld.models.cosmos.config import PUBLISHED, CosmosConfig
from jworld.models.cosmos.transformer import CosmosInputs, CosmosTransformer
from jworld.models.hunyuan.config import HunyuanConfig
from jworld.models.hunyuan.transformer import HunyuanTransformer
from jworld.models.layers import lora
from jworld.parallel import axes, mesh
from jworld.training import optimizers, state, step
from jworld.utils import errors

TARGETS = (".*_attention/(query|key|value|out)", "blocks/mlp/(up|down)")
TINY = CosmosConfig(
    channels=2,
    width=32,
    num_heads=2,
    num_layers=2,
    text_dim=8,
    text_width=8,
    modulation_rank=8,
    dtype=jnp.float32,
    remat="none",
)


def adapted(cfg: CosmosConfig, **options: Any) -> Callable[[nnx.Rngs], CosmosTransformer]:
    adapters = lora.LoRAConfig(**({"targets": TARGETS, "rank": 4, "alpha": 8.0} | options))

    def make(rngs: nnx.Rngs) -> CosmosTransformer:
        model = CosmosTransformer(cfg, rngs=rngs)
        lora.add(model, adapters, rngs=rngs)
        return model

    return make


def shapes_of(make: Callable[[nnx.Rngs], nnx.Module]) -> dict[str, tuple[int, ...]]:
    with nnx.use_eager_sharding(False):
        model = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    return engine.parameter_shapes(nnx.state(model, nnx.Param))


@pytest.mark.parametrize(("name", "rank", "count"), [("2b", 16, 22_937_600), ("14b", 32, 143_917_056)])
def test_published_adapters(name: str, rank: int, count: int) -> None:
    """Trained parameters match; tensors of files with base and adapters, or only adapters, map to one place each."""
    cfg = CosmosConfig(**PUBLISHED[name])
    shapes = shapes_of(adapted(cfg, rank=rank, alpha=float(rank)))
    trained = {path: shape for path, shape in shapes.items() if state.path_filter(lora.TRAINABLE)(path.split("/"), 0)}
    assert sum(math.prod(shape) for shape in trained.values()) == count
    places = engine.plan(shapes, lora_keys.rules(cosmos.rules(cfg), shapes))
    assert {place.path for place in places.values()} == set(shapes)
    key = "net.blocks.1.cross_attn.k_proj"
    assert places[f"{key}.base_layer.weight"].source_shape == (cfg.width, 1024)
    assert places[f"{key}.lora_A.default.weight"].source_shape == (rank, 1024)
    assert places[f"{key}.lora_B.default.weight"].source_shape == (cfg.width, rank)
    alone = engine.plan(shapes, lora_keys.adapter_rules(cosmos.rules(cfg, ""), shapes, prefix="transformer."))
    assert {place.path for place in alone.values()} == set(trained)
    assert "transformer.blocks.1.cross_attn.k_proj.lora_A.weight" in alone


def test_layers_outside_a_stack_and_with_bias() -> None:
    """This network has modules in a list and fused q, k, v."""

    def make(rngs: nnx.Rngs) -> HunyuanTransformer:
        model = HunyuanTransformer(dataclasses.replace(HUNYUAN, actions=False), rngs=rngs)
        lora.add(model, lora.LoRAConfig(targets=("text/refiner/blocks/1/qkv", "blocks/image/query")), rngs=rngs)
        return model

    shapes = shapes_of(make)
    assert shapes["text/refiner/blocks/1/qkv/lora/b"] == (16, 96)
    assert shapes["blocks/image/query/lora/a"] == (3, 32, 16)
    assert not any(path.startswith("text/refiner/blocks/0/qkv/lora") for path in shapes)


HUNYUAN = HunyuanConfig(width=32, num_heads=2, num_layers=3, rope_dims=(4, 6, 6), text_dim=6, vision_dim=7)


def inputs() -> CosmosInputs:
    rng = np.random.default_rng(0)
    return CosmosInputs(
        video=jnp.asarray(rng.normal(size=(8, 2, 4, 4, 2)), jnp.float32),
        time=jnp.asarray(rng.uniform(size=(8, 2)), jnp.float32),
        text=jnp.asarray(rng.normal(size=(8, 3, 8)), jnp.float32),
    )


def loss(model: Any, batch: step.Batch, key: jax.Array) -> tuple[jax.Array, step.Metrics]:
    output = model(CosmosInputs(batch["video"], batch["time"], batch["text"]))
    return jnp.mean(jnp.square(output - 1)), {}


def test_only_adapters_train_on_a_mesh() -> None:
    """The state is created sharded; the bfloat16 base stays the same; all adapters change and have moments."""
    devices = mesh.make_mesh(data=1, fsdp=2, sequence=1, devices=jax.devices()[:2])
    optimizer = optimizers.make_optimizer(optimizers.OptimizerConfig(learning_rate=1e-2), steps=5)
    graphdef, run_state, shardings = state.create_state(
        adapted(TINY, base_dtype="bfloat16"),
        trainable=state.path_filter(lora.TRAINABLE),
        optimizer=optimizer,
        key=jax.random.key(0),
        mesh=devices,
    )
    paths = engine.parameter_shapes(run_state.params)
    assert len(paths) == 2 * 10
    assert {leaf.dtype for leaf in jax.tree.leaves(run_state.params)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(run_state.frozen)} == {jnp.dtype("bfloat16")}
    assert (
        sum(leaf.size for leaf in jax.tree.leaves(run_state.opt_state)) <= 2 * sum(map(math.prod, paths.values())) + 4
    )
    # Gates are zero-initialized and would hide the adapters.
    gates = jax.tree_util.tree_map_with_path(
        lambda path, x: x + 0.3 if "modulation/linear" in state.leaf_name(path) else x, run_state.frozen
    )
    run_state = run_state.replace(frozen=gates)
    query = run_state.params["blocks"]["self_attention"]["query"]["lora"]
    assert query["a"][...].sharding.spec == PartitionSpec(None, ("fsdp", "sequence"), None)
    assert query["b"][...].sharding.spec == PartitionSpec(None, None, ("fsdp", "sequence"))
    frozen, trained = (jax.tree.map(np.asarray, part) for part in (run_state.frozen, run_state.params))
    batch = dict(zip(("video", "time", "text"), inputs()[:3], strict=True))
    shards = {name: axes.sharding(devices, ("batch", *[None] * (x.ndim - 1))) for name, x in batch.items()}
    run = step.make_train_step(graphdef, loss, optimizer, shardings=shardings, batch_shardings=shards, mesh=devices)
    losses = []
    with jax.set_mesh(devices):
        batch = {name: jax.device_put(x, shards[name]) for name, x in batch.items()}
        for _ in range(3):
            run_state, metrics = run(run_state, batch, jax.random.key(0))
            losses.append(float(metrics["loss"]))
    assert losses[2] < losses[0]
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, frozen, jax.tree.map(np.asarray, run_state.frozen))))
    moved = jax.tree.map(lambda x, y: not np.array_equal(x, y), trained, jax.tree.map(np.asarray, run_state.params))
    assert all(jax.tree.leaves(moved))


@pytest.fixture(scope="module")
def model() -> CosmosTransformer:
    """Return a model filled with random numbers of NumPy, which is faster than JAX here."""
    make, rng = adapted(TINY), np.random.default_rng(0)
    with nnx.use_eager_sharding(False):
        graphdef, params = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
        arrays = {path: rng.normal(size=shape) for path, shape in engine.parameter_shapes(params).items()}
        return nnx.merge(graphdef, engine.to_state(params, arrays))


def test_an_adapted_layer(model: CosmosTransformer) -> None:
    """Merging gives W + alpha/r A B for each layer of a stack."""
    layers = lora.dense_layers(model)
    adapter = layers["blocks/mlp/down"].lora
    assert isinstance(adapter, lora.Adapter)
    a, b, kernel = (np.array(x[...]) for x in (adapter.a, adapter.b, layers["blocks/mlp/down"].kernel))
    assert (a.shape, b.shape) == ((2, 128, 4), (2, 4, 32))
    adapters = lora.merge(model)
    assert len(adapters) == 10
    assert not any("lora" in path for path in engine.parameter_shapes(nnx.state(model, nnx.Param)))
    np.testing.assert_allclose(layers["blocks/mlp/down"].kernel[...], kernel + 2 * a @ b, atol=1e-4)
    lora.unmerge(model, adapters)
    np.testing.assert_allclose(layers["blocks/mlp/down"].kernel[...], kernel, atol=1e-4)
    assert layers["blocks/mlp/down"].lora is adapters["blocks/mlp/down"]


@pytest.mark.parametrize(("init", "deviation"), [("uniform", 128**-0.5 / 3**0.5), ("gaussian", 1 / 8)])
def test_an_adapter_initially_adds_zero(init: Any, deviation: float) -> None:
    """B is zero; A differs between the layers of a stack."""
    cfg = lora.LoRAConfig(targets=(".*",), rank=8, init=init)
    with nnx.use_eager_sharding(False):
        adapter = lora.Adapter(nnx.Param(jnp.zeros((2, 128, 32))), cfg, rngs=nnx.Rngs(0))
    a = np.asarray(adapter.a[...])
    np.testing.assert_allclose(a.std(axis=(1, 2)), deviation, rtol=0.1)
    assert init == "gaussian" or np.abs(a).max() <= 128**-0.5
    assert not np.allclose(a[0], a[1])
    assert adapter.b.shape == (2, 8, 32)
    assert (np.asarray(adapter.b[...]) == 0).all()


def test_mistakes_are_named(model: CosmosTransformer) -> None:
    with pytest.raises(errors.UserError, match=r"'blocks/mpl/up' matches none of the 22 dense layers.*blocks/mlp/up"):
        lora.add(model, lora.LoRAConfig(targets=("patch_in", "blocks/mpl/up")), rngs=nnx.Rngs(0))
    with pytest.raises(errors.UserError, match="blocks/mlp/up already has an adapter"):
        lora.add(model, lora.LoRAConfig(targets=("blocks/mlp/up",)), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="targets is empty"):
        lora.LoRAConfig(targets=())
    with pytest.raises(ValueError, match="rank: found 0, expected an integer from 1"):
        lora.LoRAConfig(targets=("x",), rank=0)
