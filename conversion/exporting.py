"""Export of jworld's weights to files with the keys of another program, parameter by parameter."""

import contextlib
import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
import rich.console

from conversion import (
    engine,
    families,
    folders,
    importing,
    outputs,
    pieces,
    searching,
    sources,
    tensor_files,
    torch_files,
)
from jworld.models.layers import lora
from jworld.systems import runs
from jworld.utils import errors, finite
from jworld.utils import files as file_readers

#: Bytes of tensors above which a folder has several files.
MAX_FILE = 5_000_000_000
#: Name of a file of adapters in diffusers.
ADAPTERS_NAME = "pytorch_lora_weights.safetensors"
#: Layout of the program that published a model, next to that of diffusers.
ORIGINAL = "original"
#: Value of `--layout` for names that transformers or diffusers loads.
LIBRARY = "library"
#: Layout of diffusers, for families that have it.
DIFFUSERS = "diffusers"
#: Entry of a header that transformers requires.
PYTORCH = {"format": "pt"}
_CONFIG = "config.json"
_NUMBER = re.compile(r"(\d+)")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Tensor to write: its placement in the model and its dtype in the file."""

    name: str
    place: engine.TensorPlacement
    dtype: np.dtype

    @property
    def size(self) -> int:
        return math.prod(self.place.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Summary:
    """Result of an export.

    `limits` has the reasons why the other program cannot load it, `omitted` the parts of the model that it lacks.
    """

    files: Sequence[pathlib.Path]
    layout: families.KeyLayout
    tensors: int
    parameters: int
    size: int
    limits: Sequence[str]
    omitted: Sequence[str] = ()


def export_weights(
    path: pathlib.Path,
    output: pathlib.Path,
    *,
    layout: str | None = None,
    dtype: str | None = None,
    step: int | None = None,
    trained: bool = False,
    overwrite: bool = False,
    max_file: int = MAX_FILE,
    console: rich.console.Console | None = None,
) -> Summary:
    """Write weights with the keys of another program, and its config.json.

    Args:
      path: an imported folder, a run, a released folder or an autoencoder. The EMA weights of a run are used if it has
        them; adapters are merged.
      output: a folder to create, or the name of a .safetensors, .pt or .pth file, which is never split.
      layout: a key of the family's layouts; None as in `choose_layout`.
      dtype: one of `importing.DTYPES`; None for the stored dtype.
      step: step of a run; None for the newest.
      trained: write only the parameters that the run trained, if the layout supports it.
      overwrite: replace the output of an earlier export.
      max_file: bytes of tensors above which a folder gets several files and an index, if the other program of the
        layout reads these.
      console: console for the progress bar.

    Raises:
      UserError: the weights are incomplete, damaged or not finite; the layout does not support the model; `output`
        exists or cannot be written. No partial output remains.
    """
    weights = folders.open_weights(path, step)
    keys, model = choose_layout(weights, output, layout), weights.target.model_config
    config = keys.to_config(model)
    tensors = _tensors(weights, keys, dtype)
    if trained:
        tensors = _trained(weights, keys, tensors)
        if keys.trained_config is not None:
            config |= keys.trained_config({tensor.place.path for tensor in tensors})
    torch_file = output.suffix in torch_files.SUFFIXES
    if torch_file:
        torch_files.require()
    is_whole = keys.one_file or output.suffix in outputs.FILES
    parts = [tensors] if is_whole else split(tensors, max_file)
    encoders = weights.path / runs.ENCODERS
    companions = keys.companions(model, encoders)
    carried = [name for name in keys.carried if (encoders / name).is_file() or name in companions]
    names = [*carried, *_names(output, len(parts), keys.weights_name), _CONFIG]
    if output.suffix in outputs.FILES and weights.path.absolute() in (output.absolute(), output.absolute().parent):
        raise errors.UserError(f"--output {output}: is in the folder of the weights: choose another folder")
    shared = _shared_config(output, names, config)
    with outputs.destination(output, names, is_export, overwrite=overwrite, shared=shared) as (folder, files):
        outputs.check_space(output, (1 + torch_file) * sum(tensor.size for tensor in tensors))
        for name in carried:
            if name in companions:
                (folder / name).write_text(companions[name], encoding="utf-8")
            else:
                file_readers.copy(encoders / name, folder / name)
        _write_parts(weights, [folder / name for name in names[len(carried) : -1]], parts, console)
        (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    return Summary(
        files,
        keys,
        len(tensors),
        sum(math.prod(tensor.place.shape) for tensor in tensors),
        sum(tensor.size for tensor in tensors),
        keys.limits(model),
        sorted({path.split("/", 1)[0] for path in weights.arrays if re.fullmatch(keys.omits, path)}),
    )


def _write_parts(
    weights: folders.Weights,
    files: Sequence[pathlib.Path],
    parts: Sequence[Sequence[Tensor]],
    console: rich.console.Console | None,
) -> None:
    """Write one file per part and, for several, their index; a .pt or .pth file by way of a mapped file."""
    shards = dict(zip(files, parts, strict=False))
    write(weights, shards, console)
    if files[0].suffix in torch_files.SUFFIXES:
        torch_files.write(files[0], files[0].rename(files[0].with_name("weights.safetensors")))
    if len(parts) > 1:
        _write_index(files[-1], shards)


def _shared_config(output: pathlib.Path, names: Sequence[str], config: Mapping[str, Any]) -> list[str]:
    """Return ["config.json"] if a file next to `output` has this content already, so that weights share it.

    Raises:
      UserError: it has other content and belongs to other weights.
    """
    place = output.absolute().parent / _CONFIG
    if output.suffix not in outputs.FILES or not place.is_file():
        return []
    try:
        if file_readers.read_json(place) == json.loads(json.dumps(config)):
            return [_CONFIG]
    except errors.UserError:
        pass
    others = [
        child.name
        for child in sorted(place.parent.iterdir())
        if child.name.endswith((*outputs.FILES, *searching.TORCH_SUFFIXES)) and child.name not in names
    ]
    if others or not output.exists():
        owner = f", which belongs to {others[0]}," if others else ""
        raise errors.UserError(
            f"{place}{owner} has other values than the config.json of {output.name}: choose another folder for each "
            "export"
        )
    return []


def choose_layout(weights: folders.Weights, output: pathlib.Path, layout: str | None) -> families.KeyLayout:
    """Return the layout of an export.

    `layout` is the user's choice. Without one a file of torch.save has the original program's layout if there is one:
    diffusers reads no such files. All other outputs have the family's default, that of the import, or the first.
    """
    layouts = weights.family.layouts
    if layout == LIBRARY:
        layout = _library_layout(weights)
    if layout is not None and layout not in layouts:
        raise errors.UserError(f"--layout is {layout!r}, expected one of {', '.join(layouts)}")
    if layout is None and output.suffix in torch_files.SUFFIXES and ORIGINAL in layouts:
        return layouts[ORIGINAL]
    imported = weights.record["layout"] if weights.record else None
    if layout is None and weights.family.default_layout is not None:
        layout = weights.family.default_layout(weights.target.model_config, imported)
    return layouts[layout or imported or next(iter(layouts))]


def _library_layout(weights: folders.Weights) -> str | None:
    """Return the layout that transformers or diffusers loads; None if neither has this model."""
    family, model = weights.family, weights.target.model_config
    if (found := family.library_layout(model)) is not None or DIFFUSERS not in family.layouts:
        return found
    try:
        family.layouts[DIFFUSERS].to_config(model)
    except errors.UserError:
        return None
    return DIFFUSERS


def _trained(weights: folders.Weights, keys: families.KeyLayout, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Select the tensors of the parameters that a run trained."""
    if keys.trained_config is None:
        raise errors.UserError(f"--trained: files in the layout of {keys.title} are always complete: leave it out")
    if not isinstance(weights, folders.Folder):
        raise errors.UserError(f"--trained: {weights.path} is not a run: leave it out")
    pattern = re.compile(weights.config.optimizer.trainable)
    return [tensor for tensor in tensors if pattern.fullmatch(tensor.place.path)]


