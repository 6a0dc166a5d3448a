"""Benchmark of one training step on random data: time, memory and operations of small models or of a recipe.

    python benchmarks/train_step.py --size tiny
    python benchmarks/train_step.py --size middle --steps 3 --json middle.json
    python benchmarks/train_step.py --config configs/ar_mem.py:8b --layers 2 --batch 1

The same commands run on a CPU, a GPU and a pod. --config uses all devices, the recipe's mesh and its full widths.

tiny is the model and batch of configs/ar_mem.py. middle has 12 layers of width 512 and trains on 6 chunks of 4 frames
of 8x8 latents. The peak is the published one for known hardware and bfloat16. Otherwise it is that of a large matrix
product in the model's dtype, measured in the same run.
"""

import argparse
import json
import pathlib
import resource
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import rich.console
import rich.table

from jworld.planning import compile_step, program
from jworld.training import state as train_state
from jworld.utils import arguments as command_line
from jworld.utils import config as run_config
from jworld.utils import errors, hardware

RECIPE = pathlib.Path(__file__).parent.parent / "configs" / "ar_mem.py"
#: Rows of the square matrices whose product measures the peak.
PEAK_SIZE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}


def make_config(size: str, batch: int | None) -> ml_collections.ConfigDict:
    config = run_config.load_recipe(str(RECIPE))
    with config.unlocked():
        if size == "middle":
            config.global_batch = 4
            config.model.update({"width": 512, "num_heads": 8, "num_layers": 12, "rope_dims": (16, 24, 24)})
            config.model.update({"channels": 32, "remat": "attention"})
            config.data.clip.update({"latent_size": (8, 8), "window_frames": 24, "memory_frames": 20})
            config.data.clip.update({"temporal_context": 12, "curriculum": ((0, 32),)})
        config.global_batch = batch or config.global_batch
        config.mesh = {"data": 1, "fsdp": 1, "sequence": 1}
    return config


def random_batch(spec: dict[str, Any]) -> dict[str, np.ndarray]:
    """Draw a batch: random arrays, identity cameras, no action, all text valid, every second sample with memory."""
    rng = np.random.default_rng(0)
    batch = {}
    for name, entry in spec.items():
        if name in ("w2c", "intrinsics"):
            value = np.broadcast_to(np.eye(entry.shape[-1]), entry.shape)
        elif name == "is_memory":
            value = np.arange(entry.shape[0]) % 2 == 0
        elif np.dtype(entry.dtype) == np.bool_:
            value = np.ones(entry.shape)
        elif name == "action":
            value = np.zeros(entry.shape)
        else:
            value = rng.standard_normal(entry.shape)
        batch[name] = value.astype(entry.dtype)
    return batch


def cut_config(recipe: str, layers: int | None, batch: int | None) -> ml_collections.ConfigDict:
    """Load a recipe with fewer layers and a smaller batch; widths stay, and so does the mesh with several devices."""
    config = run_config.load_recipe(recipe)
    with config.unlocked():
        config.model.num_layers = layers or config.model.num_layers
        config.global_batch = batch or config.global_batch
        if len(jax.devices()) == 1:
            config.mesh = {"data": 1, "fsdp": 1, "sequence": 1}
    return config


def run_steps(measured: program.Program, compiled: Any, steps: int) -> list[float]:
    """Return the seconds of each step, after one warm-up step."""
    _, state, _ = train_state.create_state(
        measured.system.init,
        trainable=measured.trainable,
        optimizer=measured.optimizer,
        mesh=measured.mesh,
        key=jax.random.key(0),
    )
    values = random_batch(measured.batch)
    batch = {
        name: jax.make_array_from_callback(value.shape, measured.batch_shardings[name], value.__getitem__)
        for name, value in values.items()
    }
    times = []
    with jax.set_mesh(measured.mesh):
        for _ in range(steps + 1):
            began = time.perf_counter()
            state, metrics = jax.block_until_ready(compiled(state, batch, jax.random.key(0)))
            times.append(time.perf_counter() - began)
    if metrics["skipped"]:
        skipped = int(metrics["skipped"])
        raise SystemExit(f"error: {skipped} steps were skipped for their gradient norm; the time is not representative")
    return times[1:]


def matmul_peak(dtype: Any, repeats: int = 5) -> float:
    """Measure the operations per second of a large matrix product, the fastest of `repeats`."""
    size = PEAK_SIZE[jax.default_backend()]
    a, b = jax.random.normal(jax.random.key(0), (2, size, size), dtype)
    product = jax.jit(jnp.matmul)
    product(a, b).block_until_ready()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        product(a, b).block_until_ready()
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times)


