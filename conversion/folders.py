"""Weights that jworld wrote (imported, of a run, released, an autoencoder's), read one parameter at a time."""

import abc
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp

from conversion import autoencoders, families, importing, sources, store
from jworld import systems
from jworld.models.layers import lora
from jworld.systems import runs
from jworld.training import checkpoints, checksums, weights
from jworld.utils import config as run_config
from jworld.utils import errors

_DOWN, _UP = "/lora/a", "/lora/b"


def is_folder(path: pathlib.Path) -> bool:
    """True for a folder that jworld wrote, which has weights and the config of a run."""
    holders = (runs.WEIGHTS, runs.IMPORTED, runs.CHECKPOINTS)
    if not any((path / name).exists() for name in holders):
        return False
    try:
        # Other programs name their files config.json and model.safetensors, too.
        return "system" in json.loads((path / run_config.FILE_NAME).read_text())
    except (OSError, ValueError, TypeError):
        return False


def is_ours(path: pathlib.Path) -> bool:
    """True for what `open_weights` opens."""
    return is_folder(path) or autoencoders.find_file(path) is not None


def open_weights(path: pathlib.Path, step: int | None = None) -> "Weights":
    """Open a folder of weights, an autoencoder's file, or the folder with one.

    Raises:
      UserError: it is neither, or something is missing or damaged.
    """
    if is_folder(path):
        return Folder(path, step)
    file = autoencoders.find_file(path)
    if file is None:
        raise errors.UserError(
            f"{path} is no folder of jworld's weights, nor an autoencoder's file: name one that "
            "`python -m conversion import` or a training run wrote"
        )
    return AutoencoderFile(file)


class Weights(abc.ABC):
    """Weights and what is known of them.

    Attributes:
      path: the folder or the file.
      family: of the network.
      target: the system or autoencoder that they are the parameters of.
      record: what the import noted, None for weights that were trained here.
      step: of a run, else None.
      arrays: path of every parameter -> shape and dtype.
      files: those that hold the weights.
      checksums: path -> dtype, shape and checksum of every parameter read so far.
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

    def read(self, path: str) -> np.ndarray:
        """One parameter.

        Raises:
          UserError: it is not what was written.
        """
        array = self._read(path)
        dtype = str(array.dtype)
        bands = store.LazyArray(array.shape, array.dtype, array.__getitem__).bands()
        sums = np.concatenate([weights.row_sums(array[band], dtype) for band in bands])
        self.checksums[path] = {"dtype": dtype, "shape": list(array.shape), "checksum": int(weights.total(sums))}
        return array

    @abc.abstractmethod
    def _read(self, path: str) -> np.ndarray: ...


class AutoencoderFile(Weights):
    """One of `jworld.models.autoencoders.files`: float32, which says of what type an imported parameter was."""

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

    def _read(self, path: str) -> np.ndarray:
        return self._source.read(path).astype(self.arrays[path].dtype, copy=False)


class Folder(Weights):
    """A run, an imported or a released folder; of a run the averaged weights, where it has them.

    Adapters (`jworld.models.layers.lora`) are merged into their kernels and are no parameters of their own.

    Attributes:
      config: of the run.
      adapted: paths of the layers with an adapter.
    """

    def __init__(self, directory: pathlib.Path, step: int | None = None):
        super().__init__()
        self.path = directory
        self.config: ml_collections.ConfigDict = run_config.load(directory)
        self.family = families.of_system(self.config.system, str(directory))
        self.target = systems.create(self.config)
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

    def _read(self, path: str) -> np.ndarray:
        return self._readers[path].read(path)

    def read(self, path: str) -> np.ndarray:
        """As in `Weights`, compared with the checksums that were written, if any, and then adapters merged."""
        array, layer = self._checked(path), path.removesuffix("/kernel")
        if layer == path or layer not in self.adapted:
            return array
        down, up = (self._checked(layer + name).astype(np.float32) for name in (_DOWN, _UP))
        scale = np.float32(self.config.model.lora.alpha / down.shape[-1])
        return (array.astype(np.float32) + scale * (down @ up)).astype(array.dtype)

    def _checked(self, path: str) -> np.ndarray:
        array = super().read(path)
        if isinstance(self._readers[path], store.Stored):
            found = self.checksums if self.record else checksums.tree_checksums({path: array})
            if found[path] != self._written.get(path):
                raise errors.UserError(
                    f"the weights in {self.path} are damaged: {path} is not what was written; "
                    "write that folder again, or put it back from a copy"
                )
        return array


class Adapters(Folder):
    """The adapters of a run alone; their factor alpha / rank, which no file of adapters tells, is in the second matrix.

    Raises:
      UserError: there are none.
    """

    def __init__(self, directory: pathlib.Path, step: int | None = None):
        super().__init__(directory, step)
        if not self.adapted:
            raise errors.UserError(f"{directory} has no adapters: leave --adapters out")
        self.arrays = {
            path: _described(reader, path)
            for path, reader in self._readers.items()
            if re.fullmatch(lora.TRAINABLE, path)
        }

    def read(self, path: str) -> np.ndarray:
        array = self._checked(path)
        if path.endswith(_DOWN):
            return array
        return (array * np.float32(self.config.model.lora.alpha / array.shape[-2])).astype(array.dtype)


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
