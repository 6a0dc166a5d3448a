"""Resumable writing of record sets, shard by shard.

A shard holds consecutive items of one split, or encoded prompts. Its files are renamed when complete. Then a side file
`DIR/.progress/<shard>.json` records their content; only a shard with a side file counts as written. At the end the
manifest is written and DIR/.progress is deleted. The result does not depend on when or how often the command was
stopped. Several processes can write one set, each a part of the planned shards. The one that finds all of them written
writes the manifest; if two do, they write the same bytes.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import rich.console
import rich.progress
import rich.text

from jworld.data import records
from jworld.data.records import shard_files, statistics
from jworld.utils import files
from jworld.utils.errors import UserError

PROGRESS, REQUEST, REPORT = ".progress", "request.json", "report.json"
#: Split name of shards that hold only prompts.
TEXT = "text"

Loaded = TypeVar("Loaded")


@dataclasses.dataclass(frozen=True)
class Shard:
    """Part `index` of the `count` parts of a split; `items` are indices into the caller's list."""

    split: str
    index: int
    count: int
    items: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.split}-{self.index:05d}-of-{self.count:05d}"

    @property
    def records_file(self) -> str:
        return f"{self.name}{shard_files.SUFFIX}"

    @property
    def text_file(self) -> str:
        return self.records_file if self.split == TEXT else f"{TEXT}-{self.records_file}"


@dataclasses.dataclass
class Result:
    """Content of a finished shard.

    Attributes:
      episodes: name of each clip.
      clips: latent frames of each clip.
      prompts: prompts that were written with it.
      skipped: items that were left out, with reasons.
      files: bytes per file.
      psnr: reconstruction quality of the measured clips, in dB.
      facts: values that its writer needs when the set is finished.
    """

    episodes: list[str] = dataclasses.field(default_factory=list)
    clips: list[int] = dataclasses.field(default_factory=list)
    prompts: list[str] = dataclasses.field(default_factory=list)
    skipped: list[dict[str, str]] = dataclasses.field(default_factory=list)
    files: dict[str, int] = dataclasses.field(default_factory=dict)
    psnr: list[float] = dataclasses.field(default_factory=list)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


def plan(splits: Mapping[str, Sequence[int]], *, items_per_shard: int) -> list[Shard]:
    """Divide the items of every split into shards, in order."""
    shards = []
    for split, items in splits.items():
        parts = [tuple(items[i : i + items_per_shard]) for i in range(0, len(items), items_per_shard)]
        shards += [Shard(split, i, len(parts), part) for i, part in enumerate(parts)]
    return shards


class ShardWriter:
    """Writer of one shard, as a context manager; its files and side file appear if the body ends without an error."""

    def __init__(self, directory: pathlib.Path, shard: Shard) -> None:
        self._directory = directory
        self._shard = shard
        self._files: dict[str, shard_files.RecordFile] = {}
        self.result = Result()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        try:
            for file in self._files.values():
                file.close()
            if kind is None:
                for name, file in self._files.items():
                    os.replace(file.path, self._directory / name)
                    self.result.files[name] = (self._directory / name).stat().st_size
                files.write_json(_side_file(self._directory, self._shard), dataclasses.asdict(self.result))
        finally:
            for file in self._files.values():
                file.path.unlink(missing_ok=True)

    @property
    def bytes(self) -> int:
        """Bytes written so far."""
        return sum(file.bytes for file in self._files.values())

    def write(self, episode: str, record: records.Record) -> None:
        """Append the record of one clip."""
        self._append(self._shard.records_file, record)
        self.result.episodes.append(episode)
        # [F, H, W, C], or [V, F, H, W, C] of several cameras.
        self.result.clips.append(record["latent"].shape[-4])

    def write_prompt(self, name: str, prompt: records.Record) -> None:
        """Append one row to the text store; the manifest's list of prompts gets `name`."""
        self._append(self._shard.text_file, prompt)
        self.result.prompts.append(name)

    def skip(self, item: str, reason: str) -> None:
        """Record an item that is left out."""
        self.result.skipped.append({"item": item, "reason": reason})

    def _append(self, name: str, record: records.Record) -> None:
        if name not in self._files:
            # The process id separates the files of two commands that were started by mistake.
            path = self._directory / PROGRESS / f"{name}.{os.getpid()}.tmp"
            for left_over in path.parent.glob(f"{name}.*.tmp"):
                left_over.unlink()
            self._files[name] = shard_files.RecordFile(path)
        self._files[name].write(records.encode_record(record))


