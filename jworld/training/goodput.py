"""Goodput: the share of the time since a run's first launch in which the device worked on steps that counted.

The rest is loss: start-up, compilation, waiting for data, checkpoints that block the device, skipped steps, steps
undone by a kill, and the time between two launches.
"""

import json
import pathlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jworld.utils import files

FILE = "goodput.json"


def productive_seconds(rows: Iterable[Mapping[str, Any]], step: int) -> float:
    """Return the productive seconds of the steps up to `step`, interpolated between lines of `metrics.jsonl`."""
    points = [(0, 0.0), *((row["step"], row["productive_seconds"]) for row in rows if "productive_seconds" in row)]
    steps, seconds = zip(*points, strict=True)
    return float(np.interp(step, steps, seconds))


class Goodput:
    """Time account of one run over all its launches, stored atomically in `goodput.json`."""

    def __init__(self, workdir: pathlib.Path, *, launched: float, productive_seconds: float) -> None:
        """Open the account, or create it.

        Args:
          workdir: the run's folder.
          launched: `time.time()` when this process started.
          productive_seconds: of the steps that the run resumes after.
        """
        self._path = workdir / FILE
        self.productive_seconds = productive_seconds
        try:
            stored = json.loads(self._path.read_text())
            self.first_launch, self.launches = float(stored["first_launch"]), int(stored["launches"]) + 1
        except (OSError, ValueError, TypeError, KeyError):
            self.first_launch, self.launches = launched, 1

    @property
    def elapsed_seconds(self) -> float:
        """Seconds since the first launch."""
        return max(time.time() - self.first_launch, 1e-9)

    @property
    def share(self) -> float:
        return min(self.productive_seconds / self.elapsed_seconds, 1.0)

    def save(self, step: int) -> None:
        """Write the account after `step`."""
        values = {
            "first_launch": self.first_launch,
            "launches": self.launches,
            "step": step,
            "productive_seconds": self.productive_seconds,
            "elapsed_seconds": self.elapsed_seconds,
            "goodput": self.share,
        }
        files.write_json(self._path, values)
