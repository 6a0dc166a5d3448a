"""Attention, forward and forward + backward: every backend that runs here, every mask, and PyTorch's beside them.

    python benchmarks/attention.py
    python benchmarks/attention.py --masks chunk_causal --chunks 6 --chunk-tokens 48 256 --json attention.json
    python benchmarks/attention.py --dtype bfloat16 --heads 16 --head-dim 128 --chunk-tokens 6240 --prefix 1985

Runs unchanged on a CPU, a GPU and a TPU. All versions of a row take turns in one run. "dense" is XLA under a whole
matrix of queries and keys; "torch" is PyTorch's scaled_dot_product_attention (compiled on a GPU) where it is installed.
FLOP/s count the pairs that the mask shows and no recomputation: 4 per pair and channel forward, 12 with the backward
pass. They are compared with the fastest product of large matrices measured here. --sequence splits the tokens.
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

Arrays = tuple[jax.Array, ...]
Run = Callable[[], Any]


def make_mask(name: str, tokens: int, arguments: argparse.Namespace) -> tuple[Mask | None, int]:
    """The mask of a name, and how many keys come before those of the queries' own tokens."""
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
    """[queries, keys] bool."""
    if mask is None:
        return None
    stops, place = mask.stops(queries)[:, None], np.arange(keys)
    return (place < stops) & (place >= stops - (mask.width or keys + queries))


def programs(function: Callable[..., jax.Array], qkv: Arrays) -> tuple[Any, Any]:
    """Forward, and the gradients of the sum of squares."""

    def total(*qkv: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(function(*qkv).astype(jnp.float32)))

    gradients = jax.grad(total, argnums=(0, 1, 2))
    return jax.jit(function).lower(*qkv).compile(), jax.jit(gradients).lower(*qkv).compile()


def torch_runs(qkv: Arrays, seen: np.ndarray | None, mask: Mask | None) -> tuple[Run, Run]:
    """The same in PyTorch."""
    import torch

    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    dtype = getattr(torch, str(qkv[0].dtype))
    inputs = [torch.from_numpy(np.array(x.astype(jnp.float32))).to(device, dtype).transpose(1, 2) for x in qkv]
    inputs = [x.contiguous().requires_grad_() for x in inputs]
    options: dict[str, Any] = {}
    if isinstance(mask, Causal):
        options["is_causal"] = True
    elif seen is not None:
        options["attn_mask"] = torch.from_numpy(seen).to(device)
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
    """FLOP/s of the fastest of a few products of large matrices."""
    size = 1024 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda x: x @ x)
    seconds(lambda: product(x))
    return 2 * size**3 / min(seconds(lambda: product(x)) for _ in range(5))


def measure(name: str, tokens: int, arguments: argparse.Namespace, peak: float) -> list[dict[str, Any]]:
    """One row per version, after checking that they agree."""
    mask, lead = make_mask(name, tokens, arguments)
    shapes = [
        (arguments.batch, length, arguments.heads, arguments.head_dim) for length in (tokens, *[lead + tokens] * 2)
    ]
    keys = jax.random.split(jax.random.key(0), 3)
    qkv = tuple(jax.random.normal(key, shape, arguments.dtype) for key, shape in zip(keys, shapes, strict=True))
    seen = visible(mask, tokens, lead + tokens)
    names = [name for name, backend in backends.BACKENDS.items() if jax.default_backend() in backend.platforms]
    runs: dict[str, tuple[Run, Run]] = {}
    memory, expected = {}, None
    dense = jax.nn.dot_product_attention
    functions = {name: functools.partial(attention, mask=mask, implementation=name) for name in names}
    if seen is not None:
        functions["dense"] = lambda q, k, v: dense(q, k, v, mask=jnp.asarray(seen)[None, None])
    for version, function in functions.items():
        forward, both = programs(function, qkv)
        memory[version] = both.memory_analysis().temp_size_in_bytes
        runs[version] = (functools.partial(forward, *qkv), functools.partial(both, *qkv))
        gradients = [np.asarray(x, np.float32) for x in both(*qkv)]
        expected = expected or gradients
        for a, b in zip(gradients, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=(1e-4 if arguments.dtype == "float32" else 0.03) * np.abs(b).max())
    if arguments.torch and importlib.util.find_spec("torch"):
        runs["torch"] = torch_runs(qkv, seen, mask)
        for run in runs["torch"]:
            run()
    turns = [
        {version: [seconds(run) for run in pair] for version, pair in runs.items()} for _ in range(arguments.repeats)
    ]
    pairs = arguments.batch * arguments.heads * (tokens * (lead + tokens) if seen is None else int(seen.sum()))
    rows = []
    for version in runs:
        forward, both = (statistics.median(turn[version][i] for turn in turns) for i in (0, 1))
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
                "time_ratio": statistics.median(turn[version][1] / turn["xla"][1] for turn in turns),
                "temporary_bytes": memory.get(version),
            }
        )
    return rows


def scaling(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Forward + backward at the longest length, its tokens over more and more devices."""
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
        f"{arguments.dtype}; product of matrices {peak / 1e12:,.3f} TFLOP/s"
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
        table = rich.table.Table("devices", "with backward", "memory of each", title="tokens split over devices")
        for row in split:
            table.add_row(
                str(row["devices"]), f"{row['seconds'] * 1e3:,.1f} ms", f"{row['temporary_bytes'] / 2**20:,.1f} MiB"
            )
        console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    masks = ("full", "chunk_causal", "causal", "prefix", "window")
    parser.add_argument("--masks", choices=masks, nargs="+", default=masks, help="all by default")
    parser.add_argument("--chunks", type=int, default=6, help="chunks of the chunk-causal mask (6)")
    parser.add_argument(
        "--chunk-tokens", type=int, nargs="+", default=[48, 256], help="tokens = chunks x this (48 256)"
    )
    parser.add_argument("--prefix", type=int, default=44, help="text keys that every query sees (44)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=16, help="of both branches together (16)")
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sequence", type=int, nargs="+", default=[1], help="numbers of devices for one sample (1)")
    parser.add_argument("--no-torch", dest="torch", action="store_false", help="leave PyTorch out")
    parser.add_argument("--json", type=pathlib.Path, help="also write the numbers to this file")
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
