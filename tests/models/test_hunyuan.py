"""The HunyuanVideo-1.5 transformer: published sizes, disturbances that a parity test must detect, its modes."""

import dataclasses
import functools
import importlib.util
import math
import pathlib
from typing import Any

import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parity_checks import hunyuan as parity

from conversion import engine, hunyuan, hunyuan_diffusers
from jworld.models.hunyuan.config import HunyuanConfig
from jworld.models.hunyuan.text import TextInputs
from jworld.models.hunyuan.transformer import FrameInputs, HunyuanTransformer
from jworld.parallel import axes, mesh
from jworld.systems.worldplay.system import WorldPlay
from jworld.training import optimizers, state
from jworld.utils import errors

RECIPE = pathlib.Path(__file__).parents[2] / "configs" / "ar_mem.py"
CHUNK = 4

forward = jax.jit(HunyuanTransformer.__call__, static_argnames="chunk_frames")


def abstract_params(cfg: HunyuanConfig) -> dict[str, Any]:
    """Return abstract parameters by path."""
    with nnx.use_eager_sharding(False):
        model = nnx.eval_shape(lambda: HunyuanTransformer(cfg, rngs=nnx.Rngs(0)))
    return {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}


# Published sizes


@pytest.mark.parametrize(("actions", "count", "tensors"), [(True, 8_557_933_856, 1905), (False, 8_326_608_160, 1793)])
def test_published_model(actions: bool, count: int, tensors: int) -> None:
    """Parameters match, and every tensor of the original maps to one place."""
    cfg = HunyuanConfig(actions=actions)
    params = abstract_params(cfg)
    assert sum(math.prod(leaf.shape) for leaf in params.values()) == count
    places = engine.plan({path: leaf.shape for path, leaf in params.items()}, hunyuan.rules(cfg))
    assert len(places) == tensors
    assert {place.path for place in places.values()} == set(params)
    assert sum(math.prod(place.source_shape) for place in places.values()) == count
    assert tensors == sum(leaf.shape[0] if path.startswith("blocks/") else 1 for path, leaf in params.items())


