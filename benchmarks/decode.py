"""Benchmark of Gemma-3's greedy decoding with a KV cache, compared with recomputing the whole sequence per token.

    python benchmarks/decode.py
    python benchmarks/decode.py --layers 34 --width 2560 --heads 8 --head-dim 256 --prompt 4096 --json decode.json

Random weights, prompts without padding. Both versions choose the same tokens, which is checked. The second version
makes only --recomputed tokens, because each of them costs as much as the whole sequence.

The lower bound of a token is the larger of two times. One is its operations at the peak of a matrix product. The other
is the bytes that it must read (all weights, and the visible part of the KV cache) at the memory bandwidth. Peak and
bandwidth are the published ones for known hardware and bfloat16, else they are measured in the same run.
"""

import argparse
import functools
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import rich.console
import rich.table
import torch_comparison
import train_step
from flax import nnx

from jworld.models.gemma3 import decoding, flops
from jworld.models.gemma3.config import Gemma3Config
from jworld.models.gemma3.text import TextModel
from jworld.utils import arguments as command_line
from jworld.utils import hardware

VERSIONS = ("cached", "recomputed")
#: Bytes of the array that is read to measure the bandwidth, larger than any processor cache.
BANDWIDTH_BYTES = {"cpu": 2**30, "gpu": 2**32, "tpu": 2**32}


