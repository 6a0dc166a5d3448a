"""Reader of jworld's weights (imported, of a run, released, of an autoencoder), some rows of a parameter at a time."""

import abc
import math
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp

from conversion import autoencoders, digests, engine, families, importing, pieces, sources, store
from jworld import systems
from jworld.models.layers import lora
from jworld.systems import runs
from jworld.training import checkpoints, checksums
from jworld.utils import config as run_config
from jworld.utils import errors, files

_DOWN, _UP = "/lora/a", "/lora/b"


def is_folder(path: pathlib.Path) -> bool:
    """Return True for a folder of jworld, which has weights and the config of a run."""
    holders = (runs.WEIGHTS, runs.IMPORTED, runs.CHECKPOINTS)
    if not any((path / name).exists() for name in holders):
        return False
    try:
        # Other programs also use the file names config.json and model.safetensors.
        return "system" in files.read_json(path / run_config.FILE_NAME)
    except errors.UserError:
        return False


def is_ours(path: pathlib.Path) -> bool:
    """Return True for paths that `open_weights` opens."""
    return is_folder(path) or autoencoders.find_file(path) is not None


def refuse_step(path: pathlib.Path, step: int | None) -> None:
    """Raise a `UserError` if a step is given for weights that are not those of a run."""
    if step is not None and not (path / runs.CHECKPOINTS).is_dir():
        raise errors.UserError(
            f"--step {step}: {path} is not the folder of a run, so it has no steps: leave --step out"
        )


def open_weights(path: pathlib.Path, step: int | None = None) -> "Weights":
    """Open a folder of weights, an autoencoder's file, or the folder with such a file.

    Raises:
      UserError: it is none of these, or something is missing or damaged.
    """
    refuse_step(path, step)
    if is_folder(path):
        return Folder(path, step)
    file = autoencoders.find_file(path)
    if file is None:
        raise errors.UserError(
            f"{path} is not a folder of jworld's weights or an autoencoder's file: give the output of "
            "`python -m conversion import` or of a training run"
        )
    return AutoencoderFile(file)


class Weights(abc.ABC):
    """Weights with their metadata.

    Attributes:
      path: the folder or the file.
      family: family of the network.
      target: the system or autoencoder that the weights belong to.
      record: record of the import; None for weights trained with jworld.
      step: step of a run; None for other weights.
      arrays: path of every parameter -> shape and dtype.
      files: files that contain the weights.
      checksums: path -> dtype, shape and checksum of every parameter of which all rows were read so far.
    """

    path: pathlib.Path
    family: families.Family
    target: importing.Target
    arrays: Mapping[str, jax.ShapeDtypeStruct]
    files: Sequence[pathlib.Path]

    def __init__(self) -> None:
        self.record: dict[str, Any] | None = None
        self.step: int | None = None
        self.checksums: dict[str, dict[str, Any]] = {}
        self._digests: dict[str, digests.Digest] = {}

    def read(self, path: str, rows: slice | None = None) -> np.ndarray:
        """Read one parameter, or some rows of its first axis; several threads may read at the same time.

        Raises:
          UserError: with these rows all were read, and the checksum differs from the one that was written.
        """
        array = self._read(path, rows)
        digest = self._digests.setdefault(path, digests.Digest(self._described(path)))
        if digest.add(array, rows.start if rows else 0):
            self.checksums[path] = digest.entry()
        return array

    def pieces(self, path: str, tensors: Mapping[str, engine.TensorPlacement]) -> Iterator[pieces.Piece]:
        """Yield the pieces of a parameter to read, with their tensors."""
        return pieces.split(path, self.arrays[path], tensors, self._chunk_rows(path))

    def _chunk_rows(self, path: str) -> int:
        """Return the rows that are stored together."""
        return 1

    def _described(self, path: str) -> jax.ShapeDtypeStruct:
        """Return shape and dtype as read."""
        return self.arrays[path]

    @abc.abstractmethod
    def _read(self, path: str, rows: slice | None) -> np.ndarray: ...


class AutoencoderFile(Weights):
    """File of `jworld.models.autoencoders.files`: float32, with the original dtype of every imported parameter."""

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.path, self.files = path, [path]
        self.family, self.target, self.record = autoencoders.read_header(path)
        self._source = sources.open_source(path)
        dtypes = self.record["dtypes"] if self.record else {}
        self.arrays = {
            name: jax.ShapeDtypeStruct(info.shape, np.dtype(dtypes.get(name, info.dtype)))
            for name, info in self._source.tensors.items()
        }

    def _read(self, path: str, rows: slice | None) -> np.ndarray:
        index = () if rows is None else (rows,)
        return self._source.read(path, index).astype(self.arrays[path].dtype, copy=False)


