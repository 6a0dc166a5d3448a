"""Benchmark of the video transformers' forward and backward passes, compared with diffusers in PyTorch.

    python benchmarks/transformer.py --torch-python ~/torch/bin/python
    python benchmarks/transformer.py --networks cosmos --layers 2 --latent 2x8x8 --json transformer.json

Published widths divided by --narrow, a few layers, random weights, float32, one clip. Both sides run alternately on the
same CPU cores. Both compute the same: "training" is the mean square of the output and its gradient for every weight,
without recomputation.

The table compares seconds and CPU seconds; other load on the machine hardly changes the latter.
"""

import argparse
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import rich.console
import rich.table
import torch_comparison
from flax import nnx

from jworld.models.cogvideox.config import CogVideoXConfig
from jworld.models.cogvideox.transformer import CogVideoXTransformer
from jworld.models.cosmos.config import CosmosConfig
from jworld.models.cosmos.transformer import CosmosInputs, CosmosTransformer
from jworld.utils import arguments as command_line

METHODS = ("forward", "training")
COMMON: dict[str, Any] = {"dtype": jnp.float32, "remat": "none"}
Case = tuple[Callable[[], nnx.Module], Callable[[Any], jax.Array], dict[str, Any]]


def cosmos(arguments: argparse.Namespace) -> Case:
    """Return a constructor of our network, a call of it, and the settings for the diffusers process."""
    published = CosmosConfig()
    width, heads = published.width // arguments.narrow, published.num_heads // arguments.narrow
    config = CosmosConfig(width=width, num_heads=heads, num_layers=arguments.layers, padding_mask=False, **COMMON)
    frames, height, rows = arguments.latent
    text = (1, arguments.text_tokens, config.text_dim)
    video = jax.random.normal(jax.random.key(0), (1, frames, height, rows, config.channels))
    inputs = CosmosInputs(
        video=video,
        text=jax.random.normal(jax.random.key(1), text),
        time=jnp.full((1, frames), 0.5),
        given=jnp.zeros((1, frames)),
    )
    settings = {
        "class": "CosmosTransformer3DModel",
        "fields": {
            "in_channels": config.channels + 1,
            "out_channels": config.channels,
            "num_attention_heads": heads,
            "attention_head_dim": config.head_dim,
            "num_layers": config.num_layers,
            "extra_pos_embed_type": None,
            # A padding mask would need torchvision in diffusers.
            "concat_padding_mask": False,
            "rope_scale": config.rope_scale,
        },
        "inputs": {
            "hidden_states": (1, config.channels, frames, height, rows),
            "timestep": (1,),
            "condition_mask": (1, 1, frames, height, rows),
            "encoder_hidden_states": text,
        },
    }
    return lambda: CosmosTransformer(config, rngs=nnx.Rngs(0)), lambda model: model(inputs), settings


def cogvideox(arguments: argparse.Namespace) -> Case:
    """Return a constructor of our network, a call of it, and the settings for the diffusers process."""
    published = CogVideoXConfig()
    width, heads = published.width // arguments.narrow, published.num_heads // arguments.narrow
    config = CogVideoXConfig(
        width=width, num_heads=heads, num_layers=arguments.layers, text_tokens=arguments.text_tokens, **COMMON
    )
    frames, height, rows = arguments.latent
    text = (1, config.text_tokens, config.text_dim)
    video = jax.random.normal(jax.random.key(0), (1, frames, height, rows, config.channels))
    states, step = jax.random.normal(jax.random.key(1), text), jnp.full((1,), 500)
    settings = {
        "class": "CogVideoXTransformer3DModel",
        "fields": {
            "num_attention_heads": heads,
            "attention_head_dim": config.head_dim,
            "num_layers": config.num_layers,
            "sample_width": rows,
            "sample_height": height,
            "sample_frames": 4 * (frames - 1) + 1,
            "max_text_seq_length": config.text_tokens,
        },
        "inputs": {
            "hidden_states": (1, frames, config.channels, height, rows),
            "timestep": (1,),
            "encoder_hidden_states": text,
        },
    }
    return lambda: CogVideoXTransformer(config, rngs=nnx.Rngs(0)), lambda model: model(video, states, step), settings