def _side_file(directory: pathlib.Path, shard: Shard) -> pathlib.Path:
    return directory / PROGRESS / f"{shard.name}.json"


class Output:
    """Output folder of a set that is being written.

    `request` holds the settings that determine the set, as JSON values by name. A folder that was started with another
    request, or that holds other files, is refused with a `UserError`. `complete` is True if the set already exists.
    """

    def __init__(self, directory: str | pathlib.Path, request: Mapping[str, Any]) -> None:
        self.directory = pathlib.Path(directory)
        self._request = json.loads(json.dumps(request))
        self.complete = (self.directory / records.MANIFEST).is_file()
        request_file = self.directory / PROGRESS / REQUEST
        # Listed before the request is checked: another process of the same command may start to write in between.
        has_other_files = self.directory.exists() and any(path.name != PROGRESS for path in self.directory.iterdir())
        if self.complete:
            self._compare(records.read_manifest(self.directory).get("request", {}))
            shutil.rmtree(self.directory / PROGRESS, ignore_errors=True)
        elif request_file.is_file():
            self._compare(json.loads(request_file.read_text()))
        elif has_other_files:
            raise UserError(f"output folder {self.directory} holds other files: give another --output")
        else:
            request_file.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(request_file, self._request)

    def _compare(self, previous: Mapping[str, Any]) -> None:
        for key in sorted(previous.keys() | self._request.keys()):
            if previous.get(key) != self._request.get(key):
                raise UserError(
                    f"output folder {self.directory} was started with {key} = {previous.get(key)!r}, this command has "
                    f"{self._request.get(key)!r}: repeat the first command or give another --output"
                )

    def result(self, shard: Shard) -> Result | None:
        """Return the content of a shard, None unless it is completely written."""
        try:
            result = Result(**json.loads(_side_file(self.directory, shard).read_text()))
            sizes = {name: (self.directory / name).stat().st_size for name in result.files}
        except FileNotFoundError:
            return None
        return result if sizes == result.files else None

    def finished(self, shards: Sequence[Shard]) -> list[Result]:
        """Return the results of the leading `shards` that are completely written; the rest must be written."""
        results = []
        for shard in shards:
            result = self.result(shard)
            if result is None:
                break
            results.append(result)
        return results

    def finish(self, shards: Sequence[Shard], results: Sequence[Result], manifest: Mapping[str, Any]) -> None:
        """Write the report and manifest of a set whose shards are all written."""
        parts = list(zip(shards, results, strict=True))
        whole: dict[str, Any] = {
            key: {split: [] for split in records.SPLITS} for key in ("splits", "clips", "episodes")
        }
        for shard, result in parts:
            if shard.split == TEXT:
                continue
            if result.clips:
                whole["splits"][shard.split].append({"file": shard.records_file, "records": len(result.clips)})
            whole["clips"][shard.split] += result.clips
            whole["episodes"][shard.split] += result.episodes
        prompts = [prompt for result in results for prompt in result.prompts]
        text = [{"file": shard.text_file, "records": len(result.prompts)} for shard, result in parts if result.prompts]
        skipped = [item for result in results for item in result.skipped]
        items = sum(len(shard.items) for shard in shards if shard.split != TEXT)
        report = {"items": items, "skipped": skipped}
        files.write_json(self.directory / REPORT, report)
        manifest = {**manifest, "request": self._request, "prompts": prompts, "text": text, **whole}
        records.write_manifest(self.directory, manifest)
        self.complete = True
        shutil.rmtree(self.directory / PROGRESS, ignore_errors=True)