def is_export(output: pathlib.Path) -> bool:
    """Return True for a folder that contains only an export."""
    suffixes = (".safetensors", sources.INDEX_SUFFIX)
    others = {
        _CONFIG,
        *(name for each in families.FAMILIES.values() for x in each.layouts.values() for name in x.carried),
    }
    files = [child.is_file() and (child.name.endswith(suffixes) or child.name in others) for child in output.iterdir()]
    return all(files) and not folders.is_ours(output)


def _tensors(weights: folders.Weights, keys: families.KeyLayout, dtype: str | None) -> list[Tensor]:
    """List all tensors of the model that the layout has, after a check that its parameters are complete."""
    expected = {
        path: leaf.shape
        for path, leaf in importing.abstract_params(weights.target).items()
        if not re.fullmatch(lora.TRAINABLE, path)
    }
    found = {path: leaf.shape for path, leaf in weights.arrays.items()}
    if found != expected:
        wrong = sorted(path for path in found.keys() | expected.keys() if found.get(path) != expected.get(path))
        raise errors.UserError(f"{weights.path}: its weights do not match its config: {', '.join(wrong)}")
    expected = {path: shape for path, shape in expected.items() if not re.fullmatch(keys.omits, path)}
    places = engine.plan(expected, keys.rules(weights.target.model_config))
    engine.check(
        engine.problems({name: place.source_shape for name, place in places.items()}, expected, places),
        str(weights.path),
        "choose another --layout",
    )
    tensors = [
        Tensor(name, place, np.dtype(dtype or weights.arrays[place.path].dtype)) for name, place in places.items()
    ]
    return sorted(tensors, key=lambda tensor: natural(tensor.name))