NETWORKS: dict[str, Callable[[argparse.Namespace], Case]] = {"cosmos": cosmos, "cogvideox": cogvideox}


class Ours:
    """Compiled programs of a network."""

    def __init__(self, make: Callable[[], nnx.Module], call: Callable[[Any], jax.Array]):
        with nnx.use_eager_sharding(False):
            graphdef, abstract = nnx.split(nnx.eval_shape(make))
        state = torch_comparison.random_weights(abstract)
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(state))

        def loss(state: nnx.State) -> jax.Array:
            return jnp.mean(call(nnx.merge(graphdef, state)) ** 2)

        functions = {"forward": jax.jit(loss), "training": jax.jit(jax.value_and_grad(loss))}
        self._state = state
        self._programs = {name: function.lower(state).compile() for name, function in functions.items()}

    def run(self, method: str) -> dict[str, float]:
        began, worked = time.perf_counter(), time.process_time()
        jax.block_until_ready(self._programs[method](self._state))
        return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - worked}


def measure(name: str, arguments: argparse.Namespace, console: rich.console.Console) -> list[dict[str, Any]]:
    """Measure one row per method."""
    make, call, settings = NETWORKS[name](arguments)
    ours = Ours(make, call)
    settings["threads"] = arguments.threads
    versions, runs = torch_comparison.measure(
        ours, settings, METHODS, python=arguments.torch_python, repeats=arguments.repeats, console=console
    )
    rows = []
    for method, sides in runs.items():
        row: dict[str, Any] = {"network": name, "method": method, "parameters": ours.parameters, "versions": versions}
        for side, results in sides.items():
            row |= {f"{side}_{key}": min(result[key] for result in results) for key in ("seconds", "cpu_seconds")}
        rows.append(row)
    return rows


def print_table(rows: list[dict[str, Any]], arguments: argparse.Namespace, console: rich.console.Console) -> None:
    latent = "x".join(map(str, arguments.latent))
    title = f"{arguments.layers} layers, latents {latent}, {arguments.text_tokens} text tokens, float32"
    title += f", {arguments.threads} threads" + (f"; {rows[0]['versions']}" if rows[0]["versions"] else "")
    columns = ("network", "parameters", "", "jworld", "diffusers", "ratio", "CPU time ratio")
    table = rich.table.Table(*columns, title=title)
    for row in rows:
        other, ratio, cpu = "-", "-", "-"
        if row["versions"]:
            other = f"{row['theirs_seconds']:.2f} s"
            ratio = f"{row['theirs_seconds'] / row['ours_seconds']:.2f}"
            cpu = f"{row['theirs_cpu_seconds'] / row['ours_cpu_seconds']:.2f}"
        size = f"{row['parameters'] / 1e6:,.1f}M"
        table.add_row(row["network"], size, row["method"], f"{row['ours_seconds']:.2f} s", other, ratio, cpu)
    console.print(table)


def _latent(text: str) -> tuple[int, int, int]:
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not FRAMESxHEIGHTxWIDTH")
    return int(parts[0]), int(parts[1]), int(parts[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=command_line.Formatter)
    add, default, names = parser.add_argument, "(default: %(default)s)", tuple(NETWORKS)
    add("--networks", nargs="+", choices=names, default=names, help="networks to measure (default: all)")
    add("--narrow", type=int, default=2, help=f"divisor of the published width and number of heads {default}")
    add("--layers", type=int, default=4, help=f"layers of the network {default}")
    add("--latent", type=_latent, default=(4, 30, 40), metavar="FxHxW", help="size of the latents (default: 4x30x40)")
    add("--text-tokens", type=int, default=226, help=f"text tokens {default}")
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
    # Before JAX counts the cores.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    console = rich.console.Console(highlight=False, soft_wrap=True)
    rows = [row for name in arguments.networks for row in measure(name, arguments, console)]
    print_table(rows, arguments, console)
    if arguments.json:
        settings = {name: value for name, value in vars(arguments).items() if name != "json"}
        arguments.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
