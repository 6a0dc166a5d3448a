"""Goodput: the share of the time since a run's first launch in which the device worked on steps that counted.

Everything else is loss: start-up, compilation, waiting for data, checkpoints that hold the device up, skipped steps,
steps that a kill undid, and the time between two launches.
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
    """Productive seconds of the steps up to `step`, from the lines of `metrics.jsonl`; between two, in proportion."""
    known = [(0, 0.0), *((row["step"], row["productive_seconds"]) for row in rows if "productive_seconds" in row)]
    steps, seconds = zip(*known, strict=True)
    return float(np.interp(step, steps, seconds))


class Goodput:
    """The account of one run, over all its launches; kept in `goodput.json`, which is complete or absent."""

    def __init__(self, workdir: pathlib.Path, *, launched: float, productive_seconds: float) -> None:
        """Open or begin the account.

        Args:
          workdir: the run's folder.
          launched: `time.time()` when this process began.
          productive_seconds: of the steps that the run resumes after.
        """
        self._path = workdir / FILE
        self.productive_seconds = productive_seconds
        try:
            known = json.loads(self._path.read_text())
            self.first_launch, self.launches = float(known["first_launch"]), int(known["launches"]) + 1
        except (OSError, ValueError, TypeError, KeyError):
            self.first_launch, self.launches = launched, 1

    @property
    def elapsed_seconds(self) -> float:
        """Since the first launch."""
        return max(time.time() - self.first_launch, 1e-9)

    @property
    def share(self) -> float:
        return min(self.productive_seconds / self.elapsed_seconds, 1.0)

    def save(self, step: int) -> None:
        """Write the account as it stands after `step`."""
        values = {
            "first_launch": self.first_launch,
            "launches": self.launches,
            "step": step,
            "productive_seconds": self.productive_seconds,
            "elapsed_seconds": self.elapsed_seconds,
            "goodput": self.share,
        }
        files.write_json(self._path, values)
