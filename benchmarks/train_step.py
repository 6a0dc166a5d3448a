"""Time, memory and arithmetic of one training step of WorldPlay, on one device and random data.

    python benchmarks/train_step.py --size tiny
    python benchmarks/train_step.py --size middle --steps 3 --json middle.json

tiny is the model and batch of configs/ar_mem.py; middle has 12 layers of width 512 and sees 6 chunks of 4 frames of
8x8 latents. The share of the peak is the useful arithmetic (no recomputation) against a large matrix product in the
model's dtype, measured in the same run.
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
from flax import nnx

from jworld import config as run_config
from jworld import systems
from jworld.models.hunyuan import flops
from jworld.parallel import axes, mesh
from jworld.systems.worldplay.system import WorldPlay
from jworld.training import muon, optimizers, step
from jworld.training import state as train_state

RECIPE = pathlib.Path(__file__).parent.parent / "configs" / "ar_mem.py"
#: Rows of the square matrices whose product is the peak.
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
    """Values of the right kind: identity cameras, no action, all text valid, every second sample with memory."""
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


class Step:
    """The train step of a config on one device, its state, and what it needs."""

    def __init__(self, config: ml_collections.ConfigDict):
        self.config = config
        self.system: WorldPlay = systems.create(config)
        self.mesh = mesh.make_mesh(**config.mesh, devices=jax.devices()[:1])
        self.optimizer = optimizers.make_optimizer(
            run_config.section(optimizers.OptimizerConfig, config.optimizer, "optimizer"), steps=config.steps
        )
        self.init: dict[str, Any] = {
            "init_model": self.system.init,
            "trainable": nnx.Param,
            "optimizer": self.optimizer,
            "mesh": self.mesh,
        }
        graphdef, self.abstract, shardings = train_state.abstract_state(**self.init)
        spec = self.system.batch_spec(config.global_batch)
        self.batch_shardings = {name: axes.sharding(self.mesh, entry.axes) for name, entry in spec.items()}
        self.batch = jax.device_put(random_batch(spec), self.batch_shardings)
        self.function: Any = step.make_train_step(
            graphdef,
            self.system.loss,
            self.optimizer,
            shardings=shardings,
            batch_shardings=self.batch_shardings,
            mesh=self.mesh,
        )

    def lower(self) -> Any:
        with jax.set_mesh(self.mesh):
            return self.function.lower(self.abstract, self.batch, jax.random.key(0))

    def model_flops(self) -> flops.Flops:
        """Forward and backward pass of the batch."""
        cfg, clip = self.system.model_config, self.system.clip
        sample = flops.forward_flops(
            cfg,
            frames=clip.window_frames,
            tokens_per_frame=clip.latent_size[0] * clip.latent_size[1] // (cfg.patch_size[1] * cfg.patch_size[2]),
            text_tokens=clip.text_tokens,
            glyph_tokens=clip.glyph_tokens,
            vision_tokens=clip.vision_tokens,
            chunk_frames=clip.chunk_frames,
        )
        times = flops.TRAINING * self.config.global_batch
        return flops.Flops(sample.linear * times, sample.attention * times)

    def optimizer_flops(self) -> int:
        """Newton-Schulz iterations: the same for any batch, so they weigh more the smaller it is."""
        total = 0
        for _, leaf in nnx.to_flat_state(self.abstract.params):
            if muon.is_matrix(leaf):
                layers = leaf.shape[0] if muon.is_stacked(leaf) else 1
                rows, columns = sorted((int(np.prod(leaf.shape[:-1])) // layers, leaf.shape[-1]))
                total += layers * (4 * rows**2 * columns + 2 * rows**3)
        return self.optimizer.config.newton_schulz_steps * total

    def total_flops(self) -> int:
        return self.model_flops().total + self.optimizer_flops()


def xla_over_formula(config: ml_collections.ConfigDict) -> float:
    """XLA's count of the step over the formula's.

    XLA counts the body of a scan once, whatever its length, and recomputation as work: both are compared for a model
    of one layer without remat. It also counts what the formula leaves out, element by element.
    """
    one = ml_collections.ConfigDict(config.to_dict())
    one.model.num_layers = 1
    one.model.remat = "none"
    measured = Step(one)
    return measured.lower().cost_analysis()["flops"] / measured.total_flops()


def matmul_peak(dtype: Any, repeats: int = 5) -> float:
    """Operations per second of a large matrix product, the best of several."""
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


def run_steps(measured: Step, compiled: Any, steps: int) -> list[float]:
    """Seconds of each step after one that is not counted."""
    _, state, _ = train_state.create_state(**measured.init, key=jax.random.key(0))
    times = []
    with jax.set_mesh(measured.mesh):
        for _ in range(steps + 1):
            began = time.perf_counter()
            state, metrics = jax.block_until_ready(compiled(state, measured.batch, jax.random.key(0)))
            times.append(time.perf_counter() - began)
    if metrics["skipped"]:
        raise SystemExit(f"error: {int(metrics['skipped'])} steps were skipped for their gradients; their time lies")
    return times[1:]


def measure(size: str, steps: int, batch: int | None) -> dict[str, Any]:
    """All numbers; bytes, seconds and operations."""
    measured = Step(make_config(size, batch))
    lowered = measured.lower()
    began = time.perf_counter()
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - began
    times = run_steps(measured, compiled, steps)
    seconds = statistics.median(times)
    memory, model = compiled.memory_analysis(), measured.model_flops()
    dtype = measured.system.model_config.dtype
    peak = matmul_peak(dtype)
    count = measured.config.global_batch
    return {
        "size": size,
        "device": jax.devices()[0].device_kind,
        "dtype": jnp.dtype(dtype).name,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(measured.abstract.params)),
        "batch": count,
        "steps": steps,
        "seconds_per_step": seconds,
        "seconds_fastest": min(times),
        "seconds_slowest": max(times),
        "examples_per_second": count / seconds,
        "compile_seconds": compile_seconds,
        # The state is donated: its place is counted once, as an argument.
        "program_bytes": memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "linear_flops": model.linear,
        "attention_flops": model.attention,
        "optimizer_flops": measured.optimizer_flops(),
        "xla_over_formula": xla_over_formula(measured.config),
        "flops_per_second": measured.total_flops() / seconds,
        "matmul_flops_per_second": peak,
        "share_of_peak": measured.total_flops() / seconds / peak,
        "model_share_of_peak": model.total / seconds / peak,
    }


def print_table(numbers: dict[str, Any]) -> None:
    n = numbers
    table = rich.table.Table(title=f"{n['size']} on {n['device']}, {n['dtype']}", show_header=False)
    total = n["linear_flops"] + n["attention_flops"] + n["optimizer_flops"]
    for name, value in (
        ("parameters", f"{n['parameters']:,}"),
        ("batch", str(n["batch"])),
        ("step", f"{n['seconds_per_step']:.3f} s ({n['seconds_fastest']:.3f} to {n['seconds_slowest']:.3f})"),
        ("examples", f"{n['examples_per_second']:.2f} /s"),
        ("compilation", f"{n['compile_seconds']:.1f} s"),
        (
            "memory of the program",
            f"{n['program_bytes'] / 2**20:,.0f} MiB ({n['temporary_bytes'] / 2**20:,.0f} temporary)",
        ),
        ("peak memory of the process", f"{n['process_peak_bytes'] / 2**20:,.0f} MiB"),
        ("arithmetic of a step", f"{total / 1e9:,.1f} GFLOP"),
        ("  products with weights", f"{n['linear_flops'] / total:.1%}"),
        ("  attention", f"{n['attention_flops'] / total:.1%}"),
        ("  optimizer", f"{n['optimizer_flops'] / total:.1%}"),
        ("XLA's count over the formula's, 1 layer", f"{n['xla_over_formula']:.3f}"),
        ("speed", f"{n['flops_per_second'] / 1e9:,.1f} GFLOP/s"),
        ("speed of a matrix product", f"{n['matmul_flops_per_second'] / 1e9:,.1f} GFLOP/s"),
        ("share of it", f"{n['share_of_peak']:.1%}, model alone {n['model_share_of_peak']:.1%}"),
    ):
        table.add_row(name, value)
    rich.console.Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "middle"), default="tiny")
    parser.add_argument("--steps", type=int, default=5, help="steps to measure, after one that is not counted")
    parser.add_argument("--batch", type=int, help="samples per step (default: the recipe's, or 4 for middle)")
    parser.add_argument("--json", type=pathlib.Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    numbers = measure(arguments.size, arguments.steps, arguments.batch)
    print_table(numbers)
    if arguments.json:
        arguments.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
