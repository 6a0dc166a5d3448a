"""Validation and statistics of a set of records; every record and encoded prompt is read once."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import rich.console

from jworld.cameras import actions, poses
from jworld.data import records
from jworld.data.records import shard_files, shards, text_store
from jworld.data.records.statistics import Statistics
from jworld.utils import indices
from jworld.utils.errors import UserError

TOLERANCE = 1e-3
REDRAWS = 64


@dataclasses.dataclass(frozen=True)
class Finding:
    """A problem: its location (`record` counts through the split, or through the text store) and reason."""

    file: str
    record: int | None
    name: str
    reason: str

    def __str__(self) -> str:
        place = self.file if self.record is None else f"{self.file}, record {self.record} ({self.name})"
        return f"{place}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Result:
    """Result of a check; `clips` are some valid records by name, evenly spread over the set."""

    manifest: dict[str, Any]
    findings: list[Finding]
    notes: list[str]
    statistics: Statistics
    clips: dict[str, records.Record]
    records: int
    prompts: int


class _Shard(records.RecordSource):
    """Source of one shard's records; a `RecordSource` cannot open a split with a damaged shard."""

    def __init__(self, directory: pathlib.Path, split: str, manifest: dict[str, Any], number: int) -> None:
        shard = manifest["splits"][split][number]
        self.first = sum(before["records"] for before in manifest["splits"][split][:number])
        own = slice(self.first, self.first + shard["records"])
        self.directory, self.split, self.manifest = directory, split, manifest
        self.clips, self.episodes = manifest["clips"][split][own], manifest["episodes"][split][own]
        self._files = [shard["file"]] * shard["records"]
        self._reader = shard_files.open_shards(directory, [shard])


def validate(
    directory: str | pathlib.Path,
    *,
    recorded_labels: bool = False,
    keep: int = 0,
    check_autoencoder: Callable[[dict[str, Any]], None] = lambda manifest: None,
    console: rich.console.Console | None = None,
) -> Result:
    """Check the set in `directory`; a folder without a readable manifest is a `UserError`.

    Args:
      directory: folder of the set.
      recorded_labels: action labels may differ from those of the cameras; a manifest can also set this.
      keep: number of valid clips to return for plots; otherwise memory does not grow with the set.
      check_autoencoder: raises a `UserError` if the autoencoder differs from its entry in the manifest.
      console: where to show progress.
    """
    directory = pathlib.Path(directory)
    manifest = records.read_manifest(directory)
    checker = _Checker(directory, manifest, recorded_labels=recorded_labels, keep=keep)
    checker.check_manifest(check_autoencoder)
    with shards.meter("checking", checker.records + checker.prompts, console=console) as advance:
        for number in range(len(manifest["text"])):
            checker.check_text(number, advance)
        for split, entries in manifest["splits"].items():
            for number in range(len(entries)):
                checker.check_shard(split, number, advance)
    return checker.result()


