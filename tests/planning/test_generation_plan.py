"""Plans of generation: costs of small programs by hand, the tiny recipes, and the command."""

import importlib.util
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import pytest
from flax import nnx

from jworld import plan as command
from jworld.models.cosmos import flops as cosmos_flops
from jworld.models.cosmos.config import CosmosConfig
from jworld.parallel import axes, mesh
from jworld.parallel.programs import Program
from jworld.planning import generation, generation_tables, launch, recommendations, topologies
from jworld.planning.generation_plans import Cost, GenerationPlan, roofline
from jworld.utils import config as run_config
from jworld.utils import errors, hardware

ONE = topologies.parse("cpu:1")
#: Recipes of tiny models, with the names of their programs and what a chunk has.
RECIPES: dict[str, tuple[list[str], int, str]] = {
    "ar_mem.py": (
        ["text cache", "denoising steps", "context pass", "decoding at the start", "decoding"],
        16,
        "frames",
    ),
    "matrix_lora.py:base": (["denoising step", "decoding"], 33, "frames"),
    "matrix_swin_dpm.py": (["denoising steps", "decoding at the start", "decoding"], 8, "frames"),
    "cosmos_video2world.py": (["denoising steps", "encoding", "decoding"], 28, "frames"),
    "theworld.py": (["prefill", "choice of a token", "decode step"], 1, "tokens"),
}


def recipe(name: str, **changes: Any) -> ml_collections.ConfigDict:
    """Load a recipe, with a network of one layer if it has no control; `changes` have two underscores for a dot."""
    config = run_config.load_recipe(f"configs/{name}")
    layers = {} if config.model.get("control_dim") else {"model.num_layers": 1}
    dotted = {**layers, **{key.replace("__", "."): value for key, value in changes.items()}}
    return recommendations.changed(config, dotted)


def test_cost_of_a_small_program() -> None:
    devices = mesh.make_mesh(devices=jax.devices()[:1])

    def described(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=axes.sharding(devices, ()))

    def call(model: nnx.Linear, x: jax.Array, cache: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = jax.lax.fori_loop(0, 5, lambda i, x: model(x), x)
        return x, cache.at[0].set(x)

    with nnx.use_eager_sharding(False):
        linear = nnx.eval_shape(lambda: nnx.Linear(64, 64, use_bias=False, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(linear)
    linear = nnx.merge(graphdef, jax.tree.map(lambda x: described(*x.shape), state))
    cache = described(4, 32, 64)
    program = Program("steps", jax.jit(call, donate_argnums=2), (linear, described(32, 64), cache), runs=3, cache=cache)
    with jax.set_mesh(devices):
        found = generation.cost(program, devices)
    assert (found.name, found.runs, found.share, found.collectives) == ("steps", 3, 1.0, ())
    assert found.flops == 5 * 2 * 32 * 64 * 64
    # Input and result; the loop may hold two more copies, but none of weights and cache.
    activation = 32 * 64 * 4
    assert 2 * activation <= found.peak <= 5 * activation
    # Every step reads the weights, its input and writes its result.
    assert found.memory_traffic is not None
    assert 5 * (64 * 64 * 4 + 2 * activation) <= found.memory_traffic <= 3 * 5 * (64 * 64 * 4 + 2 * activation)


def made(programs: tuple[Cost, ...], **changes: Any) -> GenerationPlan:
    values: dict[str, Any] = {"topology": "v5e-4", "available": 4, "chip": "v5e", "unit": "frames", "per_chunk": 16}
    values |= {"mesh": {"data": 1, "fsdp": 1, "sequence": 1}, "chunk": "frames", "weights": 10, "autoencoder": 1}
    return GenerationPlan(**values | {"start": 12, "limit": 100, "programs": programs} | changes)


def test_bounds_by_hand() -> None:
    chip = hardware.CHIPS["v5e"]
    programs = (
        Cost(name="text cache", runs=0, peak=20, flops=2 * chip.flops),
        # Half of the products on each of two chips; the memory is slower.
        Cost(name="step", runs=10, peak=30, flops=chip.flops, share=0.5, memory_traffic=int(chip.hbm_bandwidth)),
        Cost(name="decoding", runs=2, peak=90, flops=3 * chip.flops),
    )
    plan = made(programs)
    assert (plan.peak, plan.fits) == (90, True)
    assert roofline(plan) == (2.0, 10 * 1.0 + 2 * 3.0, 1.0)
    assert not made(programs, limit=89).fits
    assert GenerationPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    failed = made(programs, problem="temporaries alone need 3 GiB")
    assert (failed.fits, failed.peak, roofline(failed)) == (False, None, None)
    config = recipe("cosmos_video2world.py")
    lines = generation_tables.advise(config, failed)
    assert [line.partition(":")[0] for line in lines[:3]] == [
        "--config.model.param_dtype=bfloat16",
        "--quantize int8",
        "--mesh with fsdp=2",
    ]
    assert not any("quantize" in line for line in generation_tables.advise(config, made((), quantize="fp8")))
    assert not any("quantize" in line for line in generation_tables.advise(config, made((), unit="tokens")))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if "cosmos" in name else pytest.mark.slow) for name in RECIPES]
)
def test_tiny_recipes(name: str) -> None:
    names, per_chunk, unit = RECIPES[name]
    config = recipe(name)
    found = generation.make(config, ONE, {})
    assert [cost.name for cost in found.programs] == names
    assert (found.per_chunk, found.unit, found.problem, found.fits) == (per_chunk, unit, None, None)
    assert found.peak is not None
    assert found.weights + found.autoencoder < found.peak
    assert all(cost.flops > 0 for cost in found.programs if cost.name != "choice of a token")
    assert roofline(found) is None