def natural(name: str) -> list[Any]:
    """Return a sort key that puts layer 10 after layer 9."""
    return [int(part) if part.isdigit() else part for part in _NUMBER.split(name)]


def split(tensors: Sequence[Tensor], max_file: int) -> list[list[Tensor]]:
    """Split tensors, in order, into groups of at most `max_file` bytes, or of one tensor."""
    parts: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if parts[-1] and size + tensor.size > max_file:
            parts.append([])
            size = 0
        parts[-1].append(tensor)
        size += tensor.size
    return parts


def _names(output: pathlib.Path, count: int, usual: str) -> list[str]:
    """Return the file names: one file, or the shards and their index."""
    if count == 1:
        return [output.name if output.suffix in outputs.FILES else usual]
    stem = usual.removesuffix(".safetensors")
    shards = [f"{stem}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    return [*shards, stem + sources.INDEX_SUFFIX]


def write(
    weights: folders.Weights,
    parts: Mapping[pathlib.Path, Sequence[Tensor]],
    console: rich.console.Console | None,
    metadata: Mapping[str, str] = PYTORCH,
) -> None:
    """Write the headers, then read every parameter once and write its tensors to their offsets in the files.

    Several threads do so, each with some rows of a parameter.
    """
    with contextlib.ExitStack() as stack, outputs.progress(console) as bar:
        targets: dict[str, tuple[Tensor, BinaryIO, int]] = {}
        for path, tensors in parts.items():
            file: BinaryIO = stack.enter_context(path.open("wb"))
            described = {tensor.name: (tensor.place.source_shape, tensor.dtype) for tensor in tensors}
            offsets = tensor_files.write_header(file, described, metadata)
            targets |= {tensor.name: (tensor, file, offsets[tensor.name]) for tensor in tensors}
        places: dict[str, dict[str, engine.TensorPlacement]] = {}
        for tensor, _, _ in targets.values():
            places.setdefault(tensor.place.path, {})[tensor.name] = tensor.place
        work = [piece for path, own in places.items() for piece in weights.pieces(path, own)]
        task = bar.add_task("exporting", total=sum(tensor.size for tensors in parts.values() for tensor in tensors))
        non_finite: set[str] = set()

        def convert(piece: pieces.Piece) -> None:
            for name, found, rows in piece.take(weights.read(piece.path, piece.rows)):
                tensor, file, offset = targets[name]
                value = np.empty(found.shape, tensor.dtype)
                with np.errstate(over="ignore"):
                    engine.copy(value, found)
                if not finite.all_finite(value):
                    non_finite.add(name)
                start = 0 if rows is None else rows.start
                tensor_files.write_at(file, value, offset + start * math.prod(found.shape[1:]) * tensor.dtype.itemsize)
                bar.advance(task, value.nbytes)

        pieces.process(work, convert)
        problems = [engine.Problem("non-finite", name) for name in sorted(non_finite)]
        engine.check(problems, str(weights.path), "choose another --dtype or --step")


def _write_index(path: pathlib.Path, parts: Mapping[pathlib.Path, Sequence[Tensor]]) -> None:
    index = {
        "metadata": {"total_size": sum(tensor.size for tensors in parts.values() for tensor in tensors)},
        "weight_map": {tensor.name: shard.name for shard, tensors in parts.items() for tensor in tensors},
    }
    path.write_text(json.dumps(index, indent=2) + "\n")