def write(
    output: Output,
    shards: Sequence[Shard],
    results: Sequence[Result],
    *,
    load: Callable[[int], Loaded],
    store: Callable[[ShardWriter, int, Loaded], None],
    name: Callable[[int], str],
    skip_errors: bool,
    title: str,
    console: rich.console.Console | None,
) -> list[Result]:
    """Write the `shards` after the finished ones, whose `results` are given; return the results of all shards.

    `load` reads an item and raises a `UserError` for a bad one. That ends the work, or, with `skip_errors`, is recorded
    under the item's `name`. `store` writes a loaded item.
    """
    results = list(results)
    done = sum(len(shard.items) for shard in shards[: len(results)])
    size = sum(sum(result.files.values()) for result in results)
    total = sum(len(shard.items) for shard in shards)
    for shard in shards[len(results) :]:
        # Later shards may depend on the previous content of a shard that is written again.
        _side_file(output.directory, shard).unlink(missing_ok=True)
    with meter(title, total, done=done, size=size, console=console) as advance:
        for shard in shards[len(results) :]:
            with ShardWriter(output.directory, shard) as writer:
                for item in shard.items:
                    before = writer.bytes
                    try:
                        loaded = load(item)
                    except UserError as error:
                        if not skip_errors:
                            hint = "give --on-error skip to leave out bad items and list them"
                            raise UserError(f"{error}; {hint}") from error
                        writer.skip(name(item), str(error))
                    else:
                        store(writer, item, loaded)
                    advance(writer.bytes - before)
            results.append(writer.result)
    return results


class Advance(Protocol):
    """Callback that counts one item with its bytes and pieces."""

    def __call__(self, size: int, pieces: int = 1) -> None: ...


class _Speed(rich.progress.ProgressColumn):
    def render(self, task: rich.progress.Task) -> rich.text.Text:
        fields = task.fields
        speed = fields["pieces"] / task.elapsed if task.elapsed else 0.0
        return rich.text.Text(f"{speed:.1f} {fields['unit']}/s, {fields['size'] / 1e9:.2f} GB")


@contextlib.contextmanager
def meter(
    title: str,
    total: int,
    *,
    done: int = 0,
    size: int = 0,
    unit: str = "items",
    console: rich.console.Console | None,
) -> Iterator[Advance]:
    """Show a progress bar over `total` items, with pieces (named `unit`) per second and gigabytes."""
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        _Speed(),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, completed=done, size=size, pieces=0, unit=unit)

        def advance(size: int, pieces: int = 1) -> None:
            fields = bar.tasks[task].fields
            bar.update(task, advance=1, size=fields["size"] + size, pieces=fields["pieces"] + pieces)

        yield advance


@dataclasses.dataclass(frozen=True)
class Summary:
    """A complete set: records per split, hours of video, bytes of records and text, and the items left out."""

    directory: pathlib.Path
    manifest: dict[str, Any]
    skipped: list[dict[str, str]]

    @classmethod
    def read(cls, directory: str | pathlib.Path) -> "Summary":
        directory = pathlib.Path(directory)
        report = json.loads((directory / REPORT).read_text())
        return cls(directory, records.read_manifest(directory), report["skipped"])

    @property
    def clips(self) -> dict[str, int]:
        return {split: len(lengths) for split, lengths in self.manifest["clips"].items()}

    @property
    def hours(self) -> float:
        lengths = [frames for clips in self.manifest["clips"].values() for frames in clips]
        frames = sum((length - 1) * self.manifest["temporal_ratio"] + 1 for length in lengths)
        return float(frames / self.manifest["fps"] / 3600)

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.directory.glob(f"*{shard_files.SUFFIX}"))

    @property
    def amount(self) -> str:
        """Size of the set in words, for the user."""
        words = f"{statistics.duration(self.hours)} of video, {statistics.gigabytes(self.bytes)} GB"
        return f"{words}, {statistics.gigabytes(self.bytes / self.hours)} GB per hour of video" if self.hours else words
