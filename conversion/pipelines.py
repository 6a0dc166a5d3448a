"""Export of a whole pipeline: the network, its scheduler, and the other models of a folder of published weights.

Files of the other models are hard links where the file system permits, which need no space, and copies otherwise.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
import rich.console

from conversion import exporting, families, folders, outputs, schedulers, sources
from conversion.base import Pipeline
from jworld.utils import errors, files

INDEX = "model_index.json"
#: Record of an export, which identifies a folder that may be replaced.
RECORD = "jworld_export.json"
_SCHEDULER = schedulers.FOLDER
_TRANSFORMER = "transformer"


@dataclasses.dataclass(frozen=True)
class Summary:
    """Result of an export of a pipeline.

    Attributes:
      network: the export of the network.
      folder: folder of the network.
      pipeline: kind of the pipeline.
      base: folder of the published weights.
      parts: sub-folders that were taken from there.
      linked: whether all their files are hard links.
    """

    network: exporting.Summary
    folder: pathlib.Path
    pipeline: Pipeline
    base: pathlib.Path
    parts: list[str]
    linked: bool


def export_pipeline(
    path: pathlib.Path,
    output: pathlib.Path,
    base: pathlib.Path | None,
    *,
    dtype: str | None = None,
    step: int | None = None,
    overwrite: bool = False,
    console: rich.console.Console | None = None,
) -> Summary:
    """Write a folder that another program samples from.

    Args:
      path: an imported folder, a run or a released folder.
      output: folder to create.
      base: folder of the published weights with the other models; None for the one that the weights came from.
      dtype: as in `exporting.export_weights`.
      step: as in `exporting.export_weights`.
      overwrite: replace an earlier export of a pipeline.
      console: console for the progress bar.

    Raises:
      UserError: there is no such pipeline, `base` lacks a part, or as in `exporting.export_weights`. No partial output
        remains.
    """
    weights = folders.open_weights(path, step)
    if output.suffix in outputs.FILES:
        raise errors.UserError(f"--output {output}: a pipeline is a folder: choose a name without a suffix")
    if not isinstance(weights, folders.Folder) or weights.family.runs is None or not weights.family.runs.pipelines:
        raise errors.UserError(f"--pipeline: no program reads {weights.family.name} as a pipeline: leave it out")
    base = _base(weights, base)
    if output.absolute() in (base.absolute(), *base.absolute().parents):
        raise errors.UserError(f"--output {output}: is the folder of the published weights: choose another folder")
    index = sources.read_json(base / INDEX) if (base / INDEX).is_file() else None
    pipeline = _choose(weights.family.runs.pipelines, base, index)
    network = pipeline.network(weights.record["variant"] if weights.record else None, weights.config)
    parts = _parts(pipeline, network, base, index)
    outputs.check_output(output, overwrite, is_ours=(output / RECORD).is_file())
    with outputs.new_folder(output) as partial:
        linked = [_place(base / name, partial / name) for name in parts]
        summary = exporting.export_weights(
            path, partial / network, layout=pipeline.layout, dtype=dtype, step=step, console=console
        )
        if pipeline.classes:
            class_name = _write_scheduler(pipeline, weights, base, partial)
            _write(partial / INDEX, _index(pipeline, index, class_name))
        _write(partial / RECORD, {"weights": str(path), "published": str(base), "network": network, "parts": parts})
    files = [output / network / file.name for file in summary.files]
    return Summary(dataclasses.replace(summary, files=files), output / network, pipeline, base, parts, all(linked))


def _base(weights: folders.Folder, given: pathlib.Path | None) -> pathlib.Path:
    """Return the folder of the published weights: the given one, or that of the import which the weights began with."""
    if given is not None:
        if not given.is_dir():
            raise errors.UserError(f"--pipeline {given}: no such folder")
        return given
    record, config = weights.record, weights.config
    seen: set[str] = set()
    while record is None and (start := str(config.get("init_from", ""))) and start not in seen:
        seen.add(start)
        if not folders.is_folder(pathlib.Path(start)):
            break
        origin = folders.Folder(pathlib.Path(start))
        record, config = origin.record, origin.config
    source = pathlib.Path(record["source"]) if record else None
    for folder in () if source is None else (source, *source.parents[:3]):
        if (folder / INDEX).is_file() or (folder / "vae").is_dir():
            return folder
    raise errors.UserError(
        f"{weights.path}: the folder of the published weights is unknown: give it, as in --pipeline models/CogVideoX-2b"
    )


def _choose(pipelines: tuple[Pipeline, ...], base: pathlib.Path, index: Mapping[str, Any] | None) -> Pipeline:
    """Return the pipeline that the folder of published weights has."""
    if index is None:
        return next((each for each in pipelines if not each.classes), pipelines[0])
    known = [each for each in pipelines if index.get("_class_name") in each.classes]
    if not known:
        expected = ", ".join(name for each in pipelines for name in each.classes)
        raise errors.UserError(
            f"{base / INDEX}: _class_name is {index.get('_class_name')!r}, expected one of {expected}: give the folder "
            "of the model that these weights were trained from"
        )
    return known[0]


def _parts(pipeline: Pipeline, network: str, base: pathlib.Path, index: Mapping[str, Any] | None) -> list[str]:
    """Return the sub-folders to take from the folder of the published weights."""
    if pipeline.classes:
        entries = pipeline.parts if index is None else [key for key, value in index.items() if _is_part(value)]
        names = required = [name for name in entries if name not in (_SCHEDULER, _TRANSFORMER)]
        bad = [name for name in names if not name or "/" in name or "\\" in name or name.startswith(".")]
        if bad:
            raise errors.UserError(
                f"{base / INDEX}: the part {bad[0]!r} is not the name of a sub-folder: download it again"
            )
    else:
        names = sorted(child.name for child in base.iterdir() if child.is_dir() and not child.name.startswith("."))
        names = [name for name in names if name not in (_TRANSFORMER, network)]
        before = [] if pipeline.base_network in (None, network) else [str(pipeline.base_network)]
        required = [*pipeline.parts, *before]
        names += before
    missing = [name for name in required if not (base / name).is_dir()]
    if missing:
        raise errors.UserError(
            f"{base}: {', '.join(f'{name}/' for name in missing)} is missing, which the pipeline of {pipeline.title} "
            "needs: download it, too, or give another folder with --pipeline"
        )
    return names


def _is_part(value: object) -> bool:
    """Return True for an entry of model_index.json that names a class; an absent part has [null, null]."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(each, str) for each in value)


