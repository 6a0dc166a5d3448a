"""The manifest of a set of records: written with a checksum, and read with every field checked.

Sets of version 4 have no checksum and are read without it.
"""

import math
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from jworld.data.records import shard_files
from jworld.utils import checksums, files, limits
from jworld.utils.errors import UserError

FORMAT, VERSION = "jworld-records", 5
#: The version of sets without a checksum.
WITHOUT_CHECKSUM = 4
MANIFEST = "manifest.json"
#: Symbol of the number of latent frames in the shapes of arrays.
FRAMES = "F"
#: Names of the dtypes that arrays may have, those of safetensors.
DTYPES = ("BF16", "F16", "F32", "F64", "I32", "I64", "U8", "BOOL")

_FIX = "make the data set again"
#: Name of a file in the folder of the set: no folder, not hidden.
_SHARD = re.compile(rf"\w[\w.-]*{re.escape(shard_files.SUFFIX)}", re.ASCII)
_MOST_PIXELS, _MOST_RATIO, _MOST_RATE, _MOST_WIDTH = 1 << 16, 64, 1000, 1 << 20


def write(directory: str | pathlib.Path, manifest: Mapping[str, Any]) -> None:
    """Write DIR/manifest.json atomically, with format, version and checksum."""
    value = {"format": FORMAT, "version": VERSION, **manifest}
    checksums.write_json(pathlib.Path(directory) / MANIFEST, {**value, "version": VERSION})


def read(directory: str | pathlib.Path) -> dict[str, Any]:
    """Read DIR/manifest.json without its checksum, and check every field that readers need.

    Raises:
      UserError: it is absent, damaged, of another format, or has a wrong field, which the sentence names.
    """
    path = pathlib.Path(directory) / MANIFEST
    content = files.read_bytes(path, fix="make the data set with python -m jworld.precompute")
    try:
        manifest = files.parse_json(content)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): {_FIX}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else files.describe(manifest)
        raise UserError(f"{path}: format is {found!r:.60}, expected '{FORMAT}': give a folder of records")
    version = manifest.get("version")
    if type(version) is not int or version not in (VERSION, WITHOUT_CHECKSUM):
        raise UserError(f"{path}: version is {version!r:.60}, expected {VERSION}: {_FIX}")
    if checksums.KEY in manifest or version != WITHOUT_CHECKSUM:
        checksums.verify(path, content, manifest, fix=_FIX)
    _check_fields(path, manifest)
    return manifest


def _check_fields(path: pathlib.Path, manifest: Mapping[str, Any]) -> None:
    def refuse(key: str, expected: str) -> None:
        found = repr(manifest[key])[:80] if key in manifest else "missing"
        raise UserError(f"{path}: '{key}' is {found}, expected {expected}: {_FIX}")

    for key, (expected, fits) in _FIELDS.items():
        if key not in manifest or not fits(manifest[key]):
            refuse(key, expected)
    arrays, shape = manifest["arrays"], manifest["latent_shape"]
    leading = []
    if (views := manifest.get("views")) is not None:
        if not _is_views(views):
            refuse("views", "names and ids of several cameras")
        leading = [len(views["names"])]
    if arrays.get("latent", {"shape": [*leading, FRAMES, *shape]})["shape"] != [*leading, FRAMES, *shape]:
        refuse("latent_shape", f"that of the array 'latent', {arrays['latent']['shape'][-3:]}")
    for section in ("autoencoder", "cut"):
        entry = manifest.get(section)
        ratio = entry.get("temporal_ratio") if isinstance(entry, dict) else None
        if ratio is not None and ratio != manifest["temporal_ratio"]:
            refuse("temporal_ratio", f"that of '{section}', {ratio!r:.20}")
    prompts = len(manifest["prompts"])
    if prompts == 0 and "prompt" in arrays:
        refuse("prompts", "at least the negative prompt")
    if sum(shard["records"] for shard in manifest["text"]) != prompts:
        raise UserError(f"{path}: 'text' does not hold the {prompts} prompts: {_FIX}")
    for split, shards in manifest["splits"].items():
        total = sum(shard["records"] for shard in shards)
        for key in ("clips", "episodes"):
            if len(manifest[key].get(split, [])) != total:
                raise UserError(f"{path}: '{key}.{split}' does not list the {total} records: {_FIX}")


def _is_count(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_sizes(value: Any, count: int, most: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(_is_count(size, 1, most) for size in value)


def _is_views(value: Any) -> bool:
    names, ids = (value.get(key) if isinstance(value, dict) else None for key in ("names", "ids"))
    if not isinstance(names, list) or not isinstance(ids, list) or len(names) != len(ids) or len(names) < 2:
        return False
    return all(isinstance(name, str) for name in names) and all(_is_count(number, 0, _MOST_RATIO) for number in ids)


def _is_rate(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and 0 < value <= _MOST_RATE


def _is_array(entry: Any) -> bool:
    if not isinstance(entry, dict) or entry.get("dtype") not in DTYPES or not isinstance(entry.get("shape"), list):
        return False
    return all(size == FRAMES or _is_count(size, 0, limits.RECORD_AXIS) for size in entry["shape"])


def _is_shards(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(shard, dict)
        and isinstance(shard.get("file"), str)
        and _SHARD.fullmatch(shard["file"]) is not None
        and _is_count(shard.get("records"), 1, limits.RECORD_AXIS)
        for shard in value
    )


def _is_encoder(value: Any) -> bool:
    numbers = [value.get(key, 0) for key in ("dim", "tokens")] if isinstance(value, dict) else [None]
    return all(number is None or _is_count(number, 0, _MOST_WIDTH) for number in numbers) and isinstance(value, dict)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _each(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return the check of an object whose values all fit."""
    return lambda value: isinstance(value, dict) and all(fits(entry) for entry in value.values())


_ENCODER = "an object with sizes that are not negative"
#: Key -> what it holds, and whether a value is that.
_FIELDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "arrays": ("a valid dtype and shape for every array", _each(_is_array)),
    "autoencoder": ("an object", lambda value: isinstance(value, dict)),
    "latent_shape": ("height, width and channels", lambda value: _is_sizes(value, 3, _MOST_PIXELS)),
    "temporal_ratio": (f"an integer from 1 to {_MOST_RATIO}", lambda value: _is_count(value, 1, _MOST_RATIO)),
    "fps": (f"a number above 0, at most {_MOST_RATE}", _is_rate),
    "image_size": ("width and height in pixels", lambda value: _is_sizes(value, 2, _MOST_PIXELS)),
    "text_encoder": (_ENCODER, _is_encoder),
    "glyph_encoder": (_ENCODER, _is_encoder),
    "vision_encoder": (_ENCODER, _is_encoder),
    "prompts": ("a list of texts", _is_names),
    "text": ("a list of shards in the folder of the set", _is_shards),
    "splits": ("a list of shards in the folder of the set for every split", _each(_is_shards)),
    "clips": (
        "a list of positive lengths for every split",
        _each(lambda value: isinstance(value, list) and all(_is_count(x, 1, limits.RECORD_AXIS) for x in value)),
    ),
    "episodes": ("a list of names for every split", _each(_is_names)),
}
