"""Training records: the schema of one clip, a flat dict of numpy arrays, and the manifest of a set.

A record's payload has the layout of a safetensors file: the header's length (8 bytes, little-endian), a JSON header
{name: {dtype, shape, data_offsets}}, and the raw little-endian bytes. Shards are Arrow files (see
`jworld.data.records.shard_files`), written under a temporary name and renamed when complete. Encoded prompts have
separate shards, see `jworld.data.records.text_store`.

The manifest's `arrays` list the dtype and shape of every array in a record. "F" stands for the number of latent frames
of the clip, and T for its pixel frames. In a set of several synchronized cameras, whose names and ids the manifest's
`views` list, the first three arrays have a leading axis of the cameras; the others are those of the first camera.

| array | shape and dtype | content |
| --- | --- | --- |
| latent | [F, H, W, C] BF16 | normalized latents |
| image_cond | [1, H, W, C] BF16 | normalized latent of the first frame, encoded alone |
| logvar | [F, H, W, C] F16 | log variance of the posterior with mean `latent` |
| w2c, intrinsics | [F, 4, 4], [F, 3, 3] F32 | cameras |
| action | [F] I32 | WorldPlay's action labels |
| control | [F] I32 | recorded controls, as indices into the manifest's `controls` |
| motion | [T - 1, A] F32 | between frames: motion of a robot's hand, see `jworld.cameras.robots`, or its commands |
| vision_states | [V, Dv] BF16 | encoded first frame |
| prompt | [] I32 | row in the text store |
| view_prompts | [V] I32 | its rows for the cameras, in sets of several |
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
import struct
import types
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from jworld.data.records import shard_files
from jworld.data.records.manifest import FRAMES, MANIFEST
from jworld.data.records.manifest import read as read_manifest
from jworld.utils import files
from jworld.utils.errors import UserError

AUTOENCODER_FILE = "autoencoder.safetensors"
CAMERA_CONVENTION = "opencv_w2c"
SPLITS = ("train", "val")
#: Family of an encoder that a data set does not use.
NO_ENCODER = "none"

# Dtypes that a record may hold, by their names in safetensors.
_DTYPES: dict[str, np.dtype] = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

Record = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """Shape, dtype and logical axes (one name or None per dimension) of one array of a batch.

    `lengths` are the allowed sizes of dimension 1 if batches differ; `shape` has the largest.
    """

    shape: tuple[int, ...]
    dtype: npt.DTypeLike
    axes: tuple[str | None, ...]
    lengths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.axes):
            raise ValueError(f"shape {self.shape} and axes {self.axes} differ in length")


def encode_record(record: Mapping[str, np.ndarray]) -> bytes:
    """Encode arrays by name as the payload of a record."""
    header: dict[str, Any] = {}
    buffers = []
    offset = 0
    # Wide dtypes first, so that every array starts at a multiple of its item size.
    for name in sorted(record, key=lambda name: (-record[name].dtype.itemsize, name)):
        array = record[name]
        if array.dtype not in _NAMES:
            raise ValueError(f"array '{name}' has dtype {array.dtype}, expected one of {', '.join(_DTYPES)}")
        data = array.tobytes()
        end = offset + len(data)
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [offset, end]}
        buffers.append(data)
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *buffers])


def decode_record(payload: bytes | memoryview) -> Record:
    """Decode a payload as read-only arrays by name that share its memory.

    Raises:
      ValueError: the payload is malformed; the message is one sentence.
    """
    if len(payload) < 8:
        raise ValueError(f"payload has {len(payload)} bytes, expected at least 8")
    (length,) = struct.unpack_from("<Q", payload)
    if length > len(payload) - 8:
        raise ValueError(f"header length {length} is beyond the payload's {len(payload)} bytes")
    data = memoryview(payload)[8 + length :]
    arrays = _arrays(bytes(payload[8 : 8 + length]), len(data))
    return {name: np.frombuffer(data[begin:end], dtype).reshape(shape) for name, dtype, shape, begin, end in arrays}


# The clips of a set have few different headers.
@functools.lru_cache(maxsize=64)
def _arrays(text: bytes, size: int) -> tuple[tuple[str, np.dtype, tuple[int, ...], int, int], ...]:
    """Parse a header: name, dtype, shape, begin and end of each array within the `size` bytes after the header."""
    try:
        header = files.parse_json(text)
    except ValueError as error:
        raise ValueError("header is not JSON") from error
    if not isinstance(header, dict):
        raise ValueError("header is not a JSON object")
    arrays = []
    position = 0
    for name, entry in sorted(header.items(), key=lambda item: _offsets(*item)):
        begin, end = _offsets(name, entry)
        dtype, shape = _DTYPES.get(entry.get("dtype")), entry.get("shape")
        if dtype is None:
            raise ValueError(f"array '{name}' has unknown dtype {entry.get('dtype')!r}")
        if not isinstance(shape, list) or not all(type(extent) is int and extent >= 0 for extent in shape):
            raise ValueError(f"array '{name}' has no valid shape: {shape!r}")
        length = math.prod(shape) * dtype.itemsize
        if begin != position or end - begin != length or end > size:
            raise ValueError(
                f"array '{name}' of {length} bytes lies at {begin}..{end}, expected {position}..{position + length} "
                f"of {size}"
            )
        arrays.append((name, dtype, tuple(shape), begin, end))
        position = end
    if position != size:
        raise ValueError(f"arrays end at byte {position} of {size}")
    return tuple(arrays)


def _offsets(name: str, entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(offset) is int for offset in offsets):
        raise ValueError(f"array '{name}' has no valid data_offsets")
    return offsets[0], offsets[1]


class RecordWriter:
    """Writer of the shards of one split, as a context manager; after closing, `shards` is the manifest's entry.

    with RecordWriter(directory, "train") as writer:
        writer.write(record)
    """

    def __init__(self, directory: str | pathlib.Path, split: str, *, shard_bytes: int = 1 << 30) -> None:
        self._directory = pathlib.Path(directory)
        self._split = split
        self._shard_bytes = shard_bytes
        self._files: list[shard_files.RecordFile] = []
        self.shards: list[dict[str, Any]] = []

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        try:
            if self._files:
                self._files[-1].close()
            if kind is None:
                for i, file in enumerate(self._files):
                    name = f"{self._split}-{i:05d}-of-{len(self._files):05d}{shard_files.SUFFIX}"
                    os.replace(file.path, self._directory / name)
                    self.shards.append({"file": name, "records": file.records})
        finally:
            for file in self._files:
                file.path.unlink(missing_ok=True)

    def write(self, record: Mapping[str, np.ndarray]) -> None:
        """Append one record; a full shard is closed first."""
        payload = encode_record(record)
        if self._files and self._files[-1].bytes + len(payload) > self._shard_bytes:
            self._files[-1].close()
            self._open()
        if not self._files:
            self._open()
        self._files[-1].write(payload)

    def _open(self) -> None:
        name = f".{self._split}-{len(self._files):05d}{shard_files.SUFFIX}.tmp"
        self._files.append(shard_files.RecordFile(self._directory / name))


def make_arrays(
    latent_shape: Sequence[int],
    *,
    logvar: bool = False,
    cameras: bool = False,
    action: bool = False,
    control: bool = False,
    motions: tuple[int, int] | None = None,
    vision: tuple[int, int] | None = None,
    prompt: bool = False,
    views: int = 0,
) -> dict[str, dict[str, Any]]:
    """Return a manifest's `arrays`: latents [H, W, C] and image_cond always, the others on request.

    `views` is the number of synchronized cameras, 0 for one. `motions` is the number of motions of a clip and of
    numbers in each; `vision` is (tokens, width) of the encoded first frame.
    """
    leading = [views] if views else []
    chosen: dict[str, tuple[str, list[int | str]]] = {
        "latent": ("BF16", [*leading, FRAMES, *latent_shape]),
        "image_cond": ("BF16", [*leading, 1, *latent_shape]),
    }
    if logvar:
        chosen["logvar"] = ("F16", [*leading, FRAMES, *latent_shape])
    if cameras:
        chosen |= {"w2c": ("F32", [FRAMES, 4, 4]), "intrinsics": ("F32", [FRAMES, 3, 3])}
    for name, included in (("action", action), ("control", control)):
        if included:
            chosen[name] = ("I32", [FRAMES])
    if motions is not None:
        chosen["motion"] = ("F32", [*motions])
    if vision is not None:
        chosen["vision_states"] = ("BF16", [*vision])
    if prompt:
        chosen["prompt"] = ("I32", [])
    if prompt and views:
        chosen["view_prompts"] = ("I32", [views])
    return {name: {"dtype": dtype, "shape": shape} for name, (dtype, shape) in chosen.items()}


def check_manifest(manifest: Mapping[str, Any], expected: Mapping[str, Any], *, path: str | pathlib.Path) -> None:
    """Compare the manifest of the data set at `path` with the values that a model expects; a `UserError` otherwise.

    `expected` maps dotted keys to values, e.g. {"autoencoder.hash": ..., "latent_shape": [6, 8, 32],
    "text_encoder.dim": 64}; "arrays" lists the names of the arrays that records must have. Latents of another
    autoencoder, or latents normalized twice, would train a wrong model without an error.
    """
    expected = {"autoencoder.normalised": True, "views": None, **expected}
    if missing := [name for name in expected.pop("arrays", ()) if name not in manifest["arrays"]]:
        raise UserError(
            f"data set {path} has no {', '.join(missing)}, which the model needs: make it from a format with cameras "
            "and actions (episodes or worldplay), with a text and an image encoder"
        )
    if "w2c" in manifest["arrays"]:
        expected["camera_convention"] = CAMERA_CONVENTION
    for key, value in expected.items():
        found: Any = manifest
        for part in key.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        if isinstance(value, tuple):
            value = list(value)
        if found != value:
            raise UserError(
                f"data set {path}: '{key}' is {found!r}, the model expects {value!r}: make the data set again with the "
                "settings of the model, or pick the config that fits the data"
            )


class RecordSource:
    """Random access to the records of one split, in the order of the manifest.

    `source[i]` is a checked record plus "index" (int32, i). The `UserError` for an absent or corrupt shard, a missing
    or misshapen array, or a clip of fewer than `min_frames` latent frames names the file and the record.
    """

    def __init__(self, directory: str | pathlib.Path, split: str, *, min_frames: int = 1) -> None:
        self.directory = pathlib.Path(directory)
        self.split = split
        self.manifest = read_manifest(directory)
        shards = self.manifest["splits"].get(split)
        if not shards:
            raise UserError(f"{self.directory / MANIFEST}: split '{split}' has no records: make a larger data set")
        self.clips: list[int] = self.manifest["clips"][split]
        self.episodes: list[str] = self.manifest["episodes"][split]
        self._files = [shard["file"] for shard in shards for _ in range(shard["records"])]
        self._reader = shard_files.open_shards(self.directory, shards)
        self._refuse_short_clips(min_frames)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Record:
        try:
            record = decode_record(self._reader[index])
        except ValueError as error:
            raise self._error(index, f" is corrupt ({error})") from error
        expected = self._expected(index)
        for key, (shape, dtype) in expected.items():
            array = record.get(key)
            if array is None:
                raise self._error(index, f": key '{key}' is missing")
            if array.shape != shape or array.dtype != dtype:
                found = f"{array.dtype} {list(array.shape)}, expected {dtype} {list(shape)}"
                raise self._error(index, f": key '{key}' is {found}")
        for key in ("prompt", "view_prompts"):
            if key in expected and not np.all((record[key] >= 0) & (record[key] < len(self.manifest["prompts"]))):
                raise self._error(index, f": prompt {record[key]} is not in the text store")
        return {**{key: record[key] for key in expected}, "index": np.int32(index)}  # type: ignore[dict-item]

    def _error(self, index: int, problem: str) -> UserError:
        name = f"shard {self.directory / self._files[index]}, record {index} ({self.episodes[index]})"
        return UserError(f"{name}{problem}: make the data set again")

    def _expected(self, index: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        frames = self.clips[index]
        return {
            name: (tuple(frames if size == FRAMES else size for size in entry["shape"]), _DTYPES[entry["dtype"]])
            for name, entry in self.manifest["arrays"].items()
        }

    def _refuse_short_clips(self, min_frames: int) -> None:
        short = [i for i, frames in enumerate(self.clips) if frames < min_frames]
        if short:
            i, number = short[0], len(short)
            raise UserError(
                f"clip '{self.episodes[i]}' ({self._files[i]}, record {i}) has {self.clips[i]} latent frames, the "
                f"model needs {min_frames} ({number} of {len(self)} clips are too short): record longer episodes or "
                "lower the window"
            )
