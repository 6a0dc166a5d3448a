"""Plans compared with the memory and the operations of real runs."""

import dataclasses
import importlib.util
import json
import pathlib
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
import rich.console
import tiny

from jworld.models.hunyuan import flops
from jworld.models.hunyuan.config import HunyuanConfig
from jworld.planning import arithmetic, compile_step, launch, tables, topologies
from jworld.planning.plans import Plan, roofline
from jworld.planning.program import Program
from jworld.training import state as train_state


@pytest.fixture(scope="module")
def program() -> Program:
    return Program(tiny.config(), jax.devices())


@pytest.fixture(scope="module")
def plan() -> Plan:
    """Make the plan in a separate process, as the command does."""
    return launch.run(tiny.config(), topologies.parse("cpu:8"))


def bytes_on(device: jax.Device, tree: Any) -> int:
    shards = [shard for array in jax.tree.leaves(tree) for shard in array.addressable_shards]
    return sum(shard.data.nbytes for shard in shards if shard.device == device)


def test_a_program_that_cannot_be_written_as_text_has_no_traffic(plan: Plan) -> None:
    class Compiled:
        def as_text(self) -> str:
            raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure")

    assert compile_step.traffic(Compiled(), {}) == {}
    values = dataclasses.asdict(plan) | {"chip": "v5p", "memory_traffic": None, "collectives": ()}
    bounds = roofline(Plan(**values))
    assert bounds is not None
    assert bounds.memory is bounds.network is None
    assert bounds.step == bounds.compute > 0