class _Checker:
    """Checks of all files of a set, which collect findings and statistics."""

    def __init__(self, directory: pathlib.Path, manifest: dict[str, Any], *, recorded_labels: bool, keep: int) -> None:
        self._directory = directory
        self._manifest = manifest
        self._recorded_labels = recorded_labels or manifest.get("action_labels") == "recorded"
        self._findings: list[Finding] = []
        self._statistics = Statistics(directory, manifest)
        self._used = {0}
        self._clips: dict[str, records.Record] = {}
        self.records = sum(len(clips) for clips in manifest["clips"].values())
        self.prompts = len(manifest["prompts"])
        self._checked = 0
        self._examples = set(indices.evenly(self.records, keep))

    def check_manifest(self, check_autoencoder: Callable[[dict[str, Any]], None]) -> None:
        """Check what the manifest alone records: conventions, and the autoencoder of the latents."""
        manifest = self._manifest
        try:
            records.check_manifest(manifest, {"views": manifest.get("views")}, path=self._directory)
            check_autoencoder(manifest)
        except UserError as error:
            self._findings.append(Finding(records.MANIFEST, None, "", str(error)))

    def check_text(self, number: int, advance: Callable[[int], None]) -> None:
        """Check the prompts of one file of the text store."""
        shard = self._manifest["text"][number]
        first = sum(before["records"] for before in self._manifest["text"][:number])
        try:
            store = text_store.TextStore(self._directory, self._manifest | {"text": [shard]})
        except UserError as error:
            self._unreadable(shard, error, advance)
            return
        for i in range(shard["records"]):
            row, size = first + i, 0
            try:
                prompt = store.prompt(i)
            except UserError as error:
                reasons = [_reason(error, f"text store of {self._directory}, prompt {i}")]
            else:
                size = _bytes(prompt)
                reasons = prompt_problems(prompt, self._manifest)
                if not reasons:
                    self._statistics.add_prompt(prompt)
            self._add(shard["file"], row, str(self._manifest["prompts"][row]), reasons)
            advance(size)

    def check_shard(self, split: str, number: int, advance: Callable[[int], None]) -> None:
        """Check the records of one shard."""
        shard = self._manifest["splits"][split][number]
        try:
            source = _Shard(self._directory, split, self._manifest, number)
        except UserError as error:
            self._unreadable(shard, error, advance)
            self._checked += shard["records"]
            return
        for i, name in enumerate(source.episodes):
            size = 0
            try:
                record = source[i]
            except UserError as error:
                place = f"shard {self._directory / shard['file']}, record {i} ({name})"
                reasons = [_reason(error, place)]
            else:
                size = _bytes(record)
                for key in ("prompt", "view_prompts"):
                    self._used.update(np.ravel(record.get(key, ())).astype(int).tolist())
                reasons = record_problems(record, recorded_labels=self._recorded_labels)
                if not reasons:
                    self._statistics.add_record(split, source.clips[i], record)
                    if self._checked in self._examples:
                        self._clips[f"{split} {name}"] = record
            self._add(shard["file"], source.first + i, name, reasons)
            self._checked += 1
            advance(size)

    def _add(self, file: str, record: int, name: str, reasons: Sequence[str]) -> None:
        self._findings += [Finding(file, record, name, reason) for reason in reasons]

    def _unreadable(self, shard: Mapping[str, Any], error: UserError, advance: Callable[[int], None]) -> None:
        reason = f"{error} (its {shard['records']} records could not be checked)"
        self._findings.append(Finding(shard["file"], None, "", reason))
        for _ in range(shard["records"]):
            advance(0)

    def result(self) -> Result:
        return Result(
            self._manifest,
            self._findings,
            self._notes(),
            self._statistics,
            self._clips,
            self.records,
            self.prompts,
        )

    def _notes(self) -> list[str]:
        notes = []
        if unused := sorted(set(range(self.prompts)) - self._used):
            shown = ", ".join(map(str, unused[:10])) + (", ..." if len(unused) > 10 else "")
            notes.append(f"{len(unused)} of {self.prompts} prompts are used by no clip: rows {shown}")
        names = [set(episodes) for episodes in self._manifest["episodes"].values()]
        if common := sorted(set.intersection(*names)) if len(names) > 1 else []:
            notes.append(f"{len(common)} names of clips occur in every split, for example '{common[0]}'")
        listed = {shard["file"] for shard in self._manifest["text"]}
        listed |= {shard["file"] for entries in self._manifest["splits"].values() for shard in entries}
        if unlisted := sorted({path.name for path in self._directory.glob(f"*{shard_files.SUFFIX}*")} - listed):
            notes.append(f"{len(unlisted)} files are not in the manifest and are not read, for example {unlisted[0]}")
        return notes


def _reason(error: UserError, place: str) -> str:
    """Return the error message without the location, which the finding already names."""
    return str(error).removeprefix(place).removeprefix(":").strip()


def _bytes(record: records.Record) -> int:
    return sum(array.nbytes for array in record.values())


def prompt_problems(prompt: records.Record, manifest: Mapping[str, Any]) -> list[str]:
    """Return the problems of an encoded prompt, one sentence each."""
    problems = _finite_problems(prompt)
    for key, encoder in (("text_states", "text_encoder"), ("glyph_states", "glyph_encoder")):
        found, width = prompt[key].shape[1] if key in prompt else 0, manifest[encoder].get("dim", 0)
        if found != width:
            problems.append(f"'{key}' has width {found}, expected {width} as in the manifest")
    if not len(prompt["text_states"]) and manifest["text_encoder"].get("family") != records.NO_ENCODER:
        problems.append("'text_states' has no tokens, expected at least one")
    return problems


