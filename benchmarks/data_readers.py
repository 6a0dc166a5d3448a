"""Random clips in the formats that benchmarks/data_pipeline.py compares, and the readers of their batches.

Layout "latents": every format stores only the latents of a clip. Layout "published": a .pt file and a row of parquet
store all arrays of a clip, with its text padded to the model's length. WorldPlay's published files do the same.
jworld's records refer to the text store. Arrays are stored as in the batch: bfloat16, channels last, with cameras. Only
reading is compared, without the conversion that the published files would need.
"""

import argparse
import dataclasses
import os
import pathlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import ml_dtypes
import numpy as np
import rich.progress
from absl import flags

from jworld.cameras import poses
from jworld.data import pipeline, records
from jworld.data.records import text_store
from jworld.systems.worldplay import data as worldplay

PARQUET = "train.parquet"
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SEED = 0
SHORTEST_PROMPT = 64
LAYOUTS = ("latents", "published")

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Setup:
    """Folder of a layout's files, and the shape of its batches."""

    directory: pathlib.Path
    layout: str
    clip: worldplay.ClipConfig
    batch: int
    records: int


def bits(generator: np.random.Generator, *shape: int) -> np.ndarray:
    """Draw random bits as bfloat16 numbers, which is much faster than normal ones."""
    return generator.integers(0x3C00, 0x4100, shape, dtype=np.uint16).view(BFLOAT16)


def write_files(arguments: argparse.Namespace, setup: Setup, readers: Sequence[str]) -> int:
    """Write random clips in every format; -> bytes of one clip's arrays in a batch."""
    generator = np.random.default_rng(SEED)
    item_writers = [ITEM_WRITERS[name](setup) for name in readers if name in ITEM_WRITERS]
    published = setup.layout == "published"
    prompts = make_prompts(arguments, generator) if published else []
    with records.RecordWriter(setup.directory, "text") as text_writer:
        for prompt in prompts:
            text_writer.write(prompt)
    with records.RecordWriter(setup.directory, "train") as writer:
        for i in rich.progress.track(range(arguments.records), f"writing {setup.layout}"):
            item = record = make_record(arguments, setup, generator)
            if published:
                row = 1 + i // arguments.clips_per_prompt
                item = record | padded_text(setup.clip, prompts[row])
                record = record | {"prompt": np.array(row, np.int32)}
            writer.write(record)
            for write in item_writers:
                write(i, item)
    records.write_manifest(setup.directory, manifest(arguments, setup, text_writer.shards, writer.shards))
    os.sync()
    return sum(array.nbytes for array in item.values())


def make_record(arguments: argparse.Namespace, setup: Setup, generator: np.random.Generator) -> Batch:
    latent = bits(generator, *arguments.latent)
    if setup.layout == "latents":
        return {"latent": latent}
    frames = len(latent)
    return {
        "latent": latent,
        "image_cond": latent[:1],
        "w2c": np.tile(np.eye(4, dtype=np.float32), (frames, 1, 1)),
        "intrinsics": np.tile(np.eye(3, dtype=np.float32), (frames, 1, 1)),
        "action": generator.integers(0, 81, frames).astype(np.int32),
        "vision_states": bits(generator, *arguments.vision),
    }