class Folder(Weights):
    """Run, imported folder or released folder; the EMA weights of a run are used if it has them.

    Adapters (`jworld.models.layers.lora`) are merged into their kernels and not listed as parameters.

    Attributes:
      config: config of the run.
      adapted: paths of the layers with an adapter.
    """

    def __init__(self, directory: pathlib.Path, step: int | None = None):
        super().__init__()
        self.path = directory
        self.config: ml_collections.ConfigDict = run_config.load(directory)
        self.family = families.of_system(self.config.system, str(directory))
        self.target = systems.create(self.config)
        self._written: Mapping[str, Mapping[str, Any]] = {}
        self._sums: dict[str, dict[int, int]] = {}
        self._readers: dict[str, store.Stored | sources.Source] = {}
        if (directory / runs.WEIGHTS).is_file():
            source = sources.open_source(directory / runs.WEIGHTS)
            self._readers = dict.fromkeys(source.tensors, source)
        elif (directory / runs.IMPORTED).is_dir():
            self.record = runs.import_record(directory)
            self._add(directory / runs.IMPORTED, self.record["arrays"])
        else:
            self._open_run(directory / runs.CHECKPOINTS, step)
        self.adapted = {path.removesuffix(_DOWN) for path in self._readers if path.endswith(_DOWN)}
        self.arrays = {
            path: _described(reader, path)
            for path, reader in self._readers.items()
            if not re.fullmatch(lora.TRAINABLE, path)
        }
        folders = {reader.directory for reader in self._readers.values() if isinstance(reader, store.Stored)}
        stored = [file for each in sorted(folders) for file in sorted(each.rglob("*")) if file.is_file()]
        self.files = stored or [directory / runs.WEIGHTS]

    def _open_run(self, directory: pathlib.Path, step: int | None) -> None:
        with checkpoints.Checkpoints(directory, create=False) as manager:
            steps = manager.steps()
        if not steps or (step is not None and step not in steps):
            if not steps:
                raise errors.UserError(f"{directory} has no checkpoint: choose another run, or train this one first")
            raise errors.UserError(
                f"{directory} has no step {step}, expected one of {', '.join(map(str, steps))}: choose another --step"
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

    def _described(self, path: str) -> jax.ShapeDtypeStruct:
        return _described(self._readers[path], path)

    def _chunk_rows(self, path: str) -> int:
        reader = self._readers[path]
        return reader.chunk_rows(path) if isinstance(reader, store.Stored) else 1

    def _read(self, path: str, rows: slice | None) -> np.ndarray:
        array = self._readers[path].read(path, () if rows is None else (rows,))
        if not self.record and isinstance(self._readers[path], store.Stored):
            start = 0 if rows is None else rows.start
            first = start * math.prod(array.shape[1:])
            self._sums.setdefault(path, {})[start] = checksums.part_checksum(array, first)
        return array

    def read(self, path: str, rows: slice | None = None) -> np.ndarray:
        """Read as in `Weights`, compare with the stored checksum, if any, and merge the adapter."""
        array, layer = self._checked(path, rows), path.removesuffix("/kernel")
        if layer == path or layer not in self.adapted:
            return array
        down, up = (self._checked(layer + name, rows).astype(np.float32) for name in (_DOWN, _UP))
        scale = np.float32(self.config.model.lora.alpha / down.shape[-1])
        return (array.astype(np.float32) + scale * (down @ up)).astype(array.dtype)

    def _checked(self, path: str, rows: slice | None) -> np.ndarray:
        array = super().read(path, rows)
        found = None
        if isinstance(self._readers[path], store.Stored):
            found = self.checksums.get(path)
        if found is not None and not self.record:
            found = found | {"checksum": sum(self._sums[path].values()) % 2**32}
        if found is not None and found != self._written.get(path):
            raise errors.UserError(
                f"the weights in {self.path} are damaged: the checksum of {path} differs; "
                "write that folder again, or restore it from a copy"
            )
        return array


class Adapters(Folder):
    """Adapters of a run and, if it trained other parameters too, such as a projection, these; without the base weights.

    Args:
      directory: folder of the run.
      step: step of the run; None for the newest.
      folded: multiply the factor alpha / rank into the second matrix.

    Raises:
      UserError: the run has no adapters.
    """

    def __init__(self, directory: pathlib.Path, step: int | None = None, *, folded: bool):
        if not is_folder(directory):
            raise errors.UserError(
                f"{directory} is not a run of jworld, which may have adapters: choose another folder"
            )
        super().__init__(directory, step)
        self._folded = folded
        if not self.adapted:
            raise errors.UserError(f"{directory} has no adapters: leave --adapters out")
        trained = re.compile(f"{lora.TRAINABLE}|{self.config.optimizer.trainable}")
        self.arrays = {
            path: _described(reader, path) for path, reader in self._readers.items() if trained.fullmatch(path)
        }

    def read(self, path: str, rows: slice | None = None) -> np.ndarray:
        array = self._checked(path, rows)
        if not path.endswith(_UP) or not self._folded:
            return array
        return (array * np.float32(self.config.model.lora.alpha / self.arrays[path].shape[-2])).astype(array.dtype)


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
