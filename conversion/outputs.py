"""What conversions write: complete or not at all, never over somebody else's files; and how they show progress."""

import contextlib
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence

import rich.console
import rich.progress

from conversion import torch_files
from jworld.utils import errors

#: Suffixes of files with weights; any other name is that of a folder.
FILES = (".safetensors", *torch_files.SUFFIXES)


def progress(console: rich.console.Console | None) -> rich.progress.Progress:
    """A bar in bytes."""
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
    """An existing folder is replaced only when asked for, and only if it holds what would be written again."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise errors.UserError(f"--output {output} exists already: choose another folder, or give --overwrite")
    if not is_ours:
        raise errors.UserError(f"--output {output} holds files of something else: choose another folder")


def check_space(output: pathlib.Path, needed: int) -> None:
    free = shutil.disk_usage(output.absolute().parent).free
    if needed > free:
        raise errors.UserError(
            f"{output} does not fit on the disk: it needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free"
        )


@contextlib.contextmanager
def partial_folder(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder beside `output` to fill, which disappears when the block ends: its files are moved out before."""
    partial = output.with_name(f".{output.name}.partial")
    made = [parent for parent in partial.parents if not parent.exists()]
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
    except OSError as error:
        raise errors.UserError(
            f"{output} could not be written ({error}): free some space, or choose another"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):  # unless it holds the output
                parent.rmdir()


@contextlib.contextmanager
def new_folder(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to fill, which becomes `output` in one step when the block ends well, and else disappears."""
    with partial_folder(output) as partial:
        yield partial
        if output.exists():
            shutil.rmtree(output)
        partial.rename(output)


@contextlib.contextmanager
def destination(
    output: pathlib.Path, names: Sequence[str], is_ours: Callable[[pathlib.Path], bool], *, overwrite: bool
) -> Iterator[tuple[pathlib.Path, list[pathlib.Path]]]:
    """(folder to write `names` into, where these files end up when the block ends well).

    `output` is a folder to create, or a file with a suffix of `FILES`, and then the others lie beside it; `is_ours`
    says whether a folder may be replaced.
    """
    if output.suffix not in FILES:
        check_output(output, overwrite, is_ours=output.is_dir() and is_ours(output))
        with new_folder(output) as partial:
            yield partial, [output / name for name in names]
        return
    target = output.absolute().parent
    if not overwrite and (there := [name for name in names if (target / name).exists()]):
        raise errors.UserError(f"{target / there[0]} exists already: choose another folder, or give --overwrite")
    with partial_folder(output) as partial:
        yield partial, [target / name for name in names]
        for name in names:
            (partial / name).replace(target / name)
