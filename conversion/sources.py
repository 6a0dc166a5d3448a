"""Tensors of downloaded files, listed without reading them and then read slice by slice.

The safetensors format is read here because its library supports neither bfloat16 nor float8 for numpy, and its error
messages give no advice. Files are untrusted: every number in a file is checked against the file's size before it
determines an allocation. An index cannot refer to files outside its folder.
"""

import dataclasses
import io
import json
import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

import ml_dtypes
import numpy as np

from conversion import messages, searching
from jworld.utils import errors, files, limits, pickles, placeholders

INDEX_SUFFIX = searching.INDEX_SUFFIX
TORCH_SUFFIXES = searching.TORCH_SUFFIXES
WEIGHTS_NAME = searching.WEIGHTS_NAME

_MAX_AXES = 32
_MAX_SIZE = 1 << 56
_BLOCK = 64 << 20  # bytes read at a time if only parts of rows are needed
_STATES = "_extra_state"
# Names that wrappers insert: torch.compile, FSDP, activation checkpointing. Prefixes of all names: DataParallel, peft,
# and programs that store a diffusion model with its other parts.
_WRAPPERS = re.compile(r"(^|\.)(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+")
_PREFIXES = ("module.", "base_model.model.", "model.diffusion_model.", "diffusion_model.")

_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}
# dtypes of torch without a counterpart in numpy, which are viewed as integers of the same size.
_TORCH_VIEWS = {
    "torch.bfloat16": ("int16", ml_dtypes.bfloat16),
    "torch.float8_e4m3fn": ("uint8", ml_dtypes.float8_e4m3fn),
    "torch.float8_e5m2": ("uint8", ml_dtypes.float8_e5m2),
}

Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a tensor in a file."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class _File(Protocol):
    """Open file with tensors."""

    path: pathlib.Path
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]

    def read(self, name: str, index: Index) -> np.ndarray: ...

    def close(self) -> None: ...