def test_the_program_sends_more_than_is_needed(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    needed, sent = (sum(row.sent for row in rows) for rows in (plan.needed, plan.collectives))
    assert 0 < needed < sent
    assert Plan.from_json(plan.to_json()) == plan
    tables.print_plan(rich.console.Console(width=120), plan)
    assert f"{sent / needed:.2f} times as much" in capsys.readouterr().out


@pytest.mark.slow
def test_planned_memory_equals_that_of_a_run(program: Program, plan: Plan) -> None:
    _, state, _ = train_state.create_state(
        program.system.init,
        trainable=program.trainable,
        optimizer=program.optimizer,
        mesh=program.mesh,
        key=jax.random.key(0),
    )
    zeros = {name: np.zeros(entry.shape, entry.dtype) for name, entry in program.batch.items()}
    batch = jax.device_put(zeros, program.batch_shardings)
    device = jax.devices()[0]
    assert plan.parameters == bytes_on(device, (state.params, state.frozen))
    assert plan.optimizer == bytes_on(device, state.opt_state)
    assert plan.ema == bytes_on(device, state.ema) == plan.parameters
    assert plan.batch == bytes_on(device, batch)
    live = bytes_on(device, state) + plan.batch
    with jax.set_mesh(program.mesh):
        step = program.function.lower(state, batch, jax.random.key(0)).compile()
        memory = step.memory_analysis()
        state, _ = jax.block_until_ready(step(state, batch, jax.random.key(0)))
    assert memory.argument_size_in_bytes == pytest.approx(live, rel=0.02)
    assert plan.peak == pytest.approx(compile_step.peak_bytes(memory), rel=0.1)
    # After the step, the temporaries and the old state are freed.
    assert bytes_on(device, state) + plan.batch == live
    assert plan.temporaries is not None
    assert plan.gradients < plan.temporaries < plan.peak - live + plan.gradients


def test_products_and_the_compilers_count_agree_without_loops() -> None:
    """One layer, wide enough that elementwise work is small; with more layers XLA counts one of them."""
    wide: dict[str, Any] = {"model__width": 256, "model__rope_dims": (32, 48, 48), "mesh__fsdp": 1, "mesh__data": 1}
    one = Program(tiny.config(model__num_layers=1, mesh__sequence=1, **wide), jax.devices()[:1])
    products = arithmetic.count(one.jaxpr())
    assert products.all == products.bodies_once
    assert one.lower().cost_analysis()["flops"] == pytest.approx(products.all, rel=0.1)
    assert products.all == pytest.approx(one.system.step_flops(8), rel=0.05)
    many = Program(tiny.config(model__num_layers=6, mesh__sequence=1, **wide), jax.devices()[:1])
    loops = arithmetic.count(many.jaxpr())
    assert loops.bodies_once == products.all
    unrolled = many.lower().cost_analysis()["flops"] * loops.all / loops.bodies_once
    assert unrolled == pytest.approx(many.system.step_flops(8), rel=0.1)


def test_remat_adds_the_forward_pass_of_the_layers() -> None:
    counts = {
        remat: arithmetic.count(Program(tiny.config(model__remat=remat), jax.devices()).jaxpr()).all
        for remat in ("none", "attention", "full")
    }
    assert counts["none"] < counts["attention"] < counts["full"] < 4 / 3 * counts["none"] * 1.01


def test_counts_of_small_functions() -> None:
    kernel = jax.ShapeDtypeStruct((3, 4, 5), np.float32)
    x = jax.ShapeDtypeStruct((2, 4), np.float32)

    def loop(kernel: jax.Array, x: jax.Array) -> jax.Array:
        def body(x: jax.Array, k: jax.Array) -> tuple[jax.Array, None]:
            return jax.lax.cond(x.sum() > 0, lambda: (x @ k) @ k.T, lambda: x), None

        return jax.lax.scan(body, x, kernel)[0]

    products = arithmetic.count(jax.make_jaxpr(loop)(kernel, x))
    assert products == (3 * 2 * 2 * (2 * 4 * 5), 2 * 2 * (2 * 4 * 5))

    def convolve(image: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    arrays = (jax.ShapeDtypeStruct((1, 8, 8, 4), np.float32), jax.ShapeDtypeStruct((3, 3, 4, 6), np.float32))
    assert arithmetic.count(jax.make_jaxpr(convolve)(*arrays)).all == 2 * 8 * 8 * 6 * 3 * 3 * 4


def test_floors_of_the_published_model() -> None:
    """One sample of 24 latents of 30x52, without text, in PFLOP; attention's backward pass recomputes logits."""
    sample: dict[str, Any] = {"frames": 24, "tokens_per_frame": 30 * 52, "text_tokens": 0}
    causal = flops.forward_flops(HunyuanConfig(), chunk_frames=4, **sample)
    dense = flops.forward_flops(HunyuanConfig(), chunk_frames=None, **sample)
    assert causal.linear / 1e15 == pytest.approx(0.22, abs=0.005)
    assert causal.attention / 1e15 == pytest.approx(0.72, abs=0.005)
    assert dense.attention / 1e15 == pytest.approx(1.24, abs=0.005)
    steps = [(3 * x.linear + 3.5 * x.attention) / 1e15 for x in (causal, dense)]
    assert steps == pytest.approx([3.2, 5.0], abs=0.05)


def test_the_command_writes_all_numbers(tmp_path: pathlib.Path) -> None:
    """Without the GPU there is no compiler, which the report mentions."""
    output = tmp_path / "plan.json"
    result = subprocess.run(
        [
            *(sys.executable, "-m", "jworld.plan", "--config=configs/ar_mem.py", *tiny.FLAGS),
            *("--topology", "h200-8", "--json", str(output)),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert 'pip install -e ".[gpu-compiler]"' in result.stdout
    numbers = json.loads(output.read_text())
    assert numbers["limit"] == 141 * 10**9
    assert numbers["parameters"] > 0
    assert numbers["peak"] is None
    assert numbers["bounds"]["step"] == pytest.approx(numbers["flops"] / (8 * 989e12))


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed")
def test_a_step_is_compiled_for_an_absent_tpu() -> None:
    changes: dict[str, Any] = {"mesh__data": 1, "model__num_layers": 3, "model__dtype": "bfloat16"}
    plan = launch.run(tiny.config(**changes), topologies.parse("v5e-4"))
    assert plan.compiled
    assert plan.fits
    assert plan.peak is not None
    assert plan.least < plan.peak < plan.limit
    # Each of three layers is gathered at least once in the forward and once in the backward pass.
    gathered = sum(row.runs for row in plan.collectives if row.kind == "all-gather")
    assert gathered >= 2 * 3
    assert any(row.kind == "all-to-all" and "sequence" in row.axes for row in plan.collectives)
    assert plan.memory_traffic is not None
    assert plan.memory_traffic > plan.state