def make_config(arguments: argparse.Namespace) -> Gemma3Config:
    return Gemma3Config(
        vocabulary=arguments.vocabulary,
        width=arguments.width,
        mlp_width=4 * arguments.width,
        num_layers=arguments.layers,
        num_heads=arguments.heads,
        num_key_heads=max(arguments.heads // 2, 1),
        head_dim=arguments.head_dim,
        query_scale=float(arguments.head_dim),
        window=arguments.window,
        image_token=arguments.vocabulary,
        dtype=jnp.dtype(arguments.dtype),
        param_dtype=jnp.dtype(arguments.dtype),
        remat="none",
    )


def random_model(cfg: Gemma3Config) -> TextModel:
    with nnx.use_eager_sharding(False):
        graphdef, abstract = nnx.split(nnx.eval_shape(lambda: TextModel(cfg, rngs=nnx.Rngs(0))))
    state = jax.tree.map(lambda leaf: leaf.astype(cfg.param_dtype), torch_comparison.random_weights(abstract))
    return nnx.merge(graphdef, state)


@functools.partial(jax.jit, static_argnames="capacity")
def prefill(model: TextModel, tokens: jax.Array, *, capacity: int) -> decoding.State:
    return decoding.prefill(model, model.embed(tokens), jnp.ones(tokens.shape, bool), None, capacity=capacity)


@functools.partial(jax.jit, static_argnames="steps")
def cached(model: TextModel, state: decoding.State, *, steps: int) -> jax.Array:
    """Decode [B, steps] tokens after a prefilled prompt."""
    return decoding.generate(model, state, steps=steps)


@functools.partial(jax.jit, static_argnames=("steps", "capacity"))
def recomputed(model: TextModel, tokens: jax.Array, *, steps: int, capacity: int) -> jax.Array:
    """Decode [B, steps] tokens; each one computes all `capacity` positions, with later ones hidden by causality."""
    length = tokens.shape[1]

    def body(number: jax.Array, row: jax.Array) -> jax.Array:
        states = model(model.embed(row))
        last = jax.lax.dynamic_index_in_dim(states, number - 1, axis=1, keepdims=False)
        return row.at[:, number].set(jnp.argmax(model.logits(last), axis=-1).astype(row.dtype))

    row = jnp.pad(tokens, [(0, 0), (0, capacity - length)])
    return jax.lax.fori_loop(length, length + steps, body, row)[:, length : length + steps]


def seconds_of(call: Callable[[], Any], repeats: int) -> float:
    """Return the fastest time of `repeats` calls in seconds, after one call that compiles."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - began)
    return min(times)


def limits(dtype: Any) -> tuple[float, float, str]:
    """Return the operations and bytes per second of one device, and their source."""
    chip = hardware.of_device(jax.devices()[0]) if dtype == jnp.bfloat16 else None
    if chip is not None:
        return chip.flops, chip.hbm_bandwidth, "published"
    # Always float32: the maximum over narrower numbers is bound by arithmetic on a CPU.
    values = jnp.ones(BANDWIDTH_BYTES[jax.default_backend()] // 4, jnp.float32)
    read = jax.jit(jnp.max)
    return train_step.matmul_peak(dtype), values.nbytes / seconds_of(lambda: read(values), 5), "measured"


def visible(cfg: Gemma3Config, tokens: int) -> int:
    """Count the keys that a token after `tokens` others attends to, itself included, summed over the layers."""
    return sum(min(cfg.window, tokens + 1) if kind == "sliding" else tokens + 1 for kind in cfg.kinds)


def token_work(cfg: Gemma3Config, parameters: int, *, batch: int, tokens: int) -> tuple[float, float]:
    """Return (operations, bytes) of one decoding step after `tokens` tokens, with one new token in every row."""
    keys = visible(cfg, tokens)
    linear = flops.text_flops(cfg, tokens=1, predictions=1).linear
    size = jnp.dtype(cfg.dtype).itemsize
    operations = batch * (linear + 4 * keys * cfg.num_heads * cfg.head_dim)
    return float(operations), float(parameters + 2 * batch * keys * cfg.num_key_heads * cfg.head_dim) * size


def measure(cfg: Gemma3Config, model: TextModel, batch: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one batch size."""
    prompt, new, recompute = arguments.prompt, arguments.new, min(arguments.recomputed, arguments.new)
    capacity = prompt + new
    tokens = jax.random.randint(jax.random.key(1), (batch, prompt), 0, cfg.vocabulary)
    state = prefill(model, tokens, capacity=capacity)
    first = cached(model, state, steps=new)[:, :recompute]
    agree = float(jnp.mean(first == recomputed(model, tokens, steps=recompute, capacity=capacity)))
    prefill_seconds = seconds_of(lambda: prefill(model, tokens, capacity=capacity), arguments.repeats)
    seconds = {
        "cached": seconds_of(lambda: cached(model, state, steps=new), arguments.repeats) / new,
        "recomputed": seconds_of(
            lambda: recomputed(model, tokens, steps=recompute, capacity=capacity), max(arguments.repeats // 2, 1)
        )
        / recompute,
    }
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    operations, traffic = token_work(cfg, parameters, batch=batch, tokens=prompt + new // 2)
    whole = batch * flops.text_flops(cfg, tokens=capacity, predictions=1).total
    return {
        "batch": batch,
        "parameters": parameters,
        "agree": agree,
        "prefill_seconds": prefill_seconds,
        "prefill_flops": batch * flops.text_flops(cfg, tokens=prompt, predictions=1).total,
        "seconds_per_token": seconds,
        "tokens_per_second": {version: batch / seconds[version] for version in VERSIONS},
        "flops": {"cached": operations, "recomputed": float(whole)},
        "bytes": traffic,
    }


def with_limits(row: dict[str, Any], peak: float, bandwidth: float) -> dict[str, Any]:
    """Add the lower bounds: operations or memory with the cache, operations without."""
    floors = {
        "cached": max(row["flops"]["cached"] / peak, row["bytes"] / bandwidth),
        "recomputed": row["flops"]["recomputed"] / peak,
    }
    return row | {
        "floor_seconds": floors,
        "share_of_limit": {version: floors[version] / row["seconds_per_token"][version] for version in VERSIONS},
        "prefill_share_of_peak": row["prefill_flops"] / row["prefill_seconds"] / peak,
    }


def print_table(rows: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    columns = ("batch", "version", "ms", "tokens/s", "GFLOP", "MiB", "lower bound, ms", "of limit")
    table = rich.table.Table(*columns, title=f"one greedy token per row, {settings['device']}, {settings['dtype']}")
    for row in rows:
        for version in VERSIONS:
            table.add_row(
                str(row["batch"]),
                version,
                f"{1e3 * row['seconds_per_token'][version]:.1f}",
                f"{row['tokens_per_second'][version]:.1f}",
                f"{row['flops'][version] / 1e9:.2f}",
                f"{row['bytes'] / 2**20:,.0f}" if version == "cached" else "",
                f"{1e3 * row['floor_seconds'][version]:.1f}",
                f"{row['share_of_limit'][version]:.0%}",
            )
    console = rich.console.Console(highlight=False)
    console.print(table)
    for row in rows:
        console.print(
            f"batch {row['batch']}: prefill {row['prefill_seconds']:.2f} s, "
            f"{row['prefill_share_of_peak']:.0%} of the peak; {row['agree']:.0%} of the compared tokens are the same"
        )
    console.print(
        f"{rows[0]['parameters']:,} parameters; {settings['limits']}: {settings['peak'] / 1e9:,.0f} GFLOP/s, "
        f"{settings['bandwidth'] / 1e9:,.1f} GB/s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=command_line.Formatter)
    for name, default, text in (
        ("layers", 8, "layers of the language model"),
        ("width", 512, "model width; the MLP is four times as wide"),
        ("heads", 8, "query heads; there are half as many key heads"),
        ("head-dim", 64, "channels of a head"),
        ("vocabulary", 16384, "rows of the embedding"),
        ("window", 256, "tokens that a sliding-window layer attends to"),
        ("prompt", 512, "tokens of the prompt"),
        ("new", 64, "tokens to decode with the KV cache"),
        ("recomputed", 8, "tokens to decode without the KV cache"),
        ("repeats", 3, "calls to time; the fastest counts"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text}")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4], help="batch sizes to measure (default: 1 4)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="dtype of weights and activations",
    )
    parser.add_argument("--json", type=pathlib.Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    cfg = make_config(arguments)
    model = random_model(cfg)
    measured = [measure(cfg, model, batch, arguments) for batch in arguments.batches]
    peak, bandwidth, source = limits(jnp.dtype(cfg.dtype))
    rows = [with_limits(row, peak, bandwidth) for row in measured]
    settings = {name: str(value) if name == "json" else value for name, value in vars(arguments).items()}
    settings |= {"device": jax.devices()[0].device_kind, "limits": source, "peak": peak, "bandwidth": bandwidth}
    print_table(rows, settings)
    if arguments.json:
        arguments.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
