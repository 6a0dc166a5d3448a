"""Statistics of a set of records, accumulated record by record in constant memory."""

import collections
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rich.table

from jworld.cameras import actions
from jworld.data import records

# Fits a terminal of 80 characters.
CHANNELS_PER_ROW = 6
BAR = 30  # characters


class ChannelMoments:
    """Running mean and standard deviation per channel of arrays [..., C]."""

    def __init__(self) -> None:
        self.count = 0
        self._mean: np.ndarray = np.zeros(0)
        self._squares: np.ndarray = np.zeros(0)

    def add(self, values: np.ndarray) -> None:
        """Add finite values [..., C].

        Sums of squares about the mean are merged, since plain sums of squares would lose digits.
        """
        rows = values.reshape(-1, values.shape[-1]).astype(np.float32)
        mean = rows.mean(axis=0, dtype=np.float64)
        squares = np.square(rows - mean.astype(np.float32)).sum(axis=0, dtype=np.float64)
        if not self.count:
            self.count, self._mean, self._squares = len(rows), mean, squares
            return
        total = self.count + len(rows)
        offset = mean - self._mean
        self._mean = self._mean + offset * len(rows) / total
        self._squares = self._squares + squares + np.square(offset) * self.count * len(rows) / total
        self.count = total

    @property
    def mean(self) -> np.ndarray:
        """Mean per channel, float64 [C]."""
        return self._mean

    @property
    def std(self) -> np.ndarray:
        """Standard deviation per channel, float64 [C]."""
        return np.sqrt(self._squares / max(self.count, 1))


@dataclasses.dataclass
class Split:
    """Valid clips of one split: lengths in latent frames, number of video frames, and bytes of all files."""

    lengths: list[int] = dataclasses.field(default_factory=list)
    video_frames: int = 0
    bytes: int = 0

    def __add__(self, other: "Split") -> "Split":
        return Split(self.lengths + other.lengths, self.video_frames + other.video_frames, self.bytes + other.bytes)


