"""Data pipeline from records to batches: shuffled, transformed, split over processes, prefetched, resumable.

Batch k is a pure function of the seed and k, independent of the number of processes. Positions count through an endless
sequence of shuffled epochs, and every random choice of a transform is seeded by its position. Process p of n holds the
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
    """Source of records by number, each with its "index"."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> records.Record: ...


class OrderedSource(Protocol):
    """Source that assigns records to an endless sequence of positions, shuffled or not, by itself."""

    def __len__(self) -> int: ...

    def at(self, position: int) -> Mapping[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Padded:
    """An entry [length, ...] of an example that ends in zeros; only its first `rows` [S, ...], S <= length, are stored.

    The zeros are added when the batch is stacked, which saves a copy of mostly empty text arrays.
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

#: Keys of a position that another data set changes: its identity, and its number of records.
CONTENT, RECORDS = "content", "records"


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
    content: str = "",
) -> "BatchIterator":
    """Return endless numpy batches of this process, with exactly the arrays of `spec` plus "index" [B] int32.

    Args:
      source: records; an `OrderedSource` ignores `shuffle`.
      transform: converts {"record": dict, "position": int} to one example, a row of a batch. Positions count the
        examples of the run over all processes: position // global_batch is the training step. The transform's generator
        is seeded by `seed` and the position.
      spec: arrays of the global batch.
      global_batch: examples per batch, over all processes.
      seed: seed of the order and of the transform.
      process_index, process_count: slice of the global batch that this process reads.
      shuffle: False takes the records in order, so every new iterator gives the same first batches (held-out loss).
      num_threads: threads that read ahead. Worker processes would copy every batch once more, without a gain for
        records that need no decoding.
      prefetch: batches to read ahead, at most.
      content: identity of the data set, see `records.content`; "" if it is unknown.
    """
    if global_batch < 1 or global_batch % process_count:
        raise UserError(
            f"global_batch is {global_batch}, expected a multiple of the {process_count} processes: change global_batch"
        )
    # Sliced last, so that positions and the seeds derived from them do not depend on the number of processes.
    elements = _elements(source, seed=seed, shuffle=shuffle)
    examples: grain.MapDataset[Mapping[str, Entry]] = elements.random_map(transform)
    batches = examples.batch(global_batch // process_count, drop_remainder=True, batch_fn=stack)
    batches = batches[process_index::process_count]
    iterator = batches.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch))
    identity: dict[str, Any] = {"seed": seed, "global_batch": global_batch, RECORDS: len(source), "shuffle": shuffle}
    if content:
        identity[CONTENT] = content
    return BatchIterator(iter(iterator), spec, process_count=process_count, identity=identity)


def _elements(source: Source | OrderedSource, *, seed: int, shuffle: bool) -> grain.MapDataset[dict[str, Any]]:
    """Return {"record", "position"} of every position."""
    if hasattr(source, "at"):
        at = source.at
        endless = grain.MapDataset.range(1).seed(seed).repeat(None)
        return endless.map_with_index(lambda position, _: {"record": at(position), "position": position})
    dataset = grain.MapDataset.source(source).seed(seed)
    if shuffle:
        dataset = dataset.shuffle()
    return dataset.repeat(None).map_with_index(lambda position, record: {"record": record, "position": position})


class BatchIterator(Iterator[Batch]):
    """Iterator of batches that checks each one against the spec; batch k belongs to step k."""

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
        """Return the position as JSON: the next batch, and the settings that determine the sequence of batches."""
        return {"next_batch": self._iterator.get_state()["next_index"], **self._identity}

    @property
    def records(self) -> int:
        """Number of records of the split."""
        return int(self._identity[RECORDS])

    def set_state(self, state: Mapping[str, Any], *, accept_data: bool = False) -> str:
        """Continue from a state of `get_state`.

        Args:
          state: the position.
          accept_data: continue at the same position of another data set.

        Returns:
          A note to the user, "" without one.

        Raises:
          UserError: the position belongs to another data set, or to another sequence of batches.
        """
        note = self._compare_data(state, accept=accept_data)
        for key, value in self._identity.items():
            if key != CONTENT and state.get(key) != value and not (key == RECORDS and accept_data):
                raise UserError(
                    f"data position of the checkpoint: {key} is {state.get(key)!r}, this run has {value!r}: resume "
                    "with the data and settings that the run started with, or use a new folder"
                )
        if type(state.get("next_batch")) is not int or state["next_batch"] < 0:
            raise UserError(
                f"data position of the checkpoint: next_batch is {state.get('next_batch')!r}, expected a step number: "
                "restore an earlier checkpoint"
            )
        self._iterator.set_state({"next_index": state["next_batch"]})
        return note

    def _compare_data(self, state: Mapping[str, Any], *, accept: bool) -> str:
        """Return a note on the data set of a position; a `UserError` if it is another one that is not accepted."""
        stored, own = state.get(CONTENT), self._identity.get(CONTENT)
        if own is None or stored == own:
            return ""
        if stored is None:
            return "the checkpoint does not record the identity of its data set: its successors will"
        if accept:
            return f"continuing with the data set {own}, after {stored}"
        raise UserError(
            f"data position of the checkpoint: the run trained on the data set {stored}, config.data.records is now "
            f"{own}: restore the former data set, or give --accept-data to continue with this one"
        )


def stack(examples: Sequence[Mapping[str, Entry]]) -> Batch:
    """Stack rows into arrays [B, ...]; the `UserError` names a key whose shapes differ."""
    batch = {}
    for name, first in examples[0].items():
        shape = np.shape(first)
        for example in examples:
            if name not in example or np.shape(example[name]) != shape:
                found = f"of shape {list(np.shape(example[name]))}" if name in example else "missing"
                raise UserError(
                    f"example of record {np.asarray(example['index'])}: '{name}' is {found}, expected {list(shape)} "
                    "as in the other examples: every clip must have the same shapes"
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
