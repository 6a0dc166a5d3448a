"""Folders of weights that jworld wrote (imported, of a run, released), read one parameter at a time."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp

from conversion import sources, store
from jworld import config as run_config
from jworld import errors, runs
from jworld.training import checkpoints, checksums, weights


def is_folder(path: pathlib.Path) -> bool:
    """True for a folder that jworld wrote, which has weights and the config of a run."""
    holders = (runs.WEIGHTS, runs.IMPORTED, runs.CHECKPOINTS)
    return (path / run_config.FILE_NAME).is_file() and any((path / name).exists() for name in holders)


class Folder:
    """Weights and config; of a run the averaged weights, where it has them, of the step asked for or the newest.

    Attributes:
      config: of the run.
      record: what the import noted, None for weights of a run.
      step: of the run, else None.
      arrays: path of every parameter -> shape and dtype.
      files: those that hold the weights.
      checksums: path -> dtype, shape and checksum of every parameter read so far.

    Raises:
      UserError: something is missing or damaged.
    """

    def __init__(self, directory: pathlib.Path, step: int | None = None):
        if not is_folder(directory):
            raise errors.UserError(
                f"{directory} is no folder of jworld's weights: name one that `python -m conversion import` or a "
                "training run wrote"
            )
        self.directory = directory
        self.config: ml_collections.ConfigDict = run_config.load(directory)
        self.record: dict[str, Any] | None = None
        self.step: int | None = None
        self.checksums: dict[str, dict[str, Any]] = {}
        self._written: Mapping[str, Mapping[str, Any]] = {}
        self._readers: dict[str, store.Stored | sources.Source] = {}
        if (directory / runs.WEIGHTS).is_file():
            source = sources.open_source(directory / runs.WEIGHTS)
            self._readers = dict.fromkeys(source.tensors, source)
        elif (directory / runs.IMPORTED).is_dir():
            self.record = runs.import_record(directory)
            self._add(directory / runs.IMPORTED, self.record["arrays"])
        else:
            self._open_run(directory / runs.CHECKPOINTS, step)
        self.arrays = {path: _described(reader, path) for path, reader in self._readers.items()}
        folders = {reader.directory for reader in self._readers.values() if isinstance(reader, store.Stored)}
        stored = [file for each in sorted(folders) for file in sorted(each.rglob("*")) if file.is_file()]
        self.files = stored or [directory / runs.WEIGHTS]

    def _open_run(self, directory: pathlib.Path, step: int | None) -> None:
        with checkpoints.Checkpoints(directory, create=False) as manager:
            steps = manager.steps()
        if not steps or (step is not None and step not in steps):
            raise errors.UserError(
                f"{directory} holds {'no step' if step is None else f'no step {step}'}, "
                f"but {', '.join(map(str, steps)) or 'none at all'}: choose another with --step"
            )
        self.step = steps[-1] if step is None else step
        name = "ema" if (directory / str(self.step) / "ema").is_dir() else "params"
        sums = _checksums(directory, self.step)["leaves"][name]
        self._add(directory / str(self.step) / name, sums)
        if (directory / checkpoints.FROZEN).is_dir():
            frozen = directory / checkpoints.FROZEN
            self._add(frozen / "0" / "state", _checksums(frozen, 0))

    def _add(self, directory: pathlib.Path, written: Mapping[str, Mapping[str, Any]]) -> None:
        stored = store.Stored(directory)
        self._readers |= dict.fromkeys(stored.arrays, stored)
        self._written = {**self._written, **written}

    def read(self, path: str) -> np.ndarray:
        """One parameter.

        Raises:
          UserError: it is not what was written.
        """
        reader = self._readers[path]
        array = reader.read(path)
        dtype = str(array.dtype)
        bands = store.LazyArray(array.shape, array.dtype, array.__getitem__).bands()
        sums = np.concatenate([weights.row_sums(array[band], dtype) for band in bands])
        self.checksums[path] = {"dtype": dtype, "shape": list(array.shape), "checksum": int(weights.total(sums))}
        if isinstance(reader, store.Stored):
            found = self.checksums if self.record else checksums.tree_checksums({path: array})
            if found[path] != self._written.get(path):
                raise errors.UserError(
                    f"the weights in {self.directory} are damaged: {path} is not what was written; "
                    "write that folder again, or put it back from a copy"
                )
        return array


def _described(reader: store.Stored | sources.Source, path: str) -> jax.ShapeDtypeStruct:
    described = reader.arrays[path] if isinstance(reader, store.Stored) else reader.tensors[path]
    return jax.ShapeDtypeStruct(described.shape, described.dtype)


def _checksums(directory: pathlib.Path, step: int) -> Any:
    options = ocp.CheckpointManagerOptions(create=False)
    try:
        with ocp.CheckpointManager(directory.absolute(), options=options) as manager:
            return manager.restore(step, args=ocp.args.Composite(checksums=ocp.args.JsonRestore())).checksums
    except Exception as error:
        raise errors.UserError(
            f"step {step} in {directory} has no readable checksums ({type(error).__name__}): choose another step"
        ) from error