def record_problems(record: records.Record, *, recorded_labels: bool = False) -> list[str]:
    """Return the problems of the values of a record with correct shapes and dtypes, one sentence each."""
    problems = _finite_problems(record)
    finite = not problems
    if finite and "w2c" in record:
        problems += _camera_problems(record["w2c"])
    rigid = not problems
    if finite and "intrinsics" in record:
        problems += _intrinsics_problems(record["intrinsics"])
    if "action" in record:
        labels = record["action"]
        outside = (labels < 0) | (labels >= actions.NUM_LABELS)
        if outside.any():
            problems.append(
                f"'action' of {_frames(outside)} is {labels[outside.argmax()]}, expected 0 to {actions.NUM_LABELS - 1}"
            )
        elif rigid and "w2c" in record and not recorded_labels:
            problems += _label_problems(labels, record["w2c"])
    return problems


def _finite_problems(record: records.Record) -> list[str]:
    problems = []
    for name, array in record.items():
        # numpy's kind of bfloat16 is "V", not "f".
        if array.dtype.kind not in "fV" or not array.size:
            continue
        bad = array.size - int(np.count_nonzero(np.isfinite(array)))
        if bad:
            problems.append(f"'{name}' has {bad} of {array.size} numbers that are NaN or infinite")
    return problems


def _camera_problems(w2c: np.ndarray) -> list[str]:
    wrong = ~poses.are_rigid(w2c)
    if not wrong.any():
        return []
    return [f"'w2c' of {_frames(wrong)} is not rigid: expected rotation and translation, last row 0 0 0 1"]


def _intrinsics_problems(intrinsics: np.ndarray) -> list[str]:
    problems = []
    focal, center = intrinsics[:, (0, 1), (0, 1)], intrinsics[:, :2, 2]
    rest = intrinsics[:, (0, 1, 2, 2, 2), (1, 0, 0, 1, 2)] - np.array([0, 0, 0, 0, 1], np.float32)
    form = np.abs(rest).max(axis=1) > TOLERANCE
    if form.any():
        problems.append(f"'intrinsics' of {_frames(form)} are not of the form fx 0 cx, 0 fy cy, 0 0 1")
    if (wrong := focal.min(axis=1) <= 0).any():
        problems.append(f"'intrinsics' of {_frames(wrong)} have a focal length that is not positive")
    if (wrong := np.abs(center - 0.5).max(axis=1) >= 0.5).any():
        problems.append(
            f"'intrinsics' of {_frames(wrong)} have a principal point outside the image: divide them by the image size"
        )
    return problems


def _label_problems(labels: np.ndarray, w2c: np.ndarray) -> list[str]:
    """Return a problem if action labels differ from those of the cameras.

    Labels are computed before cameras are rounded to float32, so a motion at the edge of a class can fall on either
    side. A label is therefore correct if any cameras with these rounded values have it.
    """

    def of_cameras(w2c: np.ndarray) -> np.ndarray:
        return actions.labels_from_poses(w2c, min_translation=actions.TRAINING_MIN_TRANSLATION)

    own = of_cameras(w2c)
    wrong = own != labels
    rng, rounding = np.random.default_rng(0), np.abs(np.spacing(w2c)).astype(np.float64)
    for _ in range(REDRAWS):
        if not wrong.any():
            return []
        wrong &= of_cameras(w2c + rounding * rng.uniform(-0.5, 0.5, w2c.shape)) != labels
    if not wrong.any():
        return []
    first = wrong.argmax()
    found, expected = (actions.label_name(int(values[first])) for values in (labels, own))
    return [
        f"'action' of {_frames(wrong)} is '{found}', expected '{expected}' by its cameras: if the labels were recorded "
        "and not computed from the cameras, give --recorded-labels"
    ]


def _frames(wrong: np.ndarray) -> str:
    """Name the first wrong frame and the number of others: "latent frame 3 (and 4 more)"."""
    more = int(wrong.sum()) - 1
    return f"latent frame {wrong.argmax()}" + (f" (and {more} more)" if more else "")