def _place(source: pathlib.Path, target: pathlib.Path) -> bool:
    """Link or copy the files of a folder, without hidden ones; -> whether all are links."""
    linked = True
    target.mkdir(parents=True)
    for file in _files(source):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        origin = file.resolve()
        try:
            os.link(origin, place)
        except OSError:
            outputs.check_space(place, origin.stat().st_size)
            files.copy(origin, place)
            linked = False
    return linked


def _files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    for child in sorted(folder.iterdir()):
        if not child.name.startswith("."):
            yield from _files(child) if child.is_dir() else [child]


def _write_scheduler(
    pipeline: Pipeline, weights: folders.Folder, base: pathlib.Path, partial: pathlib.Path
) -> str | None:
    """Write scheduler_config.json with the values of the run; -> the scheduler's class."""
    file = base / _SCHEDULER / schedulers.NAME
    given = sources.read_json(file) if file.is_file() else {}
    content = {**(pipeline.scheduler or {}), **given, **_run_values(weights.family, weights.config)}
    (partial / _SCHEDULER).mkdir()
    _write(partial / _SCHEDULER / schedulers.NAME, content)
    name: str | None = content.get("_class_name")
    return name


def _run_values(family: families.Family, config: ml_collections.ConfigDict) -> dict[str, Any]:
    return family.runs.to_scheduler(config) if family.runs else {}


def _index(pipeline: Pipeline, index: Mapping[str, Any] | None, scheduler: str | None) -> dict[str, Any]:
    """Return model_index.json: the given one, or one with the usual classes."""
    content: dict[str, Any] = {
        "_class_name": pipeline.classes[0],
        **{key: list(x) for key, x in pipeline.parts.items()},
    }
    if index is not None:
        content = dict(index)
    for name in (_TRANSFORMER, _SCHEDULER):
        content.setdefault(name, list(pipeline.parts[name]))
    if scheduler is not None:
        content[_SCHEDULER] = [pipeline.parts[_SCHEDULER][0], scheduler]
    return content


def _write(path: pathlib.Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