def published_system(sequence: int, actions: bool) -> WorldPlay:
    spec = importlib.util.spec_from_file_location("ar_mem", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    config = recipe.get_config("8b")
    config.mesh.sequence = sequence
    config.model.actions = actions
    return WorldPlay(config)


@pytest.mark.parametrize("actions", [True, False])
@pytest.mark.parametrize("sizes", [(1, 4, 2), (2, 2, 2), (1, 8, 1), (1, 2, 4)])
def test_published_model_fits_meshes(sizes: tuple[int, int, int], actions: bool) -> None:
    """State and batch divide over the mesh; `abstract_state` refuses a parameter that does not."""
    data, fsdp, sequence = sizes
    devices = mesh.make_mesh(data=data, fsdp=fsdp, sequence=sequence)
    system = published_system(sequence, actions)
    optimizer = optimizers.make_optimizer(optimizers.OptimizerConfig(name="muon"), steps=1)
    _, abstract, shardings = state.abstract_state(system.init, trainable=nnx.Param, optimizer=optimizer, mesh=devices)
    pairs = list(zip(jax.tree.leaves(abstract.params), jax.tree.leaves(shardings.params), strict=True))
    total = sum(leaf.size for leaf, _ in pairs)
    local = sum(math.prod(sharding.shard_shape(leaf.shape)) for leaf, sharding in pairs)
    assert local < 1.02 * total / (fsdp * sequence)
    for entry in system.batch_spec(data * fsdp).values():
        assert axes.sharding(devices, entry.axes).shard_shape(entry.shape)[0] == 1


# Disturbances that a parity test must detect


@functools.cache
def golden() -> tuple[golden_cases.GoldenCase, HunyuanTransformer]:
    root = pathlib.Path(golden_cases.__file__).parent / "golden"
    case = golden_cases.GoldenCase(root / "worldplay" / "transformer_ar_train")
    return case, parity.load_model(case)


def golden_inputs() -> tuple[FrameInputs, TextInputs]:
    inputs = golden()[0].inputs
    frames = FrameInputs(
        jnp.asarray(parity.channels_last(inputs["hidden_states"])),
        jnp.asarray(inputs["timestep"])[None],
        jnp.asarray(inputs["action"])[None],
        jnp.asarray(inputs["viewmats"]),
        jnp.asarray(inputs["Ks"]),
    )
    return frames, parity.text_inputs(inputs, "text_states", "encoder_attention_mask")


def golden_error(
    model: HunyuanTransformer | None = None, frames: FrameInputs | None = None, chunk_frames: int = CHUNK
) -> float:
    case, golden_model = golden()
    golden_frames, text = golden_inputs()
    output = forward(model or golden_model, frames or golden_frames, text, jnp.zeros(1), chunk_frames=chunk_frames)
    return golden_cases.relative_error(output, parity.channels_last(case.outputs["output"]))


def with_param(path: str, change: Any) -> HunyuanTransformer:
    """Return the golden model with one parameter changed by a function of its array."""
    graphdef, params = nnx.split(golden()[1])
    arrays = {"/".join(map(str, key)): np.asarray(leaf[...]) for key, leaf in nnx.to_flat_state(params)}
    arrays[path] = change(arrays[path].copy())
    return nnx.merge(graphdef, engine.to_state(params, arrays))


def zero_head(kernel: np.ndarray) -> np.ndarray:
    """Zero the second head of the last layer in a query kernel [layers, D, D]."""
    head_dim = golden()[1].cfg.head_dim
    kernel[-1, :, head_dim : 2 * head_dim] = 0
    return kernel


def test_undisturbed() -> None:
    assert golden_error() < golden_cases.DEFAULT_TOLERANCE


def test_parity_notices_a_missing_head() -> None:
    assert golden_error(with_param("blocks/image/query/kernel", zero_head)) > 1e-3


def test_parity_notices_the_order_of_rotary_axes() -> None:
    time, height, width = golden()[1].cfg.rope_dims
    assert golden_error(parity.load_model(golden()[0], rope_dims=(height, time, width))) > 1e-3


def test_parity_notices_another_mask() -> None:
    assert golden_error(chunk_frames=3) > 1e-3


def test_parity_notices_missing_actions() -> None:
    assert golden_error(with_param("action/output/kernel", np.zeros_like)) > 1e-3


def test_parity_notices_the_camera_of_one_frame() -> None:
    frames, _ = golden_inputs()
    assert frames.w2c is not None
    moved = frames._replace(w2c=frames.w2c.at[0, 5, 0, 3].add(0.1))
    assert golden_error(frames=moved) > 1e-3


# Modes compared with each other


def test_first_chunk_with_cache_is_the_chunk_causal_forward() -> None:
    _, model = golden()
    frames, text = golden_inputs()
    whole = forward(model, frames, text, jnp.zeros(1), chunk_frames=CHUNK)
    first = FrameInputs(*(x[:, :CHUNK] for x in frames if x is not None))

    @jax.jit
    def cached(model: HunyuanTransformer) -> jax.Array:
        cache = model.text_cache(text, jnp.zeros(1))
        return model.with_cache(first, cache)[0]

    np.testing.assert_allclose(cached(model), whole[:, :CHUNK], atol=1e-5)


TINY = HunyuanConfig(
    channels=2,
    width=32,
    num_heads=2,
    num_layers=2,
    rope_dims=(4, 6, 6),
    refiner_layers=1,
    text_dim=6,
    glyph_dim=5,
    glyph_hidden=8,
    glyph_out=8,
    vision_dim=7,
    dtype=jnp.float32,
    remat="none",
)


@functools.cache
def tiny() -> tuple[nnx.GraphDef, nnx.State]:
    """Return a model without zero weights: zero gates would hide the blocks."""
    with nnx.use_eager_sharding(False):
        abstract = nnx.eval_shape(lambda: HunyuanTransformer(TINY, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(abstract)
    rng = np.random.default_rng(0)
    arrays = {
        "/".join(map(str, path)): 0.15 * rng.standard_normal(leaf.shape) + (path[-1] == "scale")
        for path, leaf in nnx.to_flat_state(params)
    }
    return graphdef, engine.to_state(params, arrays)


def tiny_inputs() -> tuple[FrameInputs, TextInputs]:
    """Return two samples that differ in everything; their texts are 5 and 3 tokens long, their glyphs 1 and 2."""
    rng = np.random.default_rng(1)
    F = 2 * CHUNK
    angle = rng.normal(size=(2, F)) * 0.2
    w2c = np.tile(np.eye(4), (2, F, 1, 1))
    w2c[..., 0, 0], w2c[..., 2, 2] = np.cos(angle), np.cos(angle)
    w2c[..., 0, 2], w2c[..., 2, 0] = np.sin(angle), -np.sin(angle)
    w2c[..., :3, 3] = rng.normal(size=(2, F, 3)) * 0.2
    frames = FrameInputs(
        rng.normal(size=(2, F, 2, 2, 5)),
        rng.uniform(1, 1000, size=(2, F)),
        rng.integers(0, 81, size=(2, F)),
        w2c,
        np.tile(np.diag([0.5, 0.9, 1.0]), (2, F, 1, 1)),
    )
    text = TextInputs(
        text=rng.normal(size=(2, 5, 6)),
        text_mask=np.arange(5) < np.array([[5], [3]]),
        vision=rng.normal(size=(2, 3, 7)),
        glyph=rng.normal(size=(2, 2, 5)),
        glyph_mask=np.arange(2) < np.array([[1], [2]]),
    )
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32 if x.dtype == np.float64 else None), (frames, text))


def test_a_batch_is_its_samples() -> None:
    """Texts of different lengths are padded in the batch and trimmed for single samples."""
    model = nnx.merge(*tiny())
    frames, text = tiny_inputs()
    batch = forward(model, frames, text, jnp.zeros(2), chunk_frames=CHUNK)
    for i, (words, glyphs) in enumerate([(5, 1), (3, 2)]):
        own_frames, own_text = jax.tree.map(lambda x, i=i: x[i : i + 1], (frames, text))
        own_text = own_text._replace(
            text=own_text.text[:, :words],
            text_mask=own_text.text_mask[:, :words],
            glyph=own_text.glyph[:, :glyphs],
            glyph_mask=own_text.glyph_mask[:, :glyphs],
        )
        single = forward(model, own_frames, own_text, jnp.zeros(1), chunk_frames=CHUNK)
        np.testing.assert_allclose(batch[i], single[0], atol=1e-5 * float(jnp.abs(single).max()))


def test_remat_policies_give_the_same_gradients() -> None:
    graphdef, params = tiny()
    frames, text = tiny_inputs()

    def gradients(remat: str) -> nnx.State:
        """Return gradients with respect to the blocks; the policy wraps nothing else."""

        def total(blocks: nnx.State) -> jax.Array:
            model = nnx.merge(graphdef, nnx.State({**params, "blocks": blocks}))
            model.cfg = dataclasses.replace(TINY, remat=remat)
            return jnp.mean(jnp.square(model(frames, text, jnp.zeros(2), chunk_frames=CHUNK)))

        return jax.jit(jax.grad(total))(params["blocks"])

    expected = gradients("none")
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(expected))
    for remat in ("attention", "full"):
        for actual, reference in zip(jax.tree.leaves(gradients(remat)), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(actual, reference, atol=1e-5 * float(jnp.abs(reference).max()))


def test_a_model_of_clean_latents_gives_their_velocity() -> None:
    """The velocity of the same weights leads from the noisy latents to what the velocity model calls its velocity."""
    graphdef, params = tiny()
    frames, text = tiny_inputs()
    model = nnx.merge(graphdef, params)
    predicted = forward(model, frames, text, jnp.zeros(2), chunk_frames=CHUNK)
    model.cfg = dataclasses.replace(TINY, prediction="clean")
    velocity = model(frames, text, jnp.zeros(2), chunk_frames=CHUNK)
    sigma = (frames.timestep / 1000)[:, :, None, None, None]
    assert float(sigma.min()) > 0.05
    np.testing.assert_allclose(frames.video[..., :2] - sigma * velocity, predicted, atol=1e-5)


@pytest.mark.parametrize("table", [hunyuan.rules, hunyuan_diffusers.rules])
def test_a_model_of_clean_latents_has_no_original(table: Any) -> None:
    with pytest.raises(errors.UserError, match="prediction is 'clean', expected 'velocity'"):
        table(dataclasses.replace(TINY, prediction="clean"))