def measure(name: str, config: ml_collections.ConfigDict, devices: list[jax.Device], steps: int) -> dict[str, Any]:
    """Measure bytes, seconds and operations; the operations are those of all devices together."""
    measured = program.Program(config, devices)
    lowered = measured.lower()
    began = time.perf_counter()
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - began
    times = run_steps(measured, compiled, steps)
    seconds = statistics.median(times)
    memory, products = compiled.memory_analysis(), compile_step.products(config)
    useful = measured.system.step_flops(config.global_batch)
    if useful is None:
        raise SystemExit(f"error: the system {config.system!r} has no formula for the operations of a step")
    dtype = jnp.dtype(getattr(measured.system.model_config, "dtype", jnp.bfloat16))
    chip = hardware.of_device(devices[0]) if dtype == jnp.bfloat16 else None
    peak = len(devices) * (chip.flops if chip else matmul_peak(dtype))
    counted = lowered.cost_analysis()
    return {
        "name": name,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "dtype": dtype.name,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(measured.state.params)),
        "batch": config.global_batch,
        "steps": steps,
        "seconds_per_step": seconds,
        "seconds_fastest": min(times),
        "seconds_slowest": max(times),
        "examples_per_second": config.global_batch / seconds,
        "compile_seconds": compile_seconds,
        "program_bytes": compile_step.peak_bytes(memory),
        "temporary_bytes": memory.temp_size_in_bytes,
        # Read after the steps; None where the device does not count, as on CPUs.
        "device_peak_bytes": (devices[0].memory_stats() or {}).get("peak_bytes_in_use"),
        "process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "useful_flops": useful,
        "product_flops": products.all,
        # XLA counts the body of a loop once; None if the backend cannot count before compiling.
        "xla_over_products": counted["flops"] / products.bodies_once if counted else None,
        "peak_flops_per_second": peak,
        "peak_is": "published" if chip else "measured: a matrix product",
        "floor_seconds": useful / peak,
        "share_of_peak": products.all / seconds / peak,
        "model_share_of_peak": useful / seconds / peak,
    }


def print_table(numbers: dict[str, Any]) -> None:
    n = numbers
    table = rich.table.Table(title=f"{n['name']} on {n['devices']} x {n['device']}, {n['dtype']}", show_header=False)
    for name, value in (
        ("parameters", f"{n['parameters']:,}"),
        ("batch", str(n["batch"])),
        ("step", f"{n['seconds_per_step']:.3f} s ({n['seconds_fastest']:.3f} to {n['seconds_slowest']:.3f})"),
        ("lower bound: useful operations at the peak", f"{n['floor_seconds']:.3f} s"),
        ("examples", f"{n['examples_per_second']:.2f} /s"),
        ("compilation", f"{n['compile_seconds']:.1f} s"),
        (
            "memory of the program per device",
            f"{n['program_bytes'] / 2**20:,.0f} MiB ({n['temporary_bytes'] / 2**20:,.0f} temporary)",
        ),
        ("peak memory of the process", f"{n['process_peak_bytes'] / 2**20:,.0f} MiB"),
        ("useful operations of a step", f"{n['useful_flops'] / 1e9:,.1f} GFLOP"),
        ("with recomputation and optimizer", f"{n['product_flops'] / 1e9:,.1f} GFLOP"),
        ("XLA's count / count of products", "unknown" if not (x := n["xla_over_products"]) else f"{x:.3f}"),
        ("speed, useful", f"{n['useful_flops'] / n['seconds_per_step'] / 1e9:,.1f} GFLOP/s"),
        (f"peak ({n['peak_is']})", f"{n['peak_flops_per_second'] / 1e9:,.1f} GFLOP/s"),
        (
            "share of peak",
            f"{n['model_share_of_peak']:.1%} useful, {n['share_of_peak']:.1%} with recomputation and optimizer",
        ),
    ):
        table.add_row(name, value)
    rich.console.Console().print(table)


@errors.exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=command_line.Formatter)
    add, default = parser.add_argument, "(default: %(default)s)"
    add("--size", choices=("tiny", "middle"), default="tiny", help=f"small model, on one device {default}")
    add("--config", help="recipe instead of --size, such as configs/ar_mem.py:8b, on all devices")
    add("--layers", type=int, help="with --config: layers of the model (default: the recipe's)")
    add("--steps", type=int, default=5, help=f"steps to measure, after one warm-up step {default}")
    add("--batch", type=int, help="samples per step (default: the recipe's, or 4 for middle)")
    add("--json", type=pathlib.Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    if arguments.config:
        config = cut_config(arguments.config, arguments.layers, arguments.batch)
        numbers = measure(arguments.config, config, jax.devices(), arguments.steps)
    else:
        config = make_config(arguments.size, arguments.batch)
        numbers = measure(arguments.size, config, jax.devices()[:1], arguments.steps)
    if jax.process_index() == 0:
        print_table(numbers)
        if arguments.json:
            arguments.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
