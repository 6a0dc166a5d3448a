"""Chunk-causal attention as structured calls against the same attention under a dense mask.

    python benchmarks/attention.py
    python benchmarks/attention.py --chunks 6 --chunk-tokens 48 256 --repeats 5 --json attention.json

Forward and backward pass together, both versions by turns in one run. The dense version computes all pairs of queries
and keys and hides half of them; of n chunks the structured one computes (n + 1) / 2n.
"""

import argparse
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

from jworld.models.layers.attention import ChunkCausal, attention

Arrays = tuple[jax.Array, ...]


def dense_mask(mask: ChunkCausal, queries: int) -> jax.Array:
    """[1, 1, queries, prefix + queries] bool."""
    chunk = np.arange(queries) // mask.chunk
    seen = np.concatenate([np.ones((queries, mask.prefix), bool), chunk[:, None] >= chunk], axis=1)
    return jnp.asarray(seen)[None, None]


def compile_gradient(function: Callable[..., jax.Array], qkv: Arrays) -> Any:
    def total(*qkv: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(function(*qkv)))

    return jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(*qkv).compile()


def seconds(program: Any, qkv: Arrays) -> float:
    began = time.perf_counter()
    jax.block_until_ready(program(*qkv))
    return time.perf_counter() - began


def measure(chunk_tokens: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds and temporary bytes of both versions at one size, after checking that they agree."""
    queries = arguments.chunks * chunk_tokens
    mask = ChunkCausal(chunk_tokens, arguments.prefix)
    keys = jax.random.split(jax.random.key(0), 3)
    lengths = (queries, arguments.prefix + queries, arguments.prefix + queries)
    qkv = tuple(
        jax.random.normal(key, (arguments.batch, length, arguments.heads, arguments.head_dim), arguments.dtype)
        for key, length in zip(keys, lengths, strict=True)
    )
    whole = dense_mask(mask, queries)
    structured = compile_gradient(lambda q, k, v: attention(q, k, v, mask=mask), qkv)
    dense = compile_gradient(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, mask=whole), qkv)
    tolerance = 1e-4 if arguments.dtype == "float32" else 0.1
    for a, b in zip(structured(*qkv), dense(*qkv), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), atol=tolerance, rtol=tolerance)
    pairs = [(seconds(structured, qkv), seconds(dense, qkv)) for _ in range(arguments.repeats)]
    structured_bytes, dense_bytes = (p.memory_analysis().temp_size_in_bytes for p in (structured, dense))
    return {
        "tokens": queries,
        "structured_seconds": statistics.median(pair[0] for pair in pairs),
        "dense_seconds": statistics.median(pair[1] for pair in pairs),
        "time_ratio": statistics.median(pair[0] / pair[1] for pair in pairs),
        "structured_bytes": structured_bytes,
        "dense_bytes": dense_bytes,
        "memory_ratio": structured_bytes / dense_bytes,
    }


def print_table(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    title = (
        f"{jax.devices()[0].device_kind}: {arguments.chunks} chunks after {arguments.prefix} keys, "
        f"{arguments.batch} x {arguments.heads} heads of {arguments.head_dim}, {arguments.dtype}"
    )
    columns = ("tokens", "structured", "dense", "time ratio", "structured", "dense", "memory ratio")
    table = rich.table.Table(*columns, title=title)
    for row in rows:
        table.add_row(
            f"{row['tokens']:,}",
            *(f"{row[name] * 1e3:,.1f} ms" for name in ("structured_seconds", "dense_seconds")),
            f"{row['time_ratio']:.2f}",
            *(f"{row[name] / 2**20:,.1f} MiB" for name in ("structured_bytes", "dense_bytes")),
            f"{row['memory_ratio']:.2f}",
        )
    rich.console.Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=6)
    parser.add_argument("--chunk-tokens", type=int, nargs="+", default=[48, 256, 512], help="one row each")
    parser.add_argument("--prefix", type=int, default=44, help="text keys that every query sees")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=16, help="of both branches together")
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=pathlib.Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    rows = [measure(tokens, arguments) for tokens in arguments.chunk_tokens]
    print_table(rows, arguments)
    if arguments.json:
        settings = {name: value for name, value in vars(arguments).items() if name != "json"}
        settings["device"] = jax.devices()[0].device_kind
        arguments.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
