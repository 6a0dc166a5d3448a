"""Sets of records that are written shard by shard: a command that was killed goes on where it was.

A shard holds consecutive items of one split, or encoded prompts. Its files get their names when they are complete, then
its side file `DIR/.progress/<shard>.json` says what they hold: only a shard with a side file counts as written. The
manifest comes last, and DIR/.progress goes. Nothing depends on when or how often the command was stopped, so the result
is always the same. Several processes can write one set, each its part of the planned shards; the one that finds all of
them written writes the manifest, and if two do, they write the same.
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
#: The split of shards that hold prompts alone.
TEXT = "text"

Loaded = TypeVar("Loaded")


@dataclasses.dataclass(frozen=True)
class Shard:
    """Part `index` of the `count` parts of a split; `items` are positions in the caller's list."""

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
    """What a finished shard holds: its clips, the prompts that came with it, what was left out, and bytes per file.

    `psnr`: how well clips of it can be reconstructed (dB), as far as that was measured. `facts`: what its writer wants
    to know of it when the set is finished.
    """

    episodes: list[str] = dataclasses.field(default_factory=list)
    clips: list[int] = dataclasses.field(default_factory=list)
    prompts: list[str] = dataclasses.field(default_factory=list)
    skipped: list[dict[str, str]] = dataclasses.field(default_factory=list)
    files: dict[str, int] = dataclasses.field(default_factory=dict)
    psnr: list[float] = dataclasses.field(default_factory=list)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


def plan(splits: Mapping[str, Sequence[int]], *, items_per_shard: int) -> list[Shard]:
    """Cut the items of every split into shards, in order."""
    shards = []
    for split, items in splits.items():
        parts = [tuple(items[i : i + items_per_shard]) for i in range(0, len(items), items_per_shard)]
        shards += [Shard(split, i, len(parts), part) for i, part in enumerate(parts)]
    return shards


class ShardWriter:
    """Writes one shard; a context manager. Its files and its side file appear when the body ends without an error."""

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
        """Written so far."""
        return sum(file.bytes for file in self._files.values())

    def write(self, episode: str, record: records.Record) -> None:
        """Append the record of one clip."""
        self._append(self._shard.records_file, record)
        self.result.episodes.append(episode)
        self.result.clips.append(len(record["latent"]))

    def write_prompt(self, name: str, prompt: records.Record) -> None:
        """Append one row to the text store; the manifest's list of prompts gets `name`."""
        self._append(self._shard.text_file, prompt)
        self.result.prompts.append(name)

    def skip(self, item: str, reason: str) -> None:
        """Note an item that is left out."""
        self.result.skipped.append({"item": item, "reason": reason})

    def _append(self, name: str, record: records.Record) -> None:
        if name not in self._files:
            # The process id keeps two commands that were started by mistake from writing into one file.
            path = self._directory / PROGRESS / f"{name}.{os.getpid()}.tmp"
            for left_over in path.parent.glob(f"{name}.*.tmp"):
                left_over.unlink()
            self._files[name] = shard_files.RecordFile(path)
        self._files[name].write(records.encode_record(record))


def _side_file(directory: pathlib.Path, shard: Shard) -> pathlib.Path:
    return directory / PROGRESS / f"{shard.name}.json"


class Output:
    """The folder of a set that is being written.

    `request` is what makes the set: JSON values by name. A folder that was begun with another request, or that holds
    other files, is refused with a `UserError`. `complete` says whether the set is there already.
    """

    def __init__(self, directory: str | pathlib.Path, request: Mapping[str, Any]) -> None:
        self.directory = pathlib.Path(directory)
        self._request = json.loads(json.dumps(request))
        self.complete = (self.directory / records.MANIFEST).is_file()
        begun = self.directory / PROGRESS / REQUEST
        # Listed before it is asked who began: another process of the same command may be writing already.
        strange = self.directory.exists() and any(path.name != PROGRESS for path in self.directory.iterdir())
        if self.complete:
            self._compare(records.read_manifest(self.directory).get("request", {}))
            shutil.rmtree(self.directory / PROGRESS, ignore_errors=True)
        elif begun.is_file():
            self._compare(json.loads(begun.read_text()))
        elif strange:
            raise UserError(f"output folder {self.directory} holds other files: give another --output")
        else:
            begun.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(begun, self._request)

    def _compare(self, begun: Mapping[str, Any]) -> None:
        for key in sorted(begun.keys() | self._request.keys()):
            if begun.get(key) != self._request.get(key):
                raise UserError(
                    f"output folder {self.directory} was begun with {key} = {begun.get(key)!r}, this command has "
                    f"{self._request.get(key)!r}: repeat the first command or give another --output"
                )

    def result(self, shard: Shard) -> Result | None:
        """What a shard holds that is written and whole."""
        try:
            result = Result(**json.loads(_side_file(self.directory, shard).read_text()))
            sizes = {name: (self.directory / name).stat().st_size for name in result.files}
        except FileNotFoundError:
            return None
        return result if sizes == result.files else None

    def finished(self, shards: Sequence[Shard]) -> list[Result]:
        """The results of those leading `shards` that are written and whole; what follows them has to be written."""
        results = []
        for shard in shards:
            result = self.result(shard)
            if result is None:
                break
            results.append(result)
        return results

    def finish(self, shards: Sequence[Shard], results: Sequence[Result], manifest: Mapping[str, Any]) -> None:
        """Write report and manifest of a set whose shards are all written."""
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
    """Write those of `shards` that follow the finished ones, whose `results` are given; -> the results of all.

    `load` reads an item and raises `UserError` for a bad one, which ends the work or, with `skip_errors`, is noted
    under the item's `name`; `store` writes what was loaded of an item.
    """
    results = list(results)
    done = sum(len(shard.items) for shard in shards[: len(results)])
    size = sum(sum(result.files.values()) for result in results)
    total = sum(len(shard.items) for shard in shards)
    for shard in shards[len(results) :]:
        # What comes after a shard that is written again may build on what it held before.
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
                            raise UserError(f"{error}; --on-error skip leaves bad items out and lists them") from error
                        writer.skip(name(item), str(error))
                    else:
                        store(writer, item, loaded)
                    advance(writer.bytes - before)
            results.append(writer.result)
    return results


class Advance(Protocol):
    """Counts one item that had so many bytes and pieces."""

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
    """A progress bar over `total` items, with pieces (called `unit`) per second and gigabytes."""
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
        return frames / self.manifest["fps"] / 3600

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.directory.glob(f"*{shard_files.SUFFIX}"))

    @property
    def amount(self) -> str:
        """How much it is, in words."""
        words = f"{statistics.duration(self.hours)} of video, {statistics.gigabytes(self.bytes)} GB"
        return f"{words}, {statistics.gigabytes(self.bytes / self.hours)} GB per hour of video" if self.hours else words
