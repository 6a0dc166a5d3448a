"""Benchmark of weights in 8 bits next to full precision: size, distance of the results, time of a denoising step.

    python benchmarks/quantized.py
    python benchmarks/quantized.py --checkpoint runs/ar_mem --recipes cosmos_video2world.py --json quantized.json
    python benchmarks/quantized.py --checkpoint --recipes cosmos_video2world.py:2b --layers 4 --dtype bfloat16

A checkpoint generates the same video, from the same noise, with each kind of weights; the PSNR is that of its frames to
those of full precision, after the autoencoder. A recipe has random weights and random inputs: there the PSNR is that of
the latents that one call of the denoising program returns, to their own range. Kinds alternate, and the fastest of
--repeats counts. The time of a step is that of the denoising programs of a chunk, divided by the denoising steps.
"""

import argparse
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
from flax import nnx

from jworld import systems
from jworld.evaluation import held_out
from jworld.models.layers import quantized
from jworld.parallel import mesh as mesh_lib
from jworld.parallel.programs import Program
from jworld.systems import generation, runs
from jworld.training import weights
from jworld.utils import arguments as command_line
from jworld.utils import config as run_config

ROOT = pathlib.Path(__file__).parent.parent
FULL = "full"
KINDS = (FULL, *quantized.KINDS)
RECIPES = ("ar_mem.py", "matrix_lora.py:base", "matrix_swin_dpm.py", "cosmos_video2world.py")
#: Path of `generate` for the checkpoint's own kind of steering: 61 frames, or two windows.
PATHS = {"--pose": {"pose": "w-7, right-8"}, "--actions": {"actions": "D*8"}}


def weight_bytes(model: nnx.Module) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def psnr(found: np.ndarray, expected: np.ndarray, peak: float) -> float:
    error = np.mean(np.square(found.astype(np.float64) - expected.astype(np.float64)))
    return float(10 * np.log10(peak**2 / error))


