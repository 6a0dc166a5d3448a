"""Folders of models that the user names: on disk, shipped with jworld, or in a repository of a Hugging Face hub.

An id is `OWNER/NAME`. It may have a revision, `OWNER/NAME@REVISION`, and end in a sub-folder, `OWNER/NAME/SUB/FOLDER`.
A repository that `config.checkpoint.hub` wrote has the run in its sub-folder `RUN`, next to an export for other
programs.
"""

import fnmatch
import functools
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from jworld.utils import errors, resources

#: Sub-folder of an uploaded repository with the run.
RUN = "jworld"
#: First folders of the paths in documentation and recipes, which are never the owners of repositories.
LOCAL = ("assets", "checkpoints", "configs", "data", "docs", "models", "out", "runs", "tests", "weights")

_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w.-]+))?((?:/[\w-][\w.-]*)*)/?")
# Files that are neither weights nor anything that is read with them.
_OTHERS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.gguf", "*.png", "*.jpg", "*.mp4")
_WEIGHTS = ".safetensors"


def find(path: str | pathlib.Path, *, weights: bool = True) -> pathlib.Path:
    """Return the folder or file `path`, what jworld ships under this name, or the local copy of a hub's repository.

    Without `weights`, only the other files of a repository are downloaded, such as those of a tokenizer. A path that
    exists nowhere and is not an id comes back unchanged, so that an error names what the user wrote.

    Raises:
      UserError: it is an id, and the repository or its sub-folder is neither on the hub nor among earlier downloads.
    """
    found = resources.find(path)
    match = None if found.exists() else _match(str(path))
    return found if match is None else _download(*match, weights)


@functools.lru_cache(maxsize=32)
def find_data(name: str, patterns: tuple[str, ...]) -> pathlib.Path:
    """Return the local copy of those files of a data set on the hub that match the patterns.

    Raises:
      UserError: `name` is not an id, or the data set is neither on the hub nor among earlier downloads.
    """
    match = _match(name)
    if match is None or match[2]:
        raise errors.UserError(f"{name} is absent, expected a folder, or an id OWNER/NAME of the hub: correct the path")
    import huggingface_hub

    api = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    load = functools.partial(
        api.snapshot_download, match[0], repo_type="dataset", revision=match[1], allow_patterns=list(patterns)
    )
    try:
        return pathlib.Path(load())
    except Exception as error:  # exceptions depend on the network library of the hub's client
        try:
            return pathlib.Path(load(local_files_only=True))
        except (OSError, ValueError):
            raise _unreachable(name, error) from error


def _match(text: str) -> tuple[str, str | None, str] | None:
    """Return repository, revision and sub-folder of an id; None for other text, such as a path of this machine."""
    match = _ID.fullmatch(text)
    if match is None:
        return None
    owner = match[1].split("/")[0]
    if owner in LOCAL or pathlib.Path(owner).exists():
        return None
    return match[1], match[2], match[3].strip("/")


@functools.lru_cache(maxsize=32)
def _download(repo: str, revision: str | None, inner: str, weights: bool) -> pathlib.Path:
    import huggingface_hub

    named = f"{repo}{f'@{revision}' if revision else ''}{f'/{inner}' if inner else ''}"
    api = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        names = api.list_repo_files(repo, revision=revision)
        chosen = needed(names, inner)
        if not weights:
            chosen = [name for name in chosen if not name.endswith(_WEIGHTS)]
        if not chosen:
            found = ", ".join(sorted(names)[:8])
            raise errors.UserError(f"{named}: nothing of the repository is in {inner!r}, expected a folder of {found}")
        folder = pathlib.Path(api.snapshot_download(repo, revision=revision, allow_patterns=chosen))
    except errors.UserError:
        raise
    except Exception as error:  # exceptions depend on the network library of the hub's client
        cached = _cached(api, repo, revision)
        if cached is None:
            raise _unreachable(named, error) from error
        folder = cached
    if not inner and (folder / RUN).is_dir():
        return folder / RUN
    return folder / inner


def _unreachable(name: str, error: Exception) -> errors.UserError:
    return errors.UserError(
        f"{name} is neither a folder here nor could it be downloaded from the hub ({errors.one_line(error)}): "
        "check the spelling, log in with `hf auth login` if it is private, or give a folder"
    )


def needed(names: Sequence[str], inner: str = "") -> list[str]:
    """Select the files of a repository to download.

    These are the files below `inner`, or the run of an uploaded repository, or everything. Weights in other formats
    than safetensors are left out where there are safetensors.
    """
    if inner:
        return [name for name in names if name == inner or name.startswith(f"{inner}/")]
    if run := [name for name in names if name.startswith(f"{RUN}/")]:
        return run
    if not any(name.endswith(_WEIGHTS) for name in names):
        return list(names)
    return [name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in _OTHERS)]


def _cached(api: Any, repo: str, revision: str | None) -> pathlib.Path | None:
    """Return an earlier download, for machines that cannot reach the hub."""
    try:
        return pathlib.Path(api.snapshot_download(repo, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        return None
