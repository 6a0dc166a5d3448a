"""Random clips in the formats that benchmarks/data_pipeline.py compares, and what reads batches of them."""

import argparse
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import ml_dtypes
import numpy as np
import rich.progress
from absl import flags

from jworld.cameras import poses
from jworld.data import pipeline, records, text, worldplay

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SEED = 0
#: What a file per clip holds: the arrays of its record and its text.
ARRAYS = ("latent", "image_cond", "w2c", "intrinsics", "action", "vision_states", "text_states", "glyph_states")
SHORTEST_PROMPT = 64

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Setup:
    """Where the files are and what a batch of them is."""

    directory: pathlib.Path
    clip: worldplay.ClipConfig
    batch: int
    records: int


def bits(generator: np.random.Generator, *shape: int) -> np.ndarray:
    """bfloat16 numbers of all sorts; drawing normal ones takes long."""
    return generator.integers(0x3C00, 0x4100, shape, dtype=np.uint16).view(BFLOAT16)


def write_files(arguments: argparse.Namespace, setup: Setup, readers: Sequence[str]) -> int:
    """Random clips in every format; -> bytes of one clip's arrays with its text, on average."""
    generator = np.random.default_rng(SEED)
    frames, height, width, channels = arguments.latent
    rows = 1 + -(-arguments.records // arguments.clips_per_prompt)
    least = min(SHORTEST_PROMPT, arguments.prompt_tokens)
    lengths = generator.integers(least, arguments.prompt_tokens + 1, rows)
    size = 0
    writers: list[Callable[[int, Batch], None]] = [
        ITEM_WRITERS[name](setup) for name in readers if name in ITEM_WRITERS
    ]
    with records.RecordWriter(setup.directory, "text") as text_writer:
        prompts = [
            text.prompt_record(bits(generator, length, arguments.text_dim), np.zeros((0, arguments.glyph_dim)))
            for length in lengths
        ]
        for prompt in prompts:
            text_writer.write(prompt)
    with records.RecordWriter(setup.directory, "train") as writer:
        for i in rich.progress.track(range(arguments.records), "writing"):
            latent = bits(generator, frames, height, width, channels)
            record = {
                "latent": latent,
                "image_cond": latent[:1],
                "w2c": np.tile(np.eye(4, dtype=np.float32), (frames, 1, 1)),
                "intrinsics": np.tile(np.eye(3, dtype=np.float32), (frames, 1, 1)),
                "action": generator.integers(0, 81, frames).astype(np.int32),
                "vision_states": bits(generator, *arguments.vision),
            }
            row = 1 + i // arguments.clips_per_prompt
            writer.write({**record, "prompt": np.array(row, np.int32)})
            item = {**record, **prompts[row]}
            size += sum(array.nbytes for array in item.values())
            for write in writers:
                write(i, item)
    records.write_manifest(setup.directory, manifest(arguments, text_writer.shards, writer.shards))
    os.sync()
    return size // arguments.records


def manifest(
    arguments: argparse.Namespace, text_shards: list[dict[str, Any]], train_shards: list[dict[str, Any]]
) -> dict[str, Any]:
    frames, height, width, channels = arguments.latent
    tokens, dim = arguments.vision
    return {
        "arrays": records.make_arrays(
            (height, width, channels), cameras=True, action=True, vision=(tokens, dim), prompt=True
        ),
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
    """Rows of bytes, shape and type per array, each a row group of its own: the least that a random read can touch."""
    import pyarrow
    import pyarrow.parquet

    kinds = {"bytes": pyarrow.large_binary(), "shape": pyarrow.list_(pyarrow.int64()), "dtype": pyarrow.string()}
    schema = pyarrow.schema([(f"{name}_{part}", kind) for name in ARRAYS for part, kind in kinds.items()])
    writer = pyarrow.parquet.ParquetWriter(
        setup.directory / "train.parquet", schema, compression="none", use_dictionary=False, write_statistics=False
    )

    def write(i: int, item: Batch) -> None:
        row: dict[str, list[Any]] = {}
        for name, array in item.items():
            row |= {f"{name}_bytes": [array.tobytes()], f"{name}_shape": [list(array.shape)]}
            row[f"{name}_dtype"] = [array.dtype.name]
        writer.write_table(pyarrow.table(row, schema=schema), row_group_size=1)
        if i + 1 == setup.records:
            writer.close()

    return write


ITEM_WRITERS = {"pt": pt_writer, "parquet": parquet_writer}


def open_records(setup: Setup) -> tuple[records.RecordSource, worldplay.SampleWindow]:
    """The parts that training puts together; clips are as long as the window, so that every example is all of one."""
    source = records.RecordSource(setup.directory, "train", min_frames=setup.clip.window_frames)
    store = text.TextStore(setup.directory, source.manifest)
    window = worldplay.SampleWindow(setup.clip, points=np.zeros((1, 3)), text_store=store, global_batch=setup.batch)
    return source, window


def read_threads(setup: Setup, workers: int) -> Iterator[Batch]:
    """As `jworld.train` reads."""
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
    """The pipeline's examples by record, opened in whichever process asks."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._parts: tuple[records.RecordSource, worldplay.SampleWindow] | None = None

    def __len__(self) -> int:
        return self._setup.records

    def __getitem__(self, index: int) -> Batch:
        self._parts = self._parts or open_records(self._setup)
        source, window = self._parts
        return window.random_map({"record": source[index], "position": 0}, np.random.default_rng(0))


def read_processes(setup: Setup, workers: int) -> Iterator[Batch]:
    """The same examples from Grain's worker processes."""
    dataset = grain.MapDataset.source(Examples(setup)).seed(SEED).shuffle()
    batches = dataset.batch(setup.batch, drop_remainder=True, batch_fn=pipeline.stack)
    # Grain's worker processes ask for a flag of its own, which only absl's way to start a program sets.
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

    def load(i: int) -> dict[str, Any]:
        if os.getpid() not in opened:
            opened[os.getpid()] = pyarrow.parquet.ParquetFile(setup.directory / "train.parquet")
        row = opened[os.getpid()].read_row_group(i)
        item = {}
        for name in ARRAYS:
            shape, dtype = row[f"{name}_shape"][0].as_py(), row[f"{name}_dtype"][0].as_py()
            kind = torch.bfloat16 if dtype == "bfloat16" else getattr(torch, dtype)
            data = bytearray(row[f"{name}_bytes"][0].as_buffer())
            item[name] = torch.frombuffer(data, dtype=kind).reshape(shape) if data else torch.zeros(shape, dtype=kind)
        return item

    return torch_batches(setup, workers, load)


def torch_batches(setup: Setup, workers: int, load: Callable[[int], dict[str, Any]]) -> Iterator[Batch]:
    """The same examples made of items of tensors, by PyTorch's DataLoader in the pipeline's order."""
    import torch
    import torch.utils.data

    limits = {"text": setup.clip.text_tokens, "glyph": setup.clip.glyph_tokens}

    class Items(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return setup.records

        def __getitem__(self, i: int) -> dict[str, Any]:
            item = load(i)
            item["w2c"] = torch.from_numpy(poses.relative_to_first(item["w2c"].numpy()).astype(np.float32))
            for kind, limit in limits.items():
                states = item[f"{kind}_states"]
                padded = torch.zeros((limit, states.shape[1]), dtype=states.dtype)
                padded[: len(states)] = states
                item[f"{kind}_states"], item[f"{kind}_mask"] = padded, torch.arange(limit) < len(states)
            return {**item, "is_memory": torch.tensor(False), "index": torch.tensor(i, dtype=torch.int32)}

    # One thread for copies, as in the workers: several only get into each other's way.
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
