"""Search for the file of weights in a downloaded folder or in the folder of a training run."""

import pathlib
import re
from collections.abc import Iterator

from conversion import messages
from jworld.utils import errors

INDEX_SUFFIX = ".safetensors.index.json"
TORCH_SUFFIXES = (".pt", ".pth", ".bin")
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
#: Sub-folder of a pipeline or of a trainer's checkpoint with the weights.
TRANSFORMER = "transformer"
#: File with the name of the newest checkpoint, which is in the sub-folder `_ITERATIONS`, as Cosmos-Predict2 writes it.
LATEST = "latest_checkpoint.txt"
_RUN, _ITERATIONS = "checkpoints", "model"

# Files of a trainer's state, which are not weights.
_STATES = re.compile(
    r"(optimizer|scheduler|scaler|sampler|training_args|rng_state|random_states|custom_checkpoint)([._-].*)?"
)
_DEPTH = 3  # levels of sub-folders that an error message names


def find_weights(path: pathlib.Path) -> pathlib.Path:
    """Return the file of weights, or the index of a sharded set, at `path` or in the folder `path`.

    A training run of Cosmos-Predict2 gives the checkpoint that its `LATEST` file names. Otherwise an index is preferred
    to single files, and `WEIGHTS_NAME` to other names. The sub-folder `TRANSFORMER` is searched last.

    Raises:
      UserError: there is no such path, it has no weights, or more than one choice.
    """
    if not path.exists():
        raise errors.UserError(f"{path}: no such file or folder")
    if not path.is_dir():
        return path
    newest = _newest(path)
    if newest is not None:
        return newest
    found = candidates(path)
    if len(found) > 1:
        names = [file.name for file in found]
        raise errors.UserError(
            f"{path}: has {len(found)} files of weights ({messages.listed(names)}); give one of them"
        )
    if found:
        return found[0]
    if (path / TRANSFORMER).is_dir():
        return find_weights(path / TRANSFORMER)
    others = [str(folder.relative_to(path)) for folder in _folders(path, _DEPTH) if candidates(folder)]
    raise errors.UserError(
        f"{path}: no weights in this folder; expected a .safetensors file, a *{INDEX_SUFFIX}, a .pt file, {LATEST}, or "
        f"a sub-folder {TRANSFORMER}/ with one of these"
        + (f"; weights are in its sub-folders {messages.listed(others, 8)}: give one of them" if others else "")
    )


def candidates(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the files of weights directly in `folder` that have the best kind of name."""
    names = sorted(child.name for child in folder.iterdir() if child.is_file())
    singles = [name for name in names if name.endswith(".safetensors")]
    kinds = (
        [name for name in names if name.endswith(INDEX_SUFFIX)],
        [WEIGHTS_NAME] if WEIGHTS_NAME in singles else singles,
        [name for name in names if name.endswith(TORCH_SUFFIXES) and not _STATES.fullmatch(name)],
    )
    return [folder / name for name in next((kind for kind in kinds if kind), [])]


def _newest(folder: pathlib.Path) -> pathlib.Path | None:
    """Return the newest checkpoint of a run of Cosmos-Predict2, given its folder or one of the two levels below it."""
    holders = [folder, folder / _RUN, *([folder.parent] if folder.name == _ITERATIONS else [])]
    pointer = next((holder / LATEST for holder in holders if (holder / LATEST).is_file()), None)
    if pointer is None:
        return None
    try:
        name = pointer.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise errors.UserError(f"{pointer}: cannot be read ({error}); give the checkpoint itself") from error
    if not name or name in (".", "..") or any(letter in name for letter in "/\\\0\n"):
        raise errors.UserError(
            f"{pointer}: holds {messages.shown(name)}, expected the name of one file; give the file itself"
        )
    file = pointer.parent / _ITERATIONS / name
    if not file.is_file():
        raise errors.UserError(
            f"{pointer}: names {messages.shown(name)}, but {file} does not exist; download that file, too, or give "
            "another one"
        )
    return file


def _folders(folder: pathlib.Path, depth: int) -> Iterator[pathlib.Path]:
    """Yield the sub-folders of some levels, without hidden ones and links."""
    for child in sorted(folder.iterdir()) if depth else ():
        if child.is_dir() and not child.is_symlink() and not child.name.startswith("."):
            yield child
            yield from _folders(child, depth - 1)
