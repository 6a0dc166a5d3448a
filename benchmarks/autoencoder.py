"""Benchmark of the video autoencoders, compared with the same classes of diffusers in PyTorch.

    python benchmarks/autoencoder.py --torch-python ~/torch/bin/python
    python benchmarks/autoencoder.py --families wan --frames 17 --size 128x96 --json autoencoder.json

Random weights of the published sizes, or of widths divided by --narrow, in float32. Both sides run alternately on the
same CPU cores. Both compute the same: HunyuanVideo-1.5 encodes the whole clip at once, as its diffusers class does.

The table compares frames per second and CPU seconds; other load on the machine hardly changes the latter. The share of
peak is XLA's count of operations per CPU second, divided by that of a large matrix product.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
import torch_comparison
from flax import nnx

from jworld.models.autoencoders import files
from jworld.utils import arguments as command_line

METHODS = ("encode", "decode")
#: Autoencoder family -> class of diffusers.
CLASSES = {
    "wan": "AutoencoderKLWan",
    "cogvideox": "AutoencoderKLCogVideoX",
    "hunyuan15": "AutoencoderKLHunyuanVideo15",
}


def fields(family: str, narrow: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields of our config and of the diffusers class, with the published widths divided by `narrow`."""
    config = files.NETWORKS[family][1]()
    if family == "wan":
        width = config.channels // narrow
        return {"channels": width}, {"base_dim": width}
    widths = tuple(width // narrow for width in config.widths)
    if family == "cogvideox":
        groups = max(config.groups // narrow, 1)
        own = {"widths": widths, "groups": groups, "double_lone_frame": False}
        return own, {"block_out_channels": widths, "norm_num_groups": groups}
    return {"widths": widths, "attention": "causal", "chunk": None}, {"block_out_channels": widths}


class Ours:
    """Network with random weights, and its two compiled programs."""

    def __init__(self, family: str, values: dict[str, Any], video: tuple[int, int, int]):
        cls, config_type = files.NETWORKS[family]
        config = config_type(**values, dtype=jnp.float32)
        graphdef, abstract = nnx.split(nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0))))
        model = nnx.merge(graphdef, torch_comparison.random_weights(abstract))
        rng = np.random.default_rng(0)
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract))
        self.latents = model.latent_shape(*video)
        inputs = {"encode": rng.uniform(-1, 1, (1, *video, 3)), "decode": rng.standard_normal((1, *self.latents))}
        self.compile_seconds, self.flops = {}, {}
        self._programs = {}
        whole = nnx.merge(graphdef, abstract)
        whole.config = dataclasses.replace(config, chunk=None)
        for method in METHODS:
            array = jnp.asarray(inputs[method], jnp.float32)
            function = jax.jit(getattr(cls, method))
            began = time.perf_counter()
            compiled = function.lower(model, array).compile()
            self.compile_seconds[method] = time.perf_counter() - began
            self._programs[method] = (compiled, model, array)
            # XLA counts the body of a loop over chunks once.
            self.flops[method] = function.lower(whole, array).cost_analysis()["flops"]

    def run(self, method: str) -> dict[str, float]:
        compiled, *arrays = self._programs[method]
        began, worked = time.perf_counter(), time.process_time()
        jax.block_until_ready(compiled(*arrays))
        return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - worked}


def matmul_flops(size: int = 2048, repeats: int = 3) -> float:
    """Measure the operations per CPU second of a large matrix product, the fastest of `repeats`."""
    a, b = jax.random.normal(jax.random.key(0), (2, size, size))
    product = jax.jit(jnp.matmul).lower(a, b).compile()
    times = []
    for _ in range(repeats):
        worked = time.process_time()
        product(a, b).block_until_ready()
        times.append(time.process_time() - worked)
    return 2 * size**3 / min(times)


