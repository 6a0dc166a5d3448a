"""Video autoencoders: configs from a checkpoint's hyper-parameters, and jworld's own files with the weights."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from conversion import families, pieces, resolving, store, tensor_files
from jworld.data import records
from jworld.models.autoencoders import files, network
from jworld.utils import errors
from jworld.utils import tensor_files as tensor_readers

#: Header entry of an imported file: the record of the import.
_RECORD = "import"
_FILE = np.dtype(np.float32)


@dataclasses.dataclass(frozen=True)
class Target:
    """Network that weights belong to."""

    family: families.Family
    model_config: Any

    def init(self, rngs: nnx.Rngs) -> network.VideoAutoencoder:
        return files.NETWORKS[self.family.autoencoder or ""][0](self.model_config, rngs=rngs)


def resolve(
    family: families.Family,
    *,
    shapes: Mapping[str, Any],
    downloaded: tuple[str, Mapping[str, Any]] | None,
    settings: Mapping[str, Any],
) -> tuple[Target, list[str]]:
    """Return the network with these hyper-parameters, and the names of those that only the published values set.

    Args:
      family: the network.
      shapes: hyper-parameters that follow from the tensors' shapes.
      downloaded: path of the config.json next to the tensors, and its hyper-parameters.
      settings: fields of the network's config by name.

    Raises:
      UserError: two sources contradict each other, a field does not exist, or the values are not those of a network.
    """
    config_type = files.NETWORKS[family.autoencoder or ""][1]
    published: network.AutoencoderConfig = config_type()
    values = {name.removeprefix("model."): value for name, value in settings.items()}
    values = {name: _checked(published, name, value) for name, value in values.items()}
    claims = {"the tensors' shapes": shapes}
    if downloaded is not None:
        claims[downloaded[0]] = downloaded[1]
    claims[resolving.OPTIONS] = values
    facts = resolving.agreed(claims)
    fields = [field for field in dataclasses.fields(config_type) if field.metadata != network.HOW_ONLY]
    try:
        config: network.AutoencoderConfig = config_type(**facts)
    except errors.UserError as error:
        raise errors.UserError(
            f"these sizes do not make a {family.name}: {error}: give other values with {resolving.OPTIONS}KEY=VALUE, "
            "or in a config.json next to the weights"
        ) from error
    return Target(family, config), [field.name for field in fields if field.name not in facts]


def _checked(published: network.AutoencoderConfig, name: str, value: Any) -> Any:
    """Return the value of a field, which must have the type of the published value."""
    choices = [field.name for field in dataclasses.fields(published) if field.name != "normalisation"]
    if name not in choices:
        raise errors.UserError(f"{resolving.OPTIONS}{name}: there is no such key; expected one of {', '.join(choices)}")
    usual = getattr(published, name)
    if name in ("dtype", "param_dtype"):
        if value not in ("float32", "bfloat16", "float16"):
            raise errors.UserError(f"{resolving.OPTIONS}{name}: found {value!r}, expected float32, bfloat16 or float16")
        return jnp.dtype(value)
    if type(value) is not type(usual) and not (name == "chunk" and value is None):
        raise errors.UserError(f"{resolving.OPTIONS}{name}: found {value!r}, expected a value like {usual!r}")
    return value


def find_file(path: pathlib.Path) -> pathlib.Path | None:
    """Return the autoencoder's file at `path` or in the folder `path`; None if there is none."""
    file = path / records.AUTOENCODER_FILE if path.is_dir() else path
    if file.suffix != ".safetensors" or not file.is_file():
        return None
    try:
        with tensor_readers.opened(file, fix="") as opened:
            return file if files.HEADER in (opened.metadata() or {}) else None
    except errors.UserError:
        return None


def read_header(path: pathlib.Path) -> tuple[families.Family, Target, dict[str, Any] | None]:
    """Return the family, the network and the record of the import; the record is None for other files.

    Raises:
      UserError: the file is not that of a network.
    """
    name, config = files.read_config(path)
    if config is None:
        raise errors.UserError(f"{path} is a linear autoencoder, which no other program can load")
    family = families.of_autoencoder(name)
    fix = "import it again"
    with tensor_readers.opened(path, fix=fix) as opened:
        has_record = _RECORD in opened.metadata()
        record = tensor_readers.header(opened, _RECORD, path, fix=fix) if has_record else None
    return family, Target(family, config), record


def write_file(
    path: pathlib.Path, target: Target, arrays: Mapping[str, store.LazyArray], record: Mapping[str, Any]
) -> None:
    """Write a file that `files.load` opens, in float32, some rows of a parameter at a time.

    Args:
      path: the file.
      target: the network.
      arrays: every parameter by its path.
      record: record of the import.
    """
    dtypes = {name: str(array.dtype) for name, array in arrays.items() if array.dtype != _FILE}
    entry = {_RECORD: json.dumps({**record, "dtypes": dtypes}, sort_keys=True)}
    header = files.header(target.family.autoencoder or "", target.model_config)
    with path.open("wb") as file:
        described = {name: (array.shape, _FILE) for name, array in arrays.items()}
        offsets = tensor_files.write_header(file, described, header | entry)

        def write(band: tuple[str, tuple[slice, ...]]) -> None:
            name, index = band
            row = math.prod(arrays[name].shape[1:]) * _FILE.itemsize
            start = index[0].start if index else 0
            tensor_files.write_at(file, arrays[name].read(index).astype(_FILE), offsets[name] + start * row)

        pieces.process([(name, index) for name, array in arrays.items() for index in array.bands()], write)
