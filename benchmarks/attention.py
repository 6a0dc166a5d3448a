"""Benchmark of attention, forward and with backward: all available backends and masks, compared with PyTorch.

    python benchmarks/attention.py
    python benchmarks/attention.py --masks chunk_causal --chunks 6 --chunk-tokens 48 256 --json attention.json
    python benchmarks/attention.py --dtype bfloat16 --heads 16 --head-dim 128 --chunk-tokens 6240 --prefix 1985

Runs unchanged on CPU, GPU and TPU. All versions of a row alternate in one run. "dense" is XLA with a dense mask over
all queries and keys. "torch" is PyTorch's scaled_dot_product_attention, compiled on a GPU, if torch is installed.
FLOP/s count the pairs that the mask allows, without recomputation: 4 per pair and channel forward, 12 with backward.
The peak is the fastest of several large matrix products in the same run. --sequence splits the tokens over devices.
"""

import argparse
import functools
import importlib.util
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table

from jworld.models.layers.attention import Causal, ChunkCausal, Mask, Prefix, SlidingWindow, attention, backends
from jworld.parallel import mesh
from jworld.utils import arguments as command_line

Arrays = tuple[jax.Array, ...]
Run = Callable[[], Any]


def make_mask(name: str, tokens: int, arguments: argparse.Namespace) -> tuple[Mask | None, int]:
    """Make a mask by name; -> (mask, number of keys before those of the queries' own tokens)."""
    match name:
        case "chunk_causal":
            return ChunkCausal(tokens // arguments.chunks, arguments.prefix), arguments.prefix
        case "causal":
            return Causal(), 0
        case "prefix":
            return Prefix(min(arguments.prefix or 1, tokens)), 0
        case "window":
            return SlidingWindow(max(tokens // 8, 1)), 0
    return None, arguments.prefix


def visible(mask: Mask | None, queries: int, keys: int) -> np.ndarray | None:
    """Return the dense mask, [queries, keys] bool; None for full attention."""
    if mask is None:
        return None
    stops, position = mask.stops(queries)[:, None], np.arange(keys)
    return (position < stops) & (position >= stops - (mask.width or keys + queries))


def programs(function: Callable[..., jax.Array], qkv: Arrays) -> tuple[Any, Any]:
    """Compile the forward pass, and the gradients of the sum of squares."""

    def total(*qkv: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(function(*qkv).astype(jnp.float32)))

    gradients = jax.grad(total, argnums=(0, 1, 2))
    return jax.jit(function).lower(*qkv).compile(), jax.jit(gradients).lower(*qkv).compile()


def torch_runs(qkv: Arrays, dense_mask: np.ndarray | None, mask: Mask | None) -> tuple[Run, Run]:
    """Build the same two calls in PyTorch."""
    import torch

    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    dtype = getattr(torch, str(qkv[0].dtype))
    inputs = [torch.from_numpy(np.array(x.astype(jnp.float32))).to(device, dtype).transpose(1, 2) for x in qkv]
    inputs = [x.contiguous().requires_grad_() for x in inputs]
    options: dict[str, Any] = {}
    if isinstance(mask, Causal):
        options["is_causal"] = True
    elif dense_mask is not None:
        options["attn_mask"] = torch.from_numpy(dense_mask).to(device)
    call = functools.partial(torch.nn.functional.scaled_dot_product_attention, **options)
    call = torch.compile(call) if device == "cuda" else call

    def wait(result: Any) -> Any:
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    def forward() -> Any:
        with torch.no_grad():
            return wait(call(*inputs))

    return forward, lambda: wait(torch.autograd.grad(call(*inputs).float().square().sum(), inputs))


def seconds(run: Run) -> float:
    began = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - began


def matmul_peak(dtype: str) -> float:
    """Measure the FLOP/s of a large matrix product, the fastest of 5."""
    size = 1024 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda x: x @ x)
    seconds(lambda: product(x))
    return 2 * size**3 / min(seconds(lambda: product(x)) for _ in range(5))


def measure(name: str, tokens: int, arguments: argparse.Namespace, peak: float) -> list[dict[str, Any]]:
    """Measure one row per version, after checking that the versions agree."""
    mask, lead = make_mask(name, tokens, arguments)
    shapes = [
        (arguments.batch, length, arguments.heads, arguments.head_dim) for length in (tokens, *[lead + tokens] * 2)
    ]
    keys = jax.random.split(jax.random.key(0), 3)
    qkv = tuple(jax.random.normal(key, shape, arguments.dtype) for key, shape in zip(keys, shapes, strict=True))
    dense_mask = visible(mask, tokens, lead + tokens)
    names = [name for name, backend in backends.BACKENDS.items() if jax.default_backend() in backend.platforms]
    runs: dict[str, tuple[Run, Run]] = {}
    memory, expected = {}, None
    dense = jax.nn.dot_product_attention
    functions = {name: functools.partial(attention, mask=mask, implementation=name) for name in names}
    if dense_mask is not None:
        functions["dense"] = lambda q, k, v: dense(q, k, v, mask=jnp.asarray(dense_mask)[None, None])
    for version, function in functions.items():
        forward, both = programs(function, qkv)
        memory[version] = both.memory_analysis().temp_size_in_bytes
        runs[version] = (functools.partial(forward, *qkv), functools.partial(both, *qkv))
        gradients = [np.asarray(x, np.float32) for x in both(*qkv)]
        expected = expected or gradients
        for a, b in zip(gradients, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=(1e-4 if arguments.dtype == "float32" else 0.03) * np.abs(b).max())
    if arguments.torch and importlib.util.find_spec("torch"):
        runs["torch"] = torch_runs(qkv, dense_mask, mask)
        for run in runs["torch"]:
            run()
    rounds = [
        {version: [seconds(run) for run in pair] for version, pair in runs.items()} for _ in range(arguments.repeats)
    ]
    allowed = tokens * (lead + tokens) if dense_mask is None else int(dense_mask.sum())
    pairs = arguments.batch * arguments.heads * allowed
    rows = []
    for version in runs:
        forward, both = (statistics.median(times[version][i] for times in rounds) for i in (0, 1))
        rows.append(
            {
                "mask": name,
                "tokens": tokens,
                "version": version,
                "forward_seconds": forward,
                "seconds": both,
                "forward_flops": 4 * pairs * arguments.head_dim / forward,
                "flops": 12 * pairs * arguments.head_dim / both,
                "share_of_peak": 12 * pairs * arguments.head_dim / both / peak,
                "time_ratio": statistics.median(times[version][1] / times["xla"][1] for times in rounds),
                "temporary_bytes": memory.get(version),
            }
        )
    return rows


def scaling(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure forward + backward at the longest length, with its tokens split over increasing numbers of devices."""
    tokens = max(arguments.chunk_tokens) * arguments.chunks
    rows: list[dict[str, Any]] = []
    for count in arguments.sequence:
        mask, lead = make_mask("chunk_causal", tokens, arguments)
        shape = (arguments.batch, tokens, arguments.heads, arguments.head_dim)
        key_shape = (shape[0], lead + tokens, *shape[2:])
        devices = mesh.make_mesh(sequence=count, fsdp=1, devices=jax.devices()[:count])
        with jax.set_mesh(devices):
            qkv = tuple(jnp.ones(s, arguments.dtype) for s in (shape, key_shape, key_shape))
            _, both = programs(functools.partial(attention, mask=mask), qkv)
            both(*qkv)
            taken = statistics.median(seconds(functools.partial(both, *qkv)) for _ in range(arguments.repeats))
        rows.append({"devices": count, "seconds": taken, "temporary_bytes": both.memory_analysis().temp_size_in_bytes})
    return rows


def print_tables(
    rows: list[dict[str, Any]], split: list[dict[str, Any]], peak: float, arguments: argparse.Namespace
) -> None:
    console = rich.console.Console()
    title = (
        f"{jax.devices()[0].device_kind}: {arguments.batch} x {arguments.heads} heads of {arguments.head_dim}, "
        f"{arguments.dtype}; matrix product {peak / 1e12:,.3f} TFLOP/s"
    )
    columns = (
        "mask",
        "tokens",
        "version",
        "forward",
        "TFLOP/s",
        "with backward",
        "TFLOP/s",
        "of peak",
        "time/xla",
        "memory",
    )
    table = rich.table.Table(*columns, title=title)
    for row in rows:
        table.add_row(
            row["mask"],
            f"{row['tokens']:,}",
            row["version"],
            f"{row['forward_seconds'] * 1e3:,.1f} ms",
            f"{row['forward_flops'] / 1e12:,.3f}",
            f"{row['seconds'] * 1e3:,.1f} ms",
            f"{row['flops'] / 1e12:,.3f}",
            f"{row['share_of_peak']:.0%}",
            f"{row['time_ratio']:.2f}",
            "" if row["temporary_bytes"] is None else f"{row['temporary_bytes'] / 2**20:,.1f} MiB",
        )
    console.print(table)
    if len(split) > 1:
        table = rich.table.Table("devices", "with backward", "memory per device", title="tokens split over devices")
        for row in split:
            table.add_row(
                str(row["devices"]), f"{row['seconds'] * 1e3:,.1f} ms", f"{row['temporary_bytes'] / 2**20:,.1f} MiB"
            )
        console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=command_line.Formatter)
    masks = ("full", "chunk_causal", "causal", "prefix", "window")
    add, default = parser.add_argument, "(default: %(default)s)"
    add("--masks", choices=masks, nargs="+", default=masks, help="masks to measure (default: all)")
    add("--chunks", type=int, default=6, help=f"chunks of the chunk-causal mask {default}")
    add(
        "--chunk-tokens",
        type=int,
        nargs="+",
        default=[48, 256],
        help="tokens of a chunk, one row each (default: 48 256)",
    )
    add("--prefix", type=int, default=44, help=f"text keys that every query attends to {default}")
    add("--batch", type=int, default=1, help=f"samples {default}")
    add("--heads", type=int, default=16, help=f"heads of both branches together {default}")
    add("--head-dim", type=int, default=64, help=f"channels of a head {default}")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help=f"dtype of the arrays {default}")
    add("--repeats", type=int, default=5, help=f"calls to time; the median counts {default}")
    add("--sequence", type=int, nargs="+", default=[1], help="numbers of devices for one sample (default: 1)")
    add("--no-torch", dest="torch", action="store_false", help="do not compare with PyTorch")
    add("--json", type=pathlib.Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    peak = matmul_peak(arguments.dtype)
    sizes = [(name, tokens * arguments.chunks) for name in arguments.masks for tokens in arguments.chunk_tokens]
    rows = [row for name, tokens in sizes for row in measure(name, tokens, arguments, peak)]
    split = scaling(arguments) if len(arguments.sequence) > 1 else []
    print_tables(rows, split, peak, arguments)
    if arguments.json:
        settings = {name: value for name, value in vars(arguments).items() if name != "json"}
        settings |= {"device": jax.devices()[0].device_kind, "matmul_flops": peak}
        text = json.dumps({"settings": settings, "rows": rows, "scaling": split}, indent=2)
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