def test_quantized_weights_by_hand() -> None:
    """A layer has 18 matrices: 8 D x D or D x E, two of the MLP and modulations; one byte each, four per output."""
    config = recipe("cosmos_video2world.py")
    full, found = generation.make(config, ONE, {}), generation.make(config, ONE, {}, "int8")
    model = run_config.section(CosmosConfig, config.model, "model")
    width, hidden = model.width, int(model.width * model.mlp_ratio)
    shapes = [(width, width)] * 6 + [(model.text_width, width)] * 2 + [(width, hidden), (hidden, width)]
    if model.modulation_rank is None:
        shapes += [(width, 3 * width)] * 3
    else:
        shapes += [(width, model.modulation_rank), (model.modulation_rank, 3 * width)] * 3
    saved = sum(3 * inputs * outputs - 4 * outputs for inputs, outputs in shapes)
    assert full.weights - found.weights == saved
    assert (full.quantize, found.quantize) == (None, "int8")
    assert GenerationPlan.from_json(json.loads(json.dumps(found.to_json()))) == found
    # The largest array is read in full precision.
    largest = full.start - full.weights - full.autoencoder
    assert found.start == found.weights + found.autoencoder + largest
    # Temporaries have at most a layer in full precision.
    assert found.peak is not None
    assert full.peak is not None
    assert found.peak - full.peak <= 4 * sum(inputs * outputs for inputs, outputs in shapes) - saved
    with pytest.raises(errors.UserError, match="--quantize int8: only models that generate videos have quantized"):
        generation.make(recipe("theworld.py"), ONE, {}, "int8")


@pytest.mark.slow
def test_quantized_weights_are_sent_in_8_bits() -> None:
    dtypes = {"model__dtype": "bfloat16", "model__param_dtype": "bfloat16"}
    config = recipe("cosmos_video2world.py", model__width=192, model__num_layers=2, **dtypes)
    plans = [generation.make(config, topologies.parse("cpu:2"), {"fsdp": 2}, kind) for kind in (None, "int8")]
    full, found = ({cost.name: cost.sent for cost in plan.programs}["denoising steps"] for plan in plans)
    assert 0 < found < 0.7 * full


