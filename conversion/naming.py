"""Published model of a checkpoint by the name of the folder or file that the user gives, and by no folder above it."""

import pathlib
import re

from conversion import searching

_FILES = (".safetensors", ".json", *searching.TORCH_SUFFIXES)


def own_names(path: pathlib.Path) -> list[str]:
    """Return the names that describe a checkpoint: of the file, if it is one, and of its folder.

    A pipeline's part `transformer/` has the name of the pipeline's folder.
    """
    path = path.absolute()
    names = []
    if path.is_file() or (path.suffix in _FILES and not path.is_dir()):
        names.append(path.name.split(".")[0])
        path = path.parent
    return [*names, (path.parent if path.name == searching.TRANSFORMER else path).name]


def words(path: pathlib.Path, pattern: str) -> list[str]:
    """Return what the pattern's group finds in the first of a checkpoint's own names that has it, each once."""
    for name in own_names(path):
        # A letter or digit next to it would make it part of another word, such as stage10.
        found = re.findall(rf"(?<![a-z0-9]){pattern}(?![a-z0-9])", name.lower())
        if found:
            return list(dict.fromkeys(found))
    return []