class Statistics:
    """Statistics of the valid records and prompts of the set in `directory`."""

    def __init__(self, directory: pathlib.Path, manifest: Mapping[str, Any]) -> None:
        self._manifest = manifest
        self.splits = {split: Split(bytes=_size(directory, files)) for split, files in manifest["splits"].items()}
        self.text_bytes = _size(directory, manifest["text"])
        self.latents = ChannelMoments()
        self.actions: collections.Counter[int] = collections.Counter()
        self.text_tokens: list[int] = []
        self.glyph_tokens: list[int] = []

    def add_record(self, split: str, frames: int, record: records.Record) -> None:
        """Count a clip of `frames` latent frames; arrays that the record lacks are left out."""
        self.splits[split].lengths.append(frames)
        self.splits[split].video_frames += (frames - 1) * self._manifest["temporal_ratio"] + 1
        if "latent" in record:
            self.latents.add(record["latent"])
        if "action" in record:
            self.actions.update(record["action"].tolist())

    def add_prompt(self, prompt: records.Record) -> None:
        self.text_tokens.append(len(prompt["text_states"]))
        self.glyph_tokens.append(len(prompt.get("glyph_states", ())))

    def hours(self, split: Split) -> float:
        fps: float = self._manifest["fps"]
        return split.video_frames / fps / 3600

    def action_names(self) -> dict[str, int]:
        """Return the number of latent frames per action, the most frequent first."""
        return {actions.label_name(label): count for label, count in self.actions.most_common()}

    def numbers(self) -> dict[str, Any]:
        """Return all statistics as JSON values."""
        return {
            "latent_shape": self._manifest["latent_shape"],
            "fps": self._manifest["fps"],
            "splits": {name: self._split_numbers(split) for name, split in self.splits.items()},
            "text_bytes": self.text_bytes,
            "latent_mean": self.latents.mean.tolist(),
            "latent_std": self.latents.std.tolist(),
            "actions": self.action_names(),
            "prompts": len(self.text_tokens),
            "text_tokens": _spread(self.text_tokens),
            "glyph_tokens": _spread(self.glyph_tokens),
        }

    def _split_numbers(self, split: Split) -> dict[str, Any]:
        return {
            "clips": len(split.lengths),
            "latent_frames": sum(split.lengths),
            "clip_length": _spread(split.lengths),
            "hours": self.hours(split),
            "bytes": split.bytes,
        }

    def tables(self) -> list[rich.table.Table]:
        """Return tables of clips, prompts, latents and actions, as far as the set has them."""
        tables = [self._clips_table(), self._prompts_table()]
        if self.latents.count:
            tables.append(self._latents_table())
        if self.actions:
            tables.append(self._actions_table())
        return tables

    def _clips_table(self) -> rich.table.Table:
        table = rich.table.Table("split", title="clips")
        for column in ("clips", "latent frames", "per clip", "length", "GB", "GB/hour"):
            table.add_column(column, justify="right")
        rows = dict(self.splits)
        if len(rows) > 1:
            rows["total"] = sum(self.splits.values(), Split())
        for name, split in rows.items():
            hours = self.hours(split)
            table.add_row(
                name,
                f"{len(split.lengths):,}",
                f"{sum(split.lengths):,}",
                _range(split.lengths),
                duration(hours),
                gigabytes(split.bytes),
                gigabytes(split.bytes / hours) if hours else "-",
            )
        return table

    def _prompts_table(self) -> rich.table.Table:
        table = rich.table.Table("prompts", title="text")
        for column in ("text tokens", "glyph tokens", "GB"):
            table.add_column(column, justify="right")
        table.add_row(
            f"{len(self.text_tokens):,}",
            _range(self.text_tokens),
            _range(self.glyph_tokens),
            gigabytes(self.text_bytes),
        )
        return table

    def _latents_table(self) -> rich.table.Table:
        mean, std = self.latents.mean, self.latents.std
        whole = f"over all channels {mean.mean():+.2f}±{np.sqrt(np.mean(std**2 + mean**2) - mean.mean() ** 2):.2f}"
        title = f"latents by channel: mean±standard deviation, {whole}"
        table = rich.table.Table(title=title, show_header=False, box=None, padding=(0, 1, 0, 0))
        for first in range(0, len(mean), CHANNELS_PER_ROW):
            row = range(first, min(first + CHANNELS_PER_ROW, len(mean)))
            table.add_row(f"{first}-{row[-1]}:", *(f"{mean[i]:+.2f}±{std[i]:.2f}" for i in row))
        return table

    def _actions_table(self) -> rich.table.Table:
        table = rich.table.Table("action", title="actions")
        for column in ("latent frames", "share"):
            table.add_column(column, justify="right")
        table.add_column("")
        total, most = self.actions.total(), max(self.actions.values())
        for name, count in self.action_names().items():
            table.add_row(name, f"{count:,}", f"{count / total:.1%}", "█" * round(BAR * count / most) or "▏")
        return table


def _size(directory: pathlib.Path, files: Sequence[Mapping[str, Any]]) -> int:
    paths = [directory / entry["file"] for entry in files]
    return sum(path.stat().st_size for path in paths if path.is_file())


def duration(hours: float) -> str:
    """Format a duration in hours, minutes or seconds, whichever is the largest unit with a value of at least 1."""
    for size, unit in ((1, "hours"), (60, "minutes")):
        if hours * size >= 1:
            return f"{hours * size:,.2f} {unit}"
    return f"{hours * 3600:.1f} seconds"


def gigabytes(size: float) -> str:
    """Format bytes as gigabytes, with two decimals or, below 0.1, two digits."""
    size /= 1e9
    return f"{size:,.2f}" if size >= 0.1 else f"{size:.2g}"


def _spread(values: Sequence[int]) -> dict[str, float]:
    if not values:
        return {}
    return {"least": min(values), "median": float(np.median(values)), "most": max(values)}


def _range(values: Sequence[int]) -> str:
    """Format minimum, maximum and median in words."""
    if not values:
        return "-"
    if min(values) == max(values):
        return f"{values[0]:,}"
    return f"{min(values):,} to {max(values):,}, median {np.median(values):,.0f}"
