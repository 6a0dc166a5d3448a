"""Output files of conversions, written completely or not at all and never over other files; and the progress bar."""

import contextlib
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence

import rich.console
import rich.progress

from conversion import torch_files
from jworld.utils import errors, outputs

#: Suffixes of files with weights; any other name is a folder.
FILES = (".safetensors", *torch_files.SUFFIXES)
FIX = "free some space, or choose another --output"


def progress(console: rich.console.Console | None) -> rich.progress.Progress:
    """Make a progress bar in bytes."""
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.DownloadColumn(),
        rich.progress.TransferSpeedColumn(),
        rich.progress.TimeRemainingColumn(),
        console=console,
        disable=console is None,
    )


def check_output(output: pathlib.Path, overwrite: bool, *, is_ours: bool) -> None:
    """Raise a `UserError` unless `output` is new or empty, or may be overwritten and is an earlier output of ours."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise errors.UserError(f"--output {output} exists already: choose another folder, or give --overwrite")
    if not is_ours:
        raise errors.UserError(f"--output {output} contains other files: choose another folder")


def check_space(output: pathlib.Path, needed: int) -> None:
    free = shutil.disk_usage(output.absolute().parent).free
    if needed > free:
        raise errors.UserError(
            f"{output} does not fit on the disk: it needs {needed / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free"
        )


@contextlib.contextmanager
def new_folder(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a folder to fill, which is renamed to `output` if the block succeeds and removed otherwise."""
    with outputs.partial_folder(output, fix=FIX) as partial:
        yield partial
        if output.exists():
            shutil.rmtree(output)
        partial.rename(output)


@contextlib.contextmanager
def destination(
    output: pathlib.Path,
    names: Sequence[str],
    is_ours: Callable[[pathlib.Path], bool],
    *,
    overwrite: bool,
    shared: Sequence[str] = (),
) -> Iterator[tuple[pathlib.Path, list[pathlib.Path]]]:
    """Yield a folder to write `names` to, and the final paths of these files if the block succeeds.

    `output` is a folder to create, or a file with a suffix of `FILES`; then the other files are next to it. `is_ours`
    returns True for a folder that may be replaced, and `shared` has the names of files that may exist next to `output`.
    """
    if output.suffix not in FILES:
        check_output(output, overwrite, is_ours=output.is_dir() and is_ours(output))
        with new_folder(output) as partial:
            yield partial, [output / name for name in names]
        return
    target = output.absolute().parent
    existing = [name for name in names if name not in shared and (target / name).exists()]
    if existing and not overwrite:
        raise errors.UserError(f"{target / existing[0]} exists already: choose another folder, or give --overwrite")
    with outputs.partial_folder(output, fix=FIX) as partial:
        yield partial, [target / name for name in names]
        for name in names:
            (partial / name).replace(target / name)