def measure(family: str, arguments: argparse.Namespace, console: rich.console.Console) -> list[dict[str, Any]]:
    """Measure one row per method."""
    width, height = arguments.size
    video = (arguments.frames, height, width)
    narrow = arguments.narrow.get(family, 1)
    own, other = fields(family, narrow)
    ours = Ours(family, own, video)
    frames, *space, channels = ours.latents
    settings = {
        "class": CLASSES[family],
        "fields": other,
        "inputs": {"video": (1, 3, *video), "latents": (1, channels, frames, *space)},
        "threads": arguments.threads,
    }
    versions, runs = torch_comparison.measure(
        ours, settings, METHODS, python=arguments.torch_python, repeats=arguments.repeats, console=console
    )
    rows = []
    for method, sides in runs.items():
        row = {"family": family, "narrow": narrow, "method": method, "parameters": ours.parameters}
        row |= {"compile_seconds": ours.compile_seconds[method], "flops": ours.flops[method], "versions": versions}
        for name, results in sides.items():
            seconds = [result["seconds"] for result in results]
            row[f"{name}_frames_per_second"] = arguments.frames / min(seconds)
            row[f"{name}_median_frames_per_second"] = arguments.frames / statistics.median(seconds)
            row[f"{name}_cpu_seconds"] = min(result["cpu_seconds"] for result in results)
        row["matmul_flops_per_cpu_second"] = matmul_flops()
        row["share_of_peak"] = row["flops"] / row["ours_cpu_seconds"] / row["matmul_flops_per_cpu_second"]
        rows.append(row)
    return rows


def print_table(rows: list[dict[str, Any]], arguments: argparse.Namespace, console: rich.console.Console) -> None:
    width, height = arguments.size
    title = f"{arguments.frames} frames of {width}x{height}, float32, {arguments.threads} threads"
    if versions := rows[0]["versions"]:
        title += f"; {versions}"
    columns = ("family", "parameters", "", "jworld", "diffusers", "ratio", "CPU time ratio", "GFLOP", "share of peak")
    table = rich.table.Table(*columns, title=title)
    for row in rows:
        other, ratio, cpu = "-", "-", "-"
        if row["versions"]:
            other = f"{row['theirs_frames_per_second']:.2f} /s"
            ratio = f"{row['ours_frames_per_second'] / row['theirs_frames_per_second']:.2f}"
            cpu = f"{row['theirs_cpu_seconds'] / row['ours_cpu_seconds']:.2f}"
        table.add_row(
            row["family"] + (f", widths / {row['narrow']}" if row["narrow"] > 1 else ""),
            f"{row['parameters'] / 1e6:,.1f}M",
            row["method"],
            f"{row['ours_frames_per_second']:.2f} /s",
            other,
            ratio,
            cpu,
            f"{row['flops'] / 1e9:,.0f}",
            f"{row['share_of_peak']:.0%}",
        )
    console.print(table)


def _size(text: str) -> tuple[int, int]:
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT")
    return int(parts[0]), int(parts[1])


def _narrow(text: str) -> tuple[str, int]:
    family, _, divisor = text.partition("=")
    if family not in files.NETWORKS or divisor not in ("1", "2", "4", "8", "16"):
        raise argparse.ArgumentTypeError(f"{text!r} is not FAMILY=N, N one of 1, 2, 4, 8, 16")
    return family, int(divisor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=command_line.Formatter)
    add, default = parser.add_argument, "(default: %(default)s)"
    families = tuple(files.NETWORKS)
    add("--families", nargs="+", choices=families, default=families, help="autoencoders to measure (default: all)")
    add("--frames", type=int, default=9, help=f"frames of the clip, 4k + 1 {default}")
    add("--size", type=_size, default=(64, 64), metavar="WIDTHxHEIGHT", help="pixels of a frame (default: 64x64)")
    add(
        "--narrow",
        type=_narrow,
        nargs="+",
        default=[],
        metavar="FAMILY=N",
        help="divide the widths of a family by N, one of 1, 2, 4, 8, 16 (default: 1)",
    )
    add("--repeats", type=int, default=3, help=f"calls to time; the fastest counts {default}")
    add("--threads", type=int, default=2, help=f"CPU cores for each side {default}")
    add(
        "--torch-python",
        default=sys.executable,
        metavar="PATH",
        help="interpreter with torch and diffusers (default: the running one)",
    )
    add("--json", type=pathlib.Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    arguments.narrow = dict(arguments.narrow)
    # Before JAX counts the cores.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    console = rich.console.Console(highlight=False, soft_wrap=True)
    rows = [row for family in arguments.families for row in measure(family, arguments, console)]
    print_table(rows, arguments, console)
    if arguments.json:
        settings = {name: value for name, value in vars(arguments).items() if name != "json"}
        arguments.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
