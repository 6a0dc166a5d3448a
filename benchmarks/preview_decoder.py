"""Benchmark of the tiny decoders of --preview-decoder next to the decoders of the full autoencoders.

    python benchmarks/preview_decoder.py
    python benchmarks/preview_decoder.py --families wan cogvideox --frames 17 --size 128x96 --json preview.json

Random weights of the published sizes, in float32. Both decode the same latents of a whole clip, alternately in one
process on the same CPU cores; the fastest of --repeats counts. Other load on the machine hardly changes CPU seconds.
"""

import argparse
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import autoencoder
import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
import torch_comparison
from flax import nnx

from jworld.models.autoencoders import files, taehv
from jworld.utils import arguments as command_line

SIDES = ("tiny", "full")
#: Family of the full autoencoder -> published file of its tiny decoder.
FILES = {"wan": "taew2_1", "cogvideox": "taecvx", "hunyuan15": "taehv1_5"}


def drawn(make: Callable[[], Any]) -> Any:
    """Return a network with random weights."""
    graphdef, abstract = nnx.split(nnx.eval_shape(make))
    return nnx.merge(graphdef, torch_comparison.random_weights(abstract))


def measure(family: str, video: tuple[int, int, int], *, narrow: int, repeats: int) -> dict[str, Any]:
    """Measure a family at [T, H, W], with all widths divided by `narrow`."""
    cls, config_type = files.NETWORKS[family]
    values = autoencoder.fields(family, narrow)[0]
    sizes = {name: values[name] for name in ("channels", "widths", "groups") if name in values}
    full = drawn(lambda: cls(config_type(**sizes, dtype=jnp.float32), rngs=nnx.Rngs(0)))
    variant = taehv.VARIANTS[FILES[family]]
    config = taehv.TinyConfig(latent_channels=variant.latent_channels, patch=variant.patch, dtype=jnp.float32)
    config = dataclasses.replace(config, widths=tuple(width // narrow for width in config.widths))
    tiny = drawn(lambda: taehv.TinyDecoder(config, rngs=nnx.Rngs(0)))
    shape = full.latent_shape(*video)
    latents = jnp.asarray(np.random.default_rng(0).standard_normal((1, *shape)), jnp.float32)
    row: dict[str, Any] = {"family": family, "file": FILES[family], "latents": shape}
    programs = {}
    for side, network in zip(SIDES, (tiny, full), strict=True):
        began = time.perf_counter()
        programs[side] = jax.jit(type(network).decode).lower(network, latents).compile()
        row[f"{side}_compile_seconds"] = time.perf_counter() - began
        weights = nnx.state(network if side == "tiny" else network.decoder, nnx.Param)
        row[f"{side}_parameters"] = sum(leaf.size for leaf in jax.tree.leaves(weights))
    taken: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side, network in zip(SIDES, (tiny, full), strict=True):
            began, worked = time.perf_counter(), time.process_time()
            frames = jax.block_until_ready(programs[side](network, latents))
            taken[side].append((time.perf_counter() - began, time.process_time() - worked))
            assert frames.shape == (1, *video, 3), frames.shape
    for side, times in taken.items():
        row[f"{side}_frames_per_second"] = video[0] / min(seconds for seconds, _ in times)
        row[f"{side}_cpu_seconds"] = min(seconds for _, seconds in times)
    return row


def print_table(rows: list[dict[str, Any]], video: tuple[int, int, int], console: rich.console.Console) -> None:
    frames, height, width = video
    title = f"decoding {frames} frames of {width}x{height}, float32, {jax.devices()[0].device_kind}"
    names = ("family", "tiny decoder", "parameters", "tiny", "full", "ratio", "CPU time ratio")
    table = rich.table.Table(*names, title=title)
    for row in rows:
        table.add_row(
            row["family"],
            row["file"],
            " / ".join(f"{row[f'{side}_parameters'] / 1e6:,.1f}M" for side in SIDES),
            *(f"{row[f'{side}_frames_per_second']:.2f} /s" for side in SIDES),
            f"{row['tiny_frames_per_second'] / row['full_frames_per_second']:.1f}",
            f"{row['full_cpu_seconds'] / row['tiny_cpu_seconds']:.1f}",
        )
    console.print(table)


def _size(text: str) -> tuple[int, int]:
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT")
    return int(parts[0]), int(parts[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=command_line.Formatter)
    add, default = parser.add_argument, "(default: %(default)s)"
    add("--families", nargs="+", choices=tuple(FILES), default=("wan",), help="autoencoders to measure (default: wan)")
    add("--frames", type=int, default=9, help=f"frames of the clip, 4k + 1 {default}")
    add("--size", type=_size, default=(64, 64), metavar="WIDTHxHEIGHT", help="pixels of a frame (default: 64x64)")
    add("--narrow", type=int, choices=(1, 2, 4, 8, 16), default=1, help=f"divide all widths by this number {default}")
    add("--repeats", type=int, default=3, help=f"calls to time; the fastest counts {default}")
    add("--json", type=pathlib.Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    console = rich.console.Console(highlight=False, soft_wrap=True)
    width, height = arguments.size
    video = (arguments.frames, height, width)
    rows = [measure(family, video, narrow=arguments.narrow, repeats=arguments.repeats) for family in arguments.families]
    print_table(rows, video, console)
    if arguments.json:
        settings = {name: value for name, value in vars(arguments).items() if name != "json"}
        arguments.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