class Source:
    """Tensors of one or more files; use it as a context manager, which closes the files.

    Attributes:
      path: the file or folder that was opened.
      files: the files with tensors.
      config: content of the config.json next to the weights; None without one.
      metadata: entries of the files' headers that describe no tensor.
      tensors: shape and dtype of every tensor by name.
    """

    def __init__(
        self, path: pathlib.Path, config: dict[str, Any] | None, parts: Sequence[_File], *, unwrap: bool = False
    ) -> None:
        """Collect the tensors of the files; `unwrap` removes the names of wrappers, see `unwrapped`."""
        self.path = path
        self.config = config
        self.files = tuple(part.path for part in parts)
        self.metadata = {key: value for part in parts for key, value in part.metadata.items()}
        self._parts = parts
        own = {name: (part, name) for part in parts for name in part.tensors}
        names = unwrapped(own) if unwrap else {name: name for name in own}
        self._places = {name: own[inside] for name, inside in names.items()}
        self.tensors: dict[str, TensorInfo] = {
            name: part.tensors[inside] for name, (part, inside) in self._places.items()
        }

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """Read a tensor, or the part that slices with step 1 select, as a new array; omitted axes are whole.

        Only the selected rows of the first axis are read from a safetensors file.
        """
        shape = self.tensors[name].shape
        bounds = tuple(index or ()) + (slice(None),) * (len(shape) - len(index or ()))
        ranges = [chosen.indices(size) for chosen, size in zip(bounds, shape, strict=True)]
        if any(step != 1 for _, _, step in ranges):
            raise ValueError(f"{name}: only slices with step 1 can be read, not {index}")
        part, inside = self._places[name]
        return part.read(inside, tuple(slice(first, max(first, last)) for first, last, _ in ranges))

    def close(self) -> None:
        for part in self._parts:
            part.close()

    def adopt(self, other: "Source") -> None:
        """Close another source together with this one."""
        self._parts = (*self._parts, *other._parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_source(path: str | pathlib.Path, *, unwrap: bool = True) -> Source:
    """Open a safetensors file, a sharded set by its index, a .pt/.pth/.bin file, or a folder with one of these.

    Args:
      path: the file or folder; `searching.find_weights` describes the choice in a folder.
      unwrap: remove the names of wrappers from the tensors' names, see `unwrapped`.

    Raises:
      UserError: there are no weights, there is more than one choice, or a file is malformed.
    """
    path = pathlib.Path(path)
    weights = searching.find_weights(path)
    place = weights.parent / "config.json"
    # Also a link to nothing or a folder of this name is there, and a mistake.
    config = read_json(place) if os.path.lexists(place) else None
    if weights.name.endswith(INDEX_SUFFIX):
        return Source(path, config, _open_sharded(weights), unwrap=unwrap)
    return Source(path, config, [_open_file(weights)], unwrap=unwrap)


def unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Return {name without wrappers: name} for tensors of a module that was saved in a wrapper of PyTorch or peft.

    Names stay as they are if two of them would be equal without the wrappers.
    """
    names = list(names)
    plain = [_WRAPPERS.sub(r"\1", name) for name in names]
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in plain):
            plain = [name.removeprefix(prefix) for name in plain]
    found = dict(zip(plain, names, strict=True))
    return found if len(found) == len(names) else {name: name for name in names}


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Read a JSON file with an object; anything else is a `UserError`."""
    content: dict[str, Any] = files.read_json(path, fix="download it again", limit=limits.HEADER_BYTES)
    return content


def _open_file(path: pathlib.Path) -> _File:
    if path.suffix == ".safetensors":
        return _SafetensorsFile(path)
    if path.suffix in TORCH_SUFFIXES:
        return _TorchFile(path)
    raise errors.UserError(
        f"{path}: not a file of weights by its name; expected .safetensors, {INDEX_SUFFIX}, {', '.join(TORCH_SUFFIXES)}"
    )


def _open_sharded(path: pathlib.Path) -> list[_File]:
    """Open the files of an index, after a check that they contain exactly the tensors that it lists."""
    listed = read_json(path).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise errors.UserError(f"{path}: not an index of shards; expected weight_map, tensor name -> file name")
    names = sorted(set(listed.values()))
    for name in names:
        inside = pathlib.PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts or "\\" in name or "\0" in name:
            raise errors.UserError(
                f"{path}: lists the file {messages.shown(name)} outside its folder; shards must be next to the index"
            )
        if not os.path.isfile(path.parent / name):  # pathlib would raise for a name that is too long
            raise errors.UserError(
                f"{path}: lists {messages.shown(name)}, which does not exist; download that shard, too"
            )
    parts: list[_File] = []
    try:
        for name in names:
            parts.append(_SafetensorsFile(path.parent / name))
        _check_shards(path, listed, dict(zip(names, parts, strict=True)))
    except errors.UserError:
        for part in parts:
            part.close()
        raise
    return parts


def _check_shards(path: pathlib.Path, listed: Mapping[str, str], parts: Mapping[str, _File]) -> None:
    holders: dict[str, list[str]] = {}
    for file, part in parts.items():
        for name in part.tensors:
            holders.setdefault(name, []).append(file)
    for name, shards in holders.items():
        if len(shards) > 1:
            raise errors.UserError(
                f"{path}: tensor {messages.shown(name)} is in two shards, {messages.listed(shards)}; keep one set of "
                "files"
            )
    for wrong, mistake in (
        (
            [name for name, file in listed.items() if holders.get(name) != [file]],
            "lists tensors that their shards lack",
        ),
        ([name for name in holders if name not in listed], "does not list tensors of its shards"),
    ):
        if wrong:
            raise errors.UserError(
                f"{path}: {mistake}: {messages.listed(wrong)}; index and shards are from different downloads"
            )


class _SafetensorsFile:
    """Safetensors file: 8 bytes of header length, JSON header, then the tensors without gaps."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        try:
            self._file: BinaryIO = files.open_binary(path, buffering=0)
        except OSError as error:
            raise errors.UserError(f"{path} {files.problem(error)}: correct the path") from error
        try:
            header, self._start, data_size = _read_header(path, self._file)
            self.metadata = _strings(header.pop("__metadata__", None))
            entries = {name: _entry(path, name, value) for name, value in header.items()}
            _check_offsets(path, entries, data_size)
        except BaseException as error:
            self._file.close()
            if isinstance(error, OSError):
                raise errors.UserError(f"{path} {files.problem(error)}: correct the path") from error
            raise
        self.tensors = {name: info for name, (info, _) in entries.items()}
        self._offsets = {name: offset for name, (_, offset) in entries.items()}

    def read(self, name: str, index: Index) -> np.ndarray:
        info, offset = self.tensors[name], self._start + self._offsets[name]
        out = np.empty([chosen.stop - chosen.start for chosen in index], info.dtype)
        row = math.prod(info.shape[1:]) * info.dtype.itemsize
        if not index or out.shape[1:] == info.shape[1:]:
            self._fill(out, offset + (index[0].start * row if index else 0))
            return out
        step = max(1, _BLOCK // max(row, 1))
        for first in range(0, len(out), step):
            rows = np.empty((min(step, len(out) - first), *info.shape[1:]), info.dtype)
            self._fill(rows, offset + (index[0].start + first) * row)
            out[first : first + step] = rows[(slice(None), *index[1:])]
        return out

    def _fill(self, array: np.ndarray, offset: int) -> None:
        buffer = array.reshape(-1).view(np.uint8).data
        while len(buffer):
            count = os.preadv(self._file.fileno(), [buffer], offset)
            if not count:
                raise errors.UserError(
                    f"{self.path}: became shorter during reading; start again with the complete file"
                )
            buffer, offset = buffer[count:], offset + count

    def close(self) -> None:
        self._file.close()


def _read_header(path: pathlib.Path, file: BinaryIO) -> tuple[dict[str, Any], int, int]:
    """Read the header; -> (entries of the tensors, offset of the first tensor, number of bytes from there)."""
    placeholders.refuse(path)
    size, start = os.fstat(file.fileno()).st_size, file.read(8)
    if size < 8:
        raise errors.UserError(f"{path}: has {size} bytes, too few for a safetensors file; download it again")
    length = int.from_bytes(start, "little")
    if length > min(limits.HEADER_BYTES, size - 8):
        raise errors.UserError(
            f"{path}: not a safetensors file, or incomplete: its header would have {length} bytes, the file has {size}"
        )
    file.seek(8)
    try:
        header = json.loads(file.read(length), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise errors.UserError(f"{path}: not a safetensors file: its header is not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise errors.UserError(f"{path}: not a safetensors file: its header is not a JSON object")
    return header, 8 + length, size - 8 - length


def _strings(metadata: Any) -> dict[str, str]:
    """Return the entries of a header's metadata that are text."""
    entries = metadata.items() if isinstance(metadata, dict) else ()
    return {key: value for key, value in entries if isinstance(value, str)}


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{messages.shown(next(name for name in names if names.count(name) > 1))} occurs twice")
    return found


def _entry(path: pathlib.Path, name: str, entry: Any) -> tuple[TensorInfo, int]:
    """Parse and check a header entry; -> (tensor, offset of its bytes)."""
    tensor = f"{path}: tensor {messages.shown(name)}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise errors.UserError(f"{tensor} is not described by dtype, shape and data_offsets; the file is damaged")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _is_sizes(shape) or len(shape) > _MAX_AXES or math.prod(size or 1 for size in shape) > _MAX_SIZE:
        raise errors.UserError(
            f"{tensor} has the shape {messages.shown(shape)}, expected at most {_MAX_AXES} sizes that a file can hold"
        )
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise errors.UserError(f"{tensor} has the data_offsets {messages.shown(offsets)}, expected begin <= end")
    dtype = _DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise errors.UserError(
            f"{tensor} has the unknown dtype {messages.shown(entry['dtype'])}, expected {', '.join(_DTYPES)}"
        )
    needed = math.prod(shape) * dtype.itemsize
    if needed != offsets[1] - offsets[0]:
        raise errors.UserError(
            f"{tensor} of shape {messages.shown(shape)} and dtype {entry['dtype']} needs {needed} bytes, "
            f"but has {offsets[1] - offsets[0]}; the file is damaged"
        )
    return TensorInfo(tuple(shape), dtype), offsets[0]


def _is_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= _MAX_SIZE for value in values)