def make_prompts(arguments: argparse.Namespace, generator: np.random.Generator) -> list[records.Record]:
    """Draw a negative prompt and the prompts of the clips."""
    rows = 1 + -(-arguments.records // arguments.clips_per_prompt)
    least = min(SHORTEST_PROMPT, arguments.prompt_tokens)
    lengths = generator.integers(least, arguments.prompt_tokens + 1, rows)
    no_glyphs = np.zeros((0, arguments.glyph_dim))
    return [text_store.prompt_record(bits(generator, length, arguments.text_dim), no_glyphs) for length in lengths]


def padded_text(clip: worldplay.ClipConfig, prompt: Batch) -> Batch:
    """Pad a prompt and add masks, as in the published files."""
    item = {}
    for kind, limit in (("text", clip.text_tokens), ("glyph", clip.glyph_tokens)):
        states = prompt[f"{kind}_states"]
        item[f"{kind}_states"] = np.pad(states, ((0, limit - len(states)), (0, 0)))
        item[f"{kind}_mask"] = np.arange(limit) < len(states)
    return item


def manifest(
    arguments: argparse.Namespace,
    setup: Setup,
    text_shards: list[dict[str, Any]],
    train_shards: list[dict[str, Any]],
) -> dict[str, Any]:
    frames, height, width, channels = arguments.latent
    tokens, dim = arguments.vision
    arrays = records.make_arrays(
        (height, width, channels), cameras=True, action=True, vision=(tokens, dim), prompt=True
    )
    return {
        "arrays": arrays if setup.layout == "published" else {"latent": arrays["latent"]},
        "autoencoder": {"family": "random", "normalised": True},
        "latent_shape": [height, width, channels],
        "temporal_ratio": 4,
        "fps": 24,
        "camera_convention": records.CAMERA_CONVENTION,
        "image_size": [16 * width, 16 * height],
        "text_encoder": {"family": "random", "dim": arguments.text_dim},
        "glyph_encoder": {"family": "random", "dim": arguments.glyph_dim},
        "vision_encoder": {"family": "random", "tokens": tokens, "dim": dim},
        "prompts": [str(i) for i in range(sum(shard["records"] for shard in text_shards))],
        "text": text_shards,
        "splits": {"train": train_shards},
        "clips": {"train": [frames] * arguments.records},
        "episodes": {"train": [str(i) for i in range(arguments.records)]},
    }


def pt_path(setup: Setup, i: int) -> pathlib.Path:
    return setup.directory / f"{i:06d}.pt"


def pt_writer(setup: Setup) -> Callable[[int, Batch], None]:
    import torch

    def tensor(array: np.ndarray) -> torch.Tensor:
        if array.dtype == BFLOAT16:
            return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
        return torch.from_numpy(array.copy())

    def write(i: int, item: Batch) -> None:
        torch.save({name: tensor(array) for name, array in item.items()}, pt_path(setup, i))

    return write


def parquet_writer(setup: Setup) -> Callable[[int, Batch], None]:
    """Return a writer of rows with bytes, shape and dtype per array.

    Each row is a row group, the smallest unit of a random read.
    """
    import pyarrow
    import pyarrow.parquet

    opened: list[pyarrow.parquet.ParquetWriter] = []

    def write(i: int, item: Batch) -> None:
        row: dict[str, Any] = {}
        for name, array in item.items():
            row[f"{name}_bytes"] = pyarrow.array([array.tobytes()], pyarrow.large_binary())
            row |= {f"{name}_shape": [list(array.shape)], f"{name}_dtype": [array.dtype.name]}
        table = pyarrow.table(row)
        if not opened:
            path, options = setup.directory / PARQUET, {"use_dictionary": False, "write_statistics": False}
            opened.append(pyarrow.parquet.ParquetWriter(path, table.schema, compression="none", **options))
        opened[0].write_table(table, row_group_size=1)
        if i + 1 == setup.records:
            opened[0].close()

    return write


ITEM_WRITERS = {"pt": pt_writer, "parquet": parquet_writer}


class Latents(grain.transforms.RandomMap):
    """Selection of a record's latents."""

    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> Batch:
        return {name: element["record"][name] for name in ("latent", "index")}


def open_records(setup: Setup) -> tuple[records.RecordSource, grain.transforms.RandomMap]:
    """Open the source and the transform that training uses; clips are as long as the window."""
    source = records.RecordSource(setup.directory, "train", min_frames=setup.clip.window_frames)
    if setup.layout == "latents":
        return source, Latents()
    store = text_store.TextStore(setup.directory, source.manifest)
    window = worldplay.SampleWindow(setup.clip, points=np.zeros((1, 3)), text_store=store, global_batch=setup.batch)
    return source, window


def read_threads(setup: Setup, workers: int) -> Iterator[Batch]:
    """Read as `jworld.train` does."""
    source, window = open_records(setup)
    example = window.random_map({"record": source[0], "position": 0}, np.random.default_rng(0))
    spec = {
        name: records.ArraySpec((setup.batch, *np.shape(entry)), entry.dtype, (None,) * (1 + np.ndim(entry)))
        for name, entry in example.items()
        if name != "index"
    }
    return pipeline.make_dataset(
        source, window, spec, global_batch=setup.batch, seed=SEED, num_threads=workers, prefetch=4 if workers else 0
    )


class Examples:
    """Examples of the pipeline by record, opened lazily in each worker process."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._parts: tuple[records.RecordSource, grain.transforms.RandomMap] | None = None

    def __len__(self) -> int:
        return self._setup.records

    def __getitem__(self, index: int) -> Batch:
        self._parts = self._parts or open_records(self._setup)
        source, window = self._parts
        return window.random_map({"record": source[index], "position": 0}, np.random.default_rng(0))


def read_processes(setup: Setup, workers: int) -> Iterator[Batch]:
    """Read the same examples with Grain's worker processes."""
    dataset = grain.MapDataset.source(Examples(setup)).seed(SEED).shuffle()
    batches = dataset.batch(setup.batch, drop_remainder=True, batch_fn=pipeline.stack)
    # Grain's worker processes read an absl flag, which is parsed only by `absl.app.run`.
    flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    return iter(batches.to_iter_dataset(grain.ReadOptions(1, 2)).mp_prefetch(options))


def read_pt(setup: Setup, workers: int) -> Iterator[Batch]:
    import torch

    return torch_batches(setup, workers, lambda i: torch.load(pt_path(setup, i), weights_only=True))


def read_parquet(setup: Setup, workers: int) -> Iterator[Batch]:
    import pyarrow.parquet
    import torch

    opened: dict[int, Any] = {}  # by process
    warnings.filterwarnings("ignore", "The given buffer is not writable")

    def load(i: int) -> dict[str, Any]:
        if os.getpid() not in opened:
            opened[os.getpid()] = pyarrow.parquet.ParquetFile(setup.directory / PARQUET, memory_map=True)
        row = opened[os.getpid()].read_row_group(i)
        item = {}
        for column in row.column_names[::3]:
            name = column.removesuffix("_bytes")
            shape, dtype = row[f"{name}_shape"][0].as_py(), row[f"{name}_dtype"][0].as_py()
            data = row[column][0].as_buffer()
            item[name] = torch.frombuffer(data, dtype=getattr(torch, dtype)).reshape(shape)
        return item

    return torch_batches(setup, workers, load)


def torch_batches(setup: Setup, workers: int, load: Callable[[int], dict[str, Any]]) -> Iterator[Batch]:
    """Make the same examples from items of tensors, with PyTorch's DataLoader in the pipeline's order."""
    import torch
    import torch.utils.data

    class Items(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return setup.records

        def __getitem__(self, i: int) -> dict[str, Any]:
            item = {**load(i), "index": torch.tensor(i, dtype=torch.int32)}
            if setup.layout == "published":
                item["w2c"] = torch.from_numpy(poses.relative_to_first(item["w2c"].numpy()).astype(np.float32))
                item["is_memory"] = torch.tensor(False)
            return item

    # One thread for copies, as in the workers: more threads compete for the same cores.
    torch.set_num_threads(1)
    order = list(grain.MapDataset.range(setup.records).seed(SEED).shuffle())
    context = "fork" if workers else None  # the items' function is local
    loader = torch.utils.data.DataLoader(
        Items(), setup.batch, sampler=order, drop_last=True, num_workers=workers, multiprocessing_context=context
    )

    def array(tensor: torch.Tensor) -> np.ndarray:
        return tensor.view(torch.int16).numpy().view(BFLOAT16) if tensor.dtype == torch.bfloat16 else tensor.numpy()

    return ({name: array(tensor) for name, tensor in batch.items()} for batch in loader)


READ: dict[str, Callable[[Setup, int], Iterator[Batch]]] = {
    "threads": read_threads,
    "processes": read_processes,
    "pt": read_pt,
    "parquet": read_parquet,
}