def random_inputs(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments of a program with numbers in place of descriptions: floats in 0.1..0.9, zeros, True."""
    rng = np.random.default_rng(1)

    def drawn(x: Any) -> Any:
        if not isinstance(x, jax.ShapeDtypeStruct):
            return x
        if jnp.issubdtype(x.dtype, jnp.floating):
            value = rng.uniform(0.1, 0.9, x.shape)
        else:
            value = np.full(x.shape, x.dtype == jnp.bool_)
        return jax.device_put(jnp.asarray(value, x.dtype), x.sharding)

    return jax.tree.map(drawn, arguments)


def quantized_model(model: Any, kind: str) -> Any:
    """Return a model with its weights of this kind."""
    graphdef, params = nnx.split(model)
    described = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
    # The quantization deletes what it has replaced.
    copied = jax.tree.map(jnp.copy, params)
    return nnx.merge(graphdef, weights.replaced(copied, quantized.Quantizer.of(described, kind)))


def random_model(system: Any) -> Any:
    """Return the network of a system with weights that keep the size of activations."""
    with nnx.use_eager_sharding(False):
        graphdef, params = nnx.split(nnx.eval_shape(lambda: system.init(nnx.Rngs(0))))
    rng = np.random.default_rng(0)

    def drawn(x: jax.ShapeDtypeStruct) -> jax.Array:
        fan_in = x.shape[-2] if len(x.shape) > 1 else x.shape[-1]
        return jnp.asarray(rng.standard_normal(x.shape, np.float32) / np.sqrt(fan_in), x.dtype)

    return nnx.merge(graphdef, jax.tree.map(drawn, params))


def denoising(system: Any, model: Any, mesh: jax.sharding.Mesh) -> Program:
    """Return the program of the denoising steps with numbers as inputs."""
    for program in system.generation(model, mesh).network:
        # Later programs are described with the results of earlier ones.
        if program.name.startswith("denoising"):
            return program
    raise ValueError("no program of denoising steps")


def measure_recipe(recipe: str, layers: int | None, dtype: str | None, repeats: int) -> dict[str, Any]:
    """Measure a recipe with random weights."""
    config = run_config.load_recipe(str(ROOT / "configs" / recipe))
    with config.unlocked():
        config.init_from = ""
        config.mesh = {"data": 1, "fsdp": 1, "sequence": 1}
        if layers is not None:
            config.model.num_layers = layers
        if dtype is not None:
            config.model.param_dtype = dtype
    system: Any = systems.create(config)
    full, mesh = random_model(system), mesh_lib.make_mesh(devices=jax.devices()[:1])
    row: dict[str, Any] = {"what": recipe, "weights": "random"}
    programs, inputs, outputs = {}, {}, {}
    with jax.set_mesh(mesh):
        for kind in KINDS:
            model = full if kind == FULL else quantized_model(full, kind)
            row[f"{kind}_bytes"] = weight_bytes(model)
            programs[kind] = denoising(system, model, mesh)
            inputs[kind] = random_inputs(programs[kind].arguments)
            outputs[kind] = call(programs[kind], inputs[kind])
        seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(repeats):
            for kind, program in programs.items():
                began = time.perf_counter()
                call(program, inputs[kind])
                seconds[kind].append(time.perf_counter() - began)
    steps = config.sample.rollout.num_steps
    row |= {f"{kind}_step_seconds": min(seconds[kind]) * programs[kind].runs / steps for kind in KINDS}
    peak = float(np.ptp(outputs[FULL]))
    return row | {f"{kind}_psnr": psnr(outputs[kind], outputs[FULL], peak) for kind in quantized.KINDS}


def call(program: Program, arguments: tuple[Any, ...]) -> np.ndarray:
    """Call a program; return its first result, the latents."""
    results = jax.block_until_ready(program.function(*arguments, **program.options))
    return np.asarray(jax.tree.leaves(results)[0])


def measure_checkpoint(directory: pathlib.Path, image: np.ndarray, repeats: int) -> dict[str, Any]:
    """Generate one video with every kind of the weights of a checkpoint."""
    row: dict[str, Any] = {"what": directory.name, "weights": "trained"}
    opened = {
        kind: runs.load(directory, config=runs.resolve(directory), quantize=None if kind == FULL else kind)
        for kind in KINDS
    }
    system = generation.video_system(opened[FULL].system, opened[FULL].config)
    steps = system.controls(next(iter(PATHS.get(system.steering, {"": None}).values())), None, None)
    sessions = {kind: run.session() for kind, run in opened.items()}
    videos: dict[str, np.ndarray] = {}
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(repeats):
        for kind, run in opened.items():
            frames: list[np.ndarray] = []
            _, timings = generation.roll_out(
                sessions[kind],
                steps,
                mesh=run.mesh,
                image=image if system.needs_image else None,
                prompt="plain colored rooms",
                seed=0,
                take=frames.append,
            )
            # The first chunks compile, and have no context.
            seconds[kind].append(min(timings["chunk_seconds"][1:] or timings["chunk_seconds"]))
            videos[kind] = np.concatenate(frames)
    for kind, run in opened.items():
        row[f"{kind}_bytes"] = weight_bytes(run.model)
        row[f"{kind}_step_seconds"] = min(seconds[kind]) / opened[FULL].config.sample.rollout.num_steps
    return row | {f"{kind}_psnr": held_out.psnr(videos[FULL], videos[kind]) for kind in quantized.KINDS}


def print_table(rows: list[dict[str, Any]], console: rich.console.Console) -> None:
    def joined(row: dict[str, Any], ending: str, kinds: tuple[str, ...], scale: float = 1) -> str:
        return " / ".join(f"{scale * row[f'{kind}_{ending}']:,.1f}" for kind in kinds)

    names, eight = (" / ".join(kinds) for kinds in (KINDS, quantized.KINDS))
    columns = ("model", "weights", f"MB, {names}", f"PSNR in dB, {eight}", f"ms per step, {names}")
    table = rich.table.Table(*columns, title=f"weights in 8 bits, {jax.devices()[0].device_kind}")
    for row in rows:
        measured = joined(row, "bytes", KINDS, 1e-6), joined(row, "psnr", quantized.KINDS)
        table.add_row(row["what"], row["weights"], *measured, joined(row, "step_seconds", KINDS, 1e3))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=command_line.Formatter)
    add, default = parser.add_argument, "(default: %(default)s)"
    starter = [ROOT / "assets" / "starter"]
    add("--checkpoint", type=pathlib.Path, nargs="*", default=starter, help="trained models (default: assets/starter)")
    add("--recipes", nargs="*", default=RECIPES, help="recipes in configs/ (default: the tiny one of every system)")
    add("--layers", type=int, help="layers of the recipes' networks (default: their own)")
    add("--dtype", choices=("float32", "bfloat16"), help="full precision of recipes (default: their own)")
    add("--repeats", type=int, default=3, help=f"calls to time; the fastest counts {default}")
    add("--json", type=pathlib.Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    image = np.full((96, 128, 3), 128, np.uint8)
    image[48:, :, 0] = 200
    rows = [measure_checkpoint(directory, image, arguments.repeats) for directory in arguments.checkpoint]
    rows += [measure_recipe(name, arguments.layers, arguments.dtype, arguments.repeats) for name in arguments.recipes]
    print_table(rows, rich.console.Console(highlight=False, soft_wrap=True))
    if arguments.json:
        settings = {"device": jax.devices()[0].device_kind, "repeats": arguments.repeats, "layers": arguments.layers}
        arguments.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
