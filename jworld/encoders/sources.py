"""Files of encoders in local folders or Hugging Face repositories.

A flat folder holds config, weights and tokenizer together. A diffusers pipeline has sub-folders, the parts
("text_encoder", "tokenizer").
"""

import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from jworld.utils import files
from jworld.utils.errors import UserError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SMALL_FILES = (".json", ".model", ".txt")
_HASHED_BYTES = 2**20


def open_folder(source: str, *, parts: Sequence[str] = ()) -> pathlib.Path:
    """Return the local folder of `source`, or download the `needed` files of a hub repository."""
    folder = pathlib.Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(source):
        raise UserError(f"encoder folder {source} is absent: give a folder that exists or a hub id like owner/name")
    import huggingface_hub as hub

    try:
        names = hub.list_repo_files(source)
        return pathlib.Path(hub.snapshot_download(source, allow_patterns=needed(names, parts)))
    except Exception as error:  # exceptions depend on the network library of the hub's client
        cached = _cached(hub, source)
        if cached is not None:
            return cached
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"encoder {source} is neither a folder here nor could it be downloaded from the hub ({reason}): check the "
            "path, or download it elsewhere and give its folder"
        ) from error


def _cached(hub: Any, source: str) -> pathlib.Path | None:
    """Return an earlier download, for machines that cannot reach the hub."""
    try:
        return pathlib.Path(hub.snapshot_download(source, local_files_only=True))
    except (OSError, ValueError):
        return None


def part(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Return the sub-folder `name`, or the folder itself if it is flat."""
    return folder / name if (folder / name).is_dir() else folder


def needed(names: Iterable[str], parts: Sequence[str] = ()) -> list[str]:
    """Select the files of an encoder from those of a folder, sorted, with the weights in one format only."""
    names = list(names)
    chosen = [name for name in names if name.count("/") == 1 and name.split("/")[0] in parts]
    chosen = chosen or [name for name in names if "/" not in name]
    weights = ".safetensors" if any(name.endswith(".safetensors") for name in chosen) else ".bin"
    return sorted(name for name in chosen if name.endswith((*_SMALL_FILES, weights)))


def fingerprint(folder: pathlib.Path, *, parts: Sequence[str] = ()) -> str:
    """Return the hash of an encoder's files (see `hash_files`)."""
    found = [*folder.glob("*"), *folder.glob("*/*")]
    names = [path.relative_to(folder).as_posix() for path in found if path.is_file()]
    return hash_files(folder, needed(names, parts))


def hash_files(folder: pathlib.Path, names: Sequence[str]) -> str:
    """Return the SHA-256 of each file's name, size, first and last MiB.

    This distinguishes weights of many GB without reading them completely.
    """
    digest = hashlib.sha256()
    for name in names:
        path = folder / name
        size = path.stat().st_size
        digest.update(json.dumps([name, size]).encode())
        with path.open("rb") as file:
            digest.update(file.read(_HASHED_BYTES))
            file.seek(max(size - _HASHED_BYTES, 0))
            digest.update(file.read())
    return digest.hexdigest()


def read_json(path: pathlib.Path, *, fix: str) -> dict[str, Any]:
    """Read the object in a JSON file; `fix` ends the sentence of an error."""
    value: dict[str, Any] = files.read_json(path, fix=fix)
    return value


def check_model_type(folder: pathlib.Path, *, expected: Sequence[str], kind: str) -> None:
    """Raise a `UserError` unless the folder's config.json has one of the `expected` model types of `kind`."""
    config = read_json(folder / "config.json", fix=f"give {kind} the folder of a downloaded model")
    found = config.get("model_type")
    if found not in expected:
        raise UserError(
            f"{folder / 'config.json'} has model_type {found!r}, {kind} expects {' or '.join(map(repr, expected))}: "
            "give another folder or another encoder"
        )