def test_products_of_a_window_are_those_of_the_formula() -> None:
    config = recipe("cosmos_video2world.py", sample__rollout__guidance=7.0)
    found = {cost.name: cost for cost in generation.make(config, ONE, {}).programs}
    system_config = run_config.section(CosmosConfig, config.model, "model")
    once = cosmos_flops.forward_flops(system_config, frames=8, height=6, width=8, text_tokens=32)
    # Two rows for the guidance, four steps.
    assert found["denoising steps"].flops == pytest.approx(2 * 4 * once.total, rel=0.05)


@pytest.mark.slow
def test_the_kv_cache_by_hand() -> None:
    """Text, vision and context tokens; keys and values; one row; an image and an action branch."""
    found = generation.make(recipe("ar_mem.py"), ONE, {})
    tokens = 32 + 12 + 12 * 3 * 4
    assert found.cache == pytest.approx(2 * tokens * 2 * 192 * 4, rel=0.02)


@pytest.mark.slow
def test_a_mesh_that_splits_a_window_halves_the_products_of_a_chip() -> None:
    config = recipe("cosmos_video2world.py", model__num_layers=3)
    two = generation.make(config, topologies.parse("cpu:4"), {"sequence": 2})
    assert two.mesh == {"data": 1, "fsdp": 1, "sequence": 2}
    steps = {cost.name: cost for cost in two.programs}["denoising steps"]
    assert 0.45 < steps.share < 0.7
    assert steps.sent > 0
    whole = generation.make(config, topologies.parse("cpu:4"), {"fsdp": 2})
    shared = {cost.name: cost for cost in whole.programs}["denoising steps"]
    assert shared.share > 0.9
    assert whole.weights < two.weights * 1.1
    assert shared.flops == steps.flops


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    config = recipe("cosmos_video2world.py")
    with pytest.raises(errors.UserError, match="--mesh needs 2 chips, but cpu:1 has 1: choose sizes"):
        generation.make(config, ONE, {"sequence": 2})
    with pytest.raises(errors.UserError, match=r"--topology h100-8: the GPU compiler .*\[gpu-compiler\]"):
        generation.make(config, topologies.parse("h100-8"), {})
    other = run_config.load_recipe("configs/autoencoder.py")
    with pytest.raises(errors.UserError, match="of the system 'autoencoder', whose generation cannot be planned"):
        generation.make(other, ONE, {})
    with pytest.raises(errors.UserError, match=r"does not divide config\.data\.clip\.window_frames 8"):
        generation.make(config, topologies.parse("cpu:3"), {"sequence": 3})
    recipe_flags = ["--config=configs/cosmos_video2world.py", "--topology=cpu:1"]
    for arguments, message in (
        (["generate", "--search"], "--search is for training"),
        (["--mesh=fsdp=2"], "--mesh is for generate"),
        (["--quantize=int8"], "--quantize is for generate"),
        (["generat"], "invalid choice"),
    ):
        with pytest.raises(SystemExit):
            command.main([*arguments, *recipe_flags])
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_command(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", "--config=configs/matrix_lora.py:base", "--config.model.num_layers=1"]
    command.main([*arguments, "--topology=cpu:1", "--quantize=int8", "--json", str(tmp_path / "plan.json")])
    printed = capsys.readouterr().out
    for words in (
        "weights of the network (int8)",
        "denoising step",
        "decoding",
        "not counted: text and image encoders",
    ):
        assert words in printed
    numbers = json.loads((tmp_path / "plan.json").read_text())
    assert numbers["programs"][0]["runs"] == 20
    assert numbers["bounds"] is None


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed")
def test_generation_is_compiled_for_an_absent_tpu() -> None:
    changes: dict[str, Any] = {"model__dtype": "bfloat16", "model__num_layers": 2}
    plan = launch.run_generation(recipe("cosmos_video2world.py", **changes), topologies.parse("v5e-4"), {})
    assert plan.fits
    bounds = roofline(plan)
    assert bounds is not None
    assert bounds.per_second == pytest.approx(28 / bounds.chunk)
    assert all(cost.memory_traffic for cost in plan.programs)
