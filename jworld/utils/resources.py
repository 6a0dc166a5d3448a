"""Recipes, tokenizer and starter weights that come with jworld, whether it is installed or run from a checkout."""

import pathlib

PACKAGE = pathlib.Path(__file__).parents[1]
#: Folders of a checkout that a wheel holds in `jworld/shipped`; the build in scripts/build_wheel.py copies them there.
FOLDERS = ("assets", "configs")


def root() -> pathlib.Path:
    """Return the folder that holds `FOLDERS`: inside an installed package, otherwise the checkout."""
    installed = PACKAGE / "shipped"
    return installed if installed.is_dir() else PACKAGE.parent


def find(path: str | pathlib.Path) -> pathlib.Path:
    """Return `path` as it is, or what jworld ships under this name if the current folder has nothing there.

    Only relative paths below one of `FOLDERS`, such as "assets/starter", are looked for among the shipped files. A path
    that exists in neither place comes back unchanged, so that an error names what the user wrote.
    """
    path = pathlib.Path(path)
    if path.parts[:1] and path.parts[0] in FOLDERS and not path.exists():
        shipped = root() / path
        return shipped if shipped.exists() else path
    return path
