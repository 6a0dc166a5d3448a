"""Export: a folder of jworld's weights -> safetensors under the keys of another program, parameter by parameter."""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import rich.console

from conversion import engine, families, folders, importing, outputs, sources
from jworld import errors, systems

#: Bytes of tensors above which the file is split.
MAX_FILE = 5_000_000_000
_DTYPES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_NUMBER = re.compile(r"(\d+)")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor to write: where its values lie in the model, and its bytes in the file."""

    name: str
    place: engine.Place
    dtype: np.dtype

    @property
    def size(self) -> int:
        return math.prod(self.place.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Summary:
    """What an export wrote; `limits` says why the other program cannot load it all the same."""

    files: Sequence[pathlib.Path]
    layout: families.KeyLayout
    tensors: int
    parameters: int
    size: int
    limits: Sequence[str]


def family_of(folder: folders.Folder) -> families.Family:
    system = folder.config.system
    found = [family for family in families.FAMILIES.values() if family.system == system]
    if not found:
        raise errors.UserError(f"{folder.directory}: the system {system} has no checkpoint family to export to")
    return found[0]


def export_weights(
    directory: pathlib.Path,
    output: pathlib.Path,
    *,
    layout: str | None = None,
    dtype: str | None = None,
    step: int | None = None,
    overwrite: bool = False,
    max_file: int = MAX_FILE,
    console: rich.console.Console | None = None,
) -> Summary:
    """Write the weights of an imported folder, a run or a released folder, and the other program's config.json.

    Args:
      directory: the weights; of a run the averaged ones, where it has them.
      output: a folder to create, or the name of a .safetensors file.
      layout: a key of the family's layouts; None for that of the import, else the first one.
      dtype: one of `importing.DTYPES`, None to keep the stored one.
      step: of a run, None for the newest.
      overwrite: replace what an earlier export wrote.
      max_file: bytes of tensors above which there are several files and an index.
      console: shows the progress.

    Raises:
      UserError: the weights are incomplete, damaged or not finite; the model has no place in the layout; `output`
        exists or cannot be written. Nothing is left behind.
    """
    folder = folders.Folder(directory, step)
    family = family_of(folder)
    chosen = layout or (folder.record["layout"] if folder.record else next(iter(family.layouts)))
    if chosen not in family.layouts:
        raise errors.UserError(f"--layout is {chosen!r}, expected one of {', '.join(family.layouts)}")
    keys = family.layouts[chosen]
    model = systems.create(folder.config).model_config
    config = keys.to_config(model)
    tensors = _tensors(folder, keys.rules(model), dtype)
    parts = split(tensors, max_file)
    with _destination(output, [*_names(output, len(parts)), "config.json"], directory, overwrite) as (
        folder_out,
        files,
    ):
        outputs.check_space(output, sum(tensor.size for tensor in tensors))
        paths = [folder_out / name for name in _names(output, len(parts))]
        _write(folder, dict(zip(paths, parts, strict=False)), console)
        if len(parts) > 1:
            _write_index(paths[-1], dict(zip(paths, parts, strict=False)))
        (folder_out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return Summary(
        files,
        keys,
        len(tensors),
        sum(math.prod(tensor.place.shape) for tensor in tensors),
        sum(tensor.size for tensor in tensors),
        keys.limits(model),
    )


def _tensors(folder: folders.Folder, rules: Sequence[engine.Rule], dtype: str | None) -> list[Tensor]:
    """All tensors of the model, whose parameters are complete."""
    expected = {path: leaf.shape for path, leaf in importing.abstract_params(systems.create(folder.config)).items()}
    found = {path: leaf.shape for path, leaf in folder.arrays.items()}
    if found != expected:
        wrong = sorted(path for path in found.keys() | expected.keys() if found.get(path) != expected.get(path))
        raise errors.UserError(f"{folder.directory}: its weights are not those of its config: {', '.join(wrong)}")
    places = engine.plan(expected, rules)
    engine.check(
        engine.problems({name: place.source_shape for name, place in places.items()}, expected, places),
        str(folder.directory),
        "choose another --layout",
    )
    tensors = [
        Tensor(name, place, np.dtype(dtype or folder.arrays[place.path].dtype)) for name, place in places.items()
    ]
    return sorted(tensors, key=lambda tensor: _natural(tensor.name))


def _natural(name: str) -> list[Any]:
    """Layer 10 after layer 9."""
    return [int(part) if part.isdigit() else part for part in _NUMBER.split(name)]


def split(tensors: Sequence[Tensor], max_file: int) -> list[list[Tensor]]:
    """Tensors in order -> groups of at most `max_file` bytes, or of one tensor."""
    parts: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if parts[-1] and size + tensor.size > max_file:
            parts.append([])
            size = 0
        parts[-1].append(tensor)
        size += tensor.size
    return parts


def _names(output: pathlib.Path, count: int) -> list[str]:
    """File names: one, or the shards and their index."""
    whole = output.name if output.suffix == ".safetensors" else sources.WEIGHTS_NAME
    if count == 1:
        return [whole]
    stem = whole.removesuffix(".safetensors")
    shards = [f"{stem}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    return [*shards, stem + sources.INDEX_SUFFIX]


@contextlib.contextmanager
def _destination(
    output: pathlib.Path, names: Sequence[str], directory: pathlib.Path, overwrite: bool
) -> Iterator[tuple[pathlib.Path, list[pathlib.Path]]]:
    """(folder to write into, where the files end up when the block ends well)."""
    if output.suffix != ".safetensors":
        suffixes = (".safetensors", sources.INDEX_SUFFIX)
        is_ours = output.is_dir() and all(
            child.is_file() and (child.name.endswith(suffixes) or child.name == "config.json")
            for child in output.iterdir()
        )
        outputs.check_output(output, overwrite, is_ours=is_ours and not folders.is_folder(output))
        with outputs.new_folder(output) as partial:
            yield partial, [output / name for name in names]
        return
    target = output.absolute().parent
    if target == directory.absolute():
        raise errors.UserError(f"--output {output}: lies in the folder of the weights: choose another folder")
    if not overwrite and (there := [name for name in names if (target / name).exists()]):
        raise errors.UserError(f"{target / there[0]} exists already: choose another folder, or give --overwrite")
    with outputs.partial_folder(output) as partial:
        yield partial, [target / name for name in names]
        for name in names:
            (partial / name).replace(target / name)


def _write(
    folder: folders.Folder, parts: Mapping[pathlib.Path, Sequence[Tensor]], console: rich.console.Console | None
) -> None:
    """Headers first; then every parameter is read once, and its tensors are written to their places in the files."""
    with contextlib.ExitStack() as stack, outputs.progress(console) as bar:
        targets: dict[str, list[tuple[Tensor, int, int]]] = {}
        for path, tensors in parts.items():
            file = stack.enter_context(path.open("wb"))
            for tensor, offset in _write_header(file, tensors):
                targets.setdefault(tensor.place.path, []).append((tensor, file.fileno(), offset))
        task = bar.add_task("exporting", total=sum(tensor.size for tensors in parts.values() for tensor in tensors))
        non_finite = []
        for parameter in folder.arrays:
            array = folder.read(parameter)
            for tensor, file_number, offset in targets[parameter]:
                value = np.empty(tensor.place.source_shape, tensor.dtype)
                with np.errstate(over="ignore"):
                    engine.copy(value, tensor.place.take(array))
                if not engine.finite(value):
                    non_finite.append(engine.Problem("non-finite", tensor.name))
                _write_all(file_number, value, offset)
                bar.advance(task, tensor.size)
        engine.check(non_finite, str(folder.directory), "choose another --dtype or --step")


def _write_header(file: Any, tensors: Sequence[Tensor]) -> list[tuple[Tensor, int]]:
    """Write the header of a safetensors file; -> every tensor with the position of its bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offsets = []
    position = 0
    # Larger elements first, so that all are aligned.
    for tensor in sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize):
        header[tensor.name] = {
            "dtype": _DTYPES[str(tensor.dtype)],
            "shape": list(tensor.place.source_shape),
            "data_offsets": [position, position + tensor.size],
        }
        offsets.append((tensor, position))
        position += tensor.size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    file.flush()
    return [(tensor, 8 + len(text) + offset) for tensor, offset in offsets]


def _write_all(file_number: int, value: np.ndarray, offset: int) -> None:
    rest = value.reshape(-1).view(np.uint8).data
    while len(rest):
        count = os.pwrite(file_number, rest, offset)
        rest, offset = rest[count:], offset + count


def _write_index(path: pathlib.Path, parts: Mapping[pathlib.Path, Sequence[Tensor]]) -> None:
    index = {
        "metadata": {"total_size": sum(tensor.size for tensors in parts.values() for tensor in tensors)},
        "weight_map": {tensor.name: shard.name for shard, tensors in parts.items() for tensor in tensors},
    }
    path.write_text(json.dumps(index, indent=2) + "\n")
