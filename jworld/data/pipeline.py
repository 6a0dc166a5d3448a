"""From records to batches: shuffled, transformed, split over processes, read ahead by threads, resumable.

Batch k is a pure function of the seed and k, whatever the number of processes: positions count through an endless
sequence of shuffled epochs, every random choice of a transform is seeded by its position, and process p of n holds the
p-th of n consecutive slices of the global batch's rows.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from jworld.data import records
from jworld.utils.errors import UserError

Batch = dict[str, np.ndarray]


class Source(Protocol):
    """Random access to records, each with its "index"."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> records.Record: ...


class OrderedSource(Protocol):
    """Records of an endless sequence of positions, which the source itself shuffles."""

    def __len__(self) -> int: ...

    def at(self, position: int) -> Mapping[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Padded:
    """An example's entry [length, ...] that ends in zeros, of which only `rows` [S, ...] are held, S <= length.

    The zeros are made with the batch: examples of text would be mostly zeros, made and then copied.
    """

    rows: np.ndarray
    length: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length, *self.rows.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        return self.rows.dtype

    @property
    def ndim(self) -> int:
        return self.rows.ndim


Entry = np.ndarray | np.generic | Padded


def make_dataset(
    source: Source | OrderedSource,
    transform: grain.transforms.RandomMap,
    spec: Mapping[str, records.ArraySpec],
    *,
    global_batch: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    shuffle: bool = True,
    num_threads: int = 2,
    prefetch: int = 4,
) -> "BatchIterator":
    """Endless batches of this process, numpy, with exactly the arrays of `spec` plus "index" [B] int32.

    `transform` makes one example (one row of a batch) of {"record": dict, "position": int}. Positions count the
    examples of the whole run over all processes: position // global_batch is the training step. The transform's
    generator is seeded by `seed` and the position. `spec` describes the global batch. A source that orders its records
    itself shuffles them, or not, by itself.

    `shuffle=False` takes the records in order (a held-out loss: the same first batches from every fresh iterator). At
    most `prefetch` batches are read ahead by `num_threads` threads; workers in processes of their own would copy every
    batch once more and gain nothing for records that need no decoding.
    """
    if global_batch < 1 or global_batch % process_count:
        raise UserError(
            f"global_batch is {global_batch}, expected a multiple of the {process_count} processes: change global_batch"
        )
    # The slice comes last, so that positions, and the seeds made of them, do not depend on the number of processes.
    dataset = _elements(source, seed=seed, shuffle=shuffle).random_map(transform)
    dataset = dataset.batch(global_batch // process_count, drop_remainder=True, batch_fn=stack)
    dataset = dataset[process_index::process_count]
    iterator = dataset.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch))
    identity = {"seed": seed, "global_batch": global_batch, "records": len(source), "shuffle": shuffle}
    return BatchIterator(iter(iterator), spec, process_count=process_count, identity=identity)


def _elements(source: Source | OrderedSource, *, seed: int, shuffle: bool) -> grain.MapDataset:
    """{"record", "position"} of every position."""
    at = getattr(source, "at", None)
    if at is not None:
        endless = grain.MapDataset.range(1).seed(seed).repeat(None)
        return endless.map_with_index(lambda position, _: {"record": at(position), "position": position})
    dataset = grain.MapDataset.source(source).seed(seed)
    if shuffle:
        dataset = dataset.shuffle()
    return dataset.repeat(None).map_with_index(lambda position, record: {"record": record, "position": position})


class BatchIterator(Iterator[Batch]):
    """Iterates over batches; every batch is checked against the spec. Batch k belongs to step k."""

    def __init__(
        self,
        iterator: grain.DatasetIterator[Batch],
        spec: Mapping[str, records.ArraySpec],
        *,
        process_count: int,
        identity: Mapping[str, Any],
    ) -> None:
        self._iterator = iterator
        self._identity = dict(identity)
        self._expected = {
            name: ((entry.shape[0] // process_count, *entry.shape[1:]), np.dtype(entry.dtype))
            for name, entry in spec.items()
        }
        self._expected["index"] = ((int(identity["global_batch"]) // process_count,), np.dtype(np.int32))
        self._lengths = {name: entry.lengths for name, entry in spec.items() if entry.lengths}

    def __next__(self) -> Batch:
        batch = next(self._iterator)
        _check_batch(batch, self._expected, self._lengths)
        return batch

    def get_state(self) -> dict[str, Any]:
        """JSON-ready position: the next batch, and what makes the sequence of batches."""
        return {"next_batch": self._iterator.get_state()["next_index"], **self._identity}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `get_state`'s answer; `UserError` where it belongs to another sequence of batches."""
        for key, value in self._identity.items():
            if state.get(key) != value:
                raise UserError(
                    f"data position of the checkpoint: {key} is {state.get(key)!r}, this run has {value!r}: resume "
                    "with the data and settings that the run began with, or start in a new folder"
                )
        if type(state.get("next_batch")) is not int or state["next_batch"] < 0:
            raise UserError(
                f"data position of the checkpoint: next_batch is {state.get('next_batch')!r}, expected a step number: "
                "restore an earlier checkpoint"
            )
        self._iterator.set_state({"next_index": state["next_batch"]})


def stack(examples: Sequence[Mapping[str, Entry]]) -> Batch:
    """Rows -> arrays [B, ...]; `UserError` names the key whose rows differ."""
    batch = {}
    for name, first in examples[0].items():
        shape = np.shape(first)
        for example in examples:
            if name not in example or np.shape(example[name]) != shape:
                found = f"of shape {list(np.shape(example[name]))}" if name in example else "missing"
                raise UserError(
                    f"example of record {np.asarray(example['index'])}: '{name}' is {found}, expected {list(shape)} "
                    "as in the other examples: every clip must give the same shapes"
                )
        if isinstance(first, Padded):
            batch[name] = _stack_padded([example[name] for example in examples])
        else:
            batch[name] = np.stack([np.asarray(example[name]) for example in examples])
    return batch


def _stack_padded(entries: Sequence[Any]) -> np.ndarray:
    whole = np.zeros((len(entries), *entries[0].shape), entries[0].dtype)
    for row, entry in zip(whole, entries, strict=True):
        row[: len(entry.rows)] = entry.rows
    return whole


def _check_batch(
    batch: Batch,
    expected: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    lengths: Mapping[str, tuple[int, ...]],
) -> None:
    if missing := sorted(expected.keys() - batch.keys()):
        raise UserError(f"batch lacks '{missing[0]}', which the model's batch_spec names: use the data of this system")
    if extra := sorted(batch.keys() - expected.keys()):
        raise UserError(f"batch holds '{extra[0]}', which the model's batch_spec does not name: use its own transform")
    for name, (shape, dtype) in expected.items():
        array = batch[name]
        if name in lengths and array.ndim > 1 and array.shape[1] in lengths[name]:
            shape = (shape[0], array.shape[1], *shape[2:])
        if array.shape != shape or array.dtype != dtype:
            raise UserError(
                f"batch entry '{name}' is {array.dtype} {list(array.shape)}, the model expects {dtype} {list(shape)}: "
                "run precompute again with the settings of the model, or pick the config that fits the data"
            )