def _check_offsets(path: pathlib.Path, entries: Mapping[str, tuple[TensorInfo, int]], data_size: int) -> None:
    """Raise a `UserError` unless the tensors cover every byte of the data exactly once."""
    position, before = 0, "the header"
    spans = sorted(
        (offset, offset + math.prod(info.shape) * info.dtype.itemsize, name) for name, (info, offset) in entries.items()
    )
    for begin, end, name in spans:
        if begin != position:
            mistake = "overlaps" if begin < position else "leaves a gap after"
            raise errors.UserError(f"{path}: tensor {messages.shown(name)} {mistake} {before}; the file is damaged")
        position, before = end, messages.shown(name)
    if position > data_size:
        raise errors.UserError(
            f"{path}: incomplete: its tensors need {position} bytes, the file has {data_size}; download it again"
        )
    if position < data_size:
        raise errors.UserError(f"{path}: has {data_size - position} bytes after its last tensor; the file is damaged")


class _TorchFile:
    """File of torch.save, memory-mapped and unpickled by torch's restricted reader."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        placeholders.refuse(path)
        self.metadata: dict[str, str] = {}
        self._tensors = _tensor_dict(path, _load_torch(path))
        self.tensors = {name: _torch_info(path, name, tensor) for name, tensor in self._tensors.items()}

    def read(self, name: str, index: Index) -> np.ndarray:
        tensor = self._tensors[name].detach()[index].contiguous()
        info, view = self.tensors[name], _TORCH_VIEWS.get(str(tensor.dtype))
        if view is not None:
            import torch

            tensor = tensor.view(getattr(torch, view[0]))
        array: np.ndarray = tensor.numpy().view(info.dtype)
        return array.copy()

    def close(self) -> None:
        self._tensors = {}


def _load_torch(path: pathlib.Path) -> Any:
    fix = "save it as safetensors, or again with torch.save(model.state_dict(), ...)"
    # Older versions of Transformer Engine store their states as io.BytesIO.
    return pickles.load_torch(path, fix=fix, mmap=True, allowed=[io.BytesIO])


def _tensor_dict(path: pathlib.Path, content: Any) -> dict[str, Any]:
    """Return the dict of tensors in a file, at the top level or under exactly one key ("state_dict", "model", ...).

    The states of Transformer Engine's layers, which may be tensors, bytes or None, are dropped.
    """
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if not str(key).endswith(_STATES)}
    if _is_tensor_dict(content):
        return dict(content)
    inner = [key for key, value in content.items() if _is_tensor_dict(value)] if isinstance(content, dict) else []
    if len(inner) != 1:
        keys = messages.listed([str(key) for key in content]) if isinstance(content, dict) else type(content).__name__
        raise errors.UserError(
            f"{path}: expected a dict of tensors, or exactly one dict of tensors under a key; "
            f"found {len(inner)} of them in {keys}"
        )
    return dict(content[inner[0]])


def _is_tensor_dict(value: Any) -> bool:
    import torch

    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(key, str) and isinstance(entry, torch.Tensor) for key, entry in value.items())
    )


def _torch_info(path: pathlib.Path, name: str, tensor: Any) -> TensorInfo:
    import torch

    if tensor.layout != torch.strided:
        raise errors.UserError(
            f"{path}: tensor {messages.shown(name)} is not dense ({tensor.layout}); save it as a dense tensor"
        )
    view = _TORCH_VIEWS.get(str(tensor.dtype))
    try:
        dtype = np.dtype(str(tensor.dtype).removeprefix("torch.")) if view is None else np.dtype(view[1])
    except TypeError as error:
        raise errors.UserError(
            f"{path}: tensor {messages.shown(name)} has the dtype {tensor.dtype}, which is not supported"
        ) from error
    return TensorInfo(tuple(tensor.shape), dtype)
