"""Video autoencoders: their configs from what is known of a checkpoint, and files of jworld's own with the weights."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
from flax import nnx

from conversion import families, resolving, store, tensor_files
from jworld.data import records
from jworld.models.autoencoders import files, network
from jworld.utils import errors

#: Header entry of an imported file: what the import noted.
_RECORD = "import"
_FILE = np.dtype(np.float32)


@dataclasses.dataclass(frozen=True)
class Target:
    """What a network's weights are the parameters of."""

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
    """The network with these hyper-parameters, and those that nothing but the published values tells.

    Args:
      family: the network.
      shapes: hyper-parameters that the tensors tell.
      downloaded: the path of the config.json beside them and the hyper-parameters that it tells.
      settings: fields of the network's config by name.

    Raises:
      UserError: two places contradict each other, there is no such field, or the values do not make a network.
    """
    config_type = files.NETWORKS[family.autoencoder or ""][1]
    published = config_type()
    given = {name.removeprefix("model."): value for name, value in settings.items()}
    given = {name: _checked(published, name, value) for name, value in given.items()}
    told = {"the tensors' shapes": shapes, "--set": given}
    if downloaded is not None:
        told[downloaded[0]] = downloaded[1]
    facts = resolving.agreed(told)
    fields = [field for field in dataclasses.fields(config_type) if field.metadata != network.HOW_ONLY]
    try:
        config = config_type(**facts)
    except errors.UserError as error:
        raise errors.UserError(
            f"the weights make no {family.name}: {error}: give other values with --set, or in a config.json beside them"
        ) from error
    return Target(family, config), [field.name for field in fields if field.name not in facts]


def _checked(published: network.AutoencoderConfig, name: str, value: Any) -> Any:
    """A value of a field, which must be of the kind of the published one."""
    choices = [field.name for field in dataclasses.fields(published) if field.name != "normalisation"]
    if name not in choices:
        raise errors.UserError(f"--set {name}: there is no such key; expected one of {', '.join(choices)}")
    usual = getattr(published, name)
    if name in ("dtype", "param_dtype"):
        if value not in ("float32", "bfloat16", "float16"):
            raise errors.UserError(f"--set {name}: found {value!r}, expected float32, bfloat16 or float16")
        return jnp.dtype(value)
    if type(value) is not type(usual) and not (name == "chunk" and value is None):
        raise errors.UserError(f"--set {name}: found {value!r}, expected a value like {usual!r}")
    return value


def find_file(path: pathlib.Path) -> pathlib.Path | None:
    """The autoencoder's file that `path` is, or that the folder `path` holds; None if there is none."""
    file = path / records.AUTOENCODER_FILE if path.is_dir() else path
    if file.suffix != ".safetensors" or not file.is_file():
        return None
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            return file if files.HEADER in (opened.metadata() or {}) else None
    except safetensors.SafetensorError:
        return None


def read_header(path: pathlib.Path) -> tuple[families.Family, Target, dict[str, Any] | None]:
    """Family, network and the note of the import, None for a file that was not imported.

    Raises:
      UserError: it is no network's file.
    """
    name, config = files.read_config(path)
    if config is None:
        raise errors.UserError(f"{path} is the linear codec of a data set, which no other program has")
    family = families.of_autoencoder(name)
    with safetensors.safe_open(path, framework="numpy") as opened:
        note = opened.metadata().get(_RECORD)
    return family, Target(family, config), None if note is None else json.loads(note)


def write_file(
    path: pathlib.Path, target: Target, arrays: Mapping[str, store.LazyArray], record: Mapping[str, Any]
) -> None:
    """Write a file that `files.load` opens, in float32; one parameter after the other, some rows at a time.

    Args:
      path: the file.
      target: the network.
      arrays: every parameter by its path.
      record: what to note of the import.
    """
    dtypes = {name: str(array.dtype) for name, array in arrays.items() if array.dtype != _FILE}
    note = {_RECORD: json.dumps({**record, "dtypes": dtypes}, sort_keys=True)}
    header = files.header(target.family.autoencoder or "", target.model_config)
    with path.open("wb") as file:
        described = {name: (array.shape, _FILE) for name, array in arrays.items()}
        offsets = tensor_files.write_header(file, described, header | note)
        for name, array in arrays.items():
            row = math.prod(array.shape[1:]) * _FILE.itemsize
            for band in array.bands():
                tensor_files.write_at(file, array.read(band).astype(_FILE), offsets[name] + band[0].start * row)
