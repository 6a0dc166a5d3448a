"""All tries of a slot: its paths, and for folders the files in them."""

import pathlib
import shutil
from collections.abc import Iterator

from mistakes import slots, trial, wrong


def of_slot(slot: slots.Slot) -> list[tuple[str, str]]:
    """Return (member, kind) of every try of a slot; member is "" for the path itself."""
    suffix = pathlib.PurePath(slot.valid).suffix
    found = [("", kind) for kind in wrong.kinds(slot.table, suffix)]
    for member in slot.members:
        kinds = wrong.kinds("file", pathlib.PurePath(member).suffix)
        # A file below a folder has a fixed name, so only its content may be wrong.
        found += [(member, kind) for kind in kinds if kind not in wrong.PATHS or kind in LINKS]
    return [(member, kind) for member, kind in found if (f"{member}: {kind}" if member else kind) not in slot.good]


LINKS = ("loop of links", "link to nothing")


def run(slot: slots.Slot, member: str, kind: str, valid: pathlib.Path, folder: pathlib.Path) -> trial.Outcome:
    """Run one try in an empty folder."""
    place = folder / wrong.MARK
    place.mkdir(parents=True)
    source = valid / slot.valid
    if member:
        path = _copy_without(source, place / source.name, member)
        suffix = pathlib.PurePath(member).suffix
        wrong.kinds("file", suffix)[kind](path / member, source / member)
    else:
        suffix = pathlib.PurePath(slot.valid).suffix
        path = wrong.kinds(slot.table, suffix)[kind](place / source.name, source if source.is_file() else None)
    return trial.run(slot.module, list(_filled(slot.arguments, path, valid)), folder)


def _copy_without(source: pathlib.Path, target: pathlib.Path, member: str) -> pathlib.Path:
    """Link the files of a folder into a new one, except one."""
    target.mkdir()
    for path in source.rglob("*"):
        inside = path.relative_to(source)
        if path.is_dir():
            (target / inside).mkdir(parents=True, exist_ok=True)
        elif str(inside) != member:
            (target / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / inside)
    return target


def _filled(arguments: tuple[str, ...], path: pathlib.Path, valid: pathlib.Path) -> Iterator[str]:
    for text in arguments:
        before, brace, rest = text.partition("{")
        name, _, after = rest.partition("}")
        yield text if not brace else f"{before}{valid / name if name else path}{after}"
