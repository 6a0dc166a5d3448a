"""The run's log: a progress line, `metrics.jsonl`, TensorBoard, and the report of skipped steps."""

import dataclasses
import datetime
import json
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import rich.console
import rich.progress
import tensorboardX

from jworld import errors

FILE = "metrics.jsonl"


@dataclasses.dataclass(frozen=True)
class _Pending:
    """One step whose metrics are still on the device."""

    step: int
    metrics: Mapping[str, jax.Array]
    indices: np.ndarray | None
    wait_seconds: float


def _resume_file(path: pathlib.Path, start_step: int) -> None:
    """Drop the lines after `start_step`, and a last line that a killed run left half-written."""
    kept = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            if json.loads(line)["step"] <= start_step:
                kept.append(line + "\n")
        except ValueError:
            continue
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(path)


def _json_number(value: Any) -> int | float | None:
    """A scalar for JSON, which has no NaN and no infinity."""
    number = np.asarray(value).item()
    return number if math.isfinite(number) else None


class ProgressLog:
    """Log of one run, fed with every step; it fetches metrics from the device only every `log_every` steps.

    Prints and writes on the first process alone: a live line where stdout is a terminal, plain lines elsewhere.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        start_step: int,
        steps: int,
        log_every: int,
        batch_size: int,
        skip_limit: int = 0,
        console: rich.console.Console | None = None,
    ) -> None:
        """Log steps `start_step + 1` to `steps`; lines of an earlier run after `start_step` are dropped."""
        self._steps, self._log_every = steps, log_every
        self._batch_size, self._skip_limit = batch_size, skip_limit
        self._pending: list[_Pending] = []
        self._compiled = False
        self._untimed = 0  # steps since the last line that its duration leaves out
        self._begin = time.perf_counter()
        self._console = console or rich.console.Console()
        self._writes = jax.process_index() == 0
        self._live: rich.progress.Progress | None = None
        if not self._writes:
            return
        workdir.mkdir(parents=True, exist_ok=True)
        _resume_file(workdir / FILE, start_step)
        self._file = (workdir / FILE).open("a")
        self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1)
        if self._console.is_terminal:
            self._live = rich.progress.Progress(
                rich.progress.BarColumn(20), rich.progress.TextColumn("{task.description}"), console=self._console
            )
            self._task = self._live.add_task("", total=steps, completed=start_step)
            self._live.start()

    def __enter__(self) -> "ProgressLog":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def message(self, text: str) -> None:
        """Print a line of its own."""
        if self._writes:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def step(
        self,
        step: int,
        metrics: Mapping[str, jax.Array],
        *,
        indices: np.ndarray | None = None,
        wait_seconds: float = 0.0,
    ) -> None:
        """Note the step that was just dispatched; `step` counts from 1.

        Args:
          indices: [B] positions of the batch's records in their split, named if the step is skipped.
          wait_seconds: how long the loop waited for the batch.

        Raises:
          UserError: `skip_limit` steps in a row were skipped.
        """
        self._pending.append(_Pending(step, metrics, indices, wait_seconds))
        due = step % self._log_every == 0 or step == self._steps
        if not self._compiled:
            # Once, so that no later step time has the compilation in it.
            jax.block_until_ready(metrics)
            self._compiled = True
            now = time.perf_counter()
            self.message(f"compiled in {now - self._begin:.1f} s")
            if not due:
                self._begin = now
                self._untimed = 1
        if due:
            self._flush()

    def close(self) -> None:
        """Log what is left and release the files."""
        try:
            self._flush()
        finally:
            if self._live:
                self._live.stop()
            if self._writes:
                self._file.close()
                self._board.close()

    def _flush(self) -> None:
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        values = jax.device_get([dict(item.metrics) for item in pending])
        now = time.perf_counter()
        elapsed, self._begin = max(now - self._begin, 1e-9), now
        skipped = [i for i, value in enumerate(values) if value.get("skipped_in_row", 0) > 0]
        for i in skipped:
            self.message(
                f"step {pending[i].step} skipped: gradient norm {float(values[i]['grad_norm']):.3g}, "
                f"batch indices {_list(pending[i].indices)}"
            )
        self._write(pending, values, elapsed)
        worst = max((int(values[i]["skipped_in_row"]) for i in skipped), default=0)
        if self._skip_limit and worst >= self._skip_limit:
            last = pending[skipped[-1]]
            raise errors.UserError(
                f"{worst} steps in a row were skipped, the last at step {last.step} with the batch indices "
                f"{_list(last.indices)}, and config.optimizer.skip_limit is {self._skip_limit}: lower "
                "config.optimizer.learning_rate or raise config.optimizer.skip_norm, then run again"
            )

    def _write(self, pending: list[_Pending], values: list[dict[str, Any]], elapsed: float) -> None:
        if not self._writes:
            return
        step = pending[-1].step
        row: dict[str, Any] = {"step": step} | {name: _json_number(x) for name, x in values[-1].items()}
        good = [float(value["loss"]) for value in values if value.get("skipped_in_row", 0) == 0]
        row["loss_mean"] = _json_number(np.mean(good)) if good else None
        timed, self._untimed = pending[self._untimed :] or pending, 0
        row["step_seconds"] = elapsed / len(timed)
        row["examples_per_second"] = self._batch_size * len(timed) / elapsed
        row["data_wait"] = min(sum(item.wait_seconds for item in timed) / elapsed, 1.0)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in row.items():
            if name != "step" and value is not None:
                self._board.add_scalar(name, value, step)
        line = self._line(row)
        if self._live:
            self._live.update(self._task, completed=step, description=line)
        else:
            self.message(line)

    def _line(self, row: Mapping[str, Any]) -> str:
        remaining = datetime.timedelta(seconds=round((self._steps - row["step"]) * row["step_seconds"]))
        shown = {name: "-" if row.get(name) is None else f"{row[name]:.4g}" for name in ("loss_mean", "grad_norm")}
        skipped = f" | skipped {row['skipped']}" if row.get("skipped") else ""
        return (
            f"step {row['step']}/{self._steps} | loss {shown['loss_mean']} | grad norm {shown['grad_norm']} | "
            f"{row['step_seconds']:.3f} s/step | {row['examples_per_second']:.1f} examples/s | "
            f"data wait {100 * row['data_wait']:.1f}% | ETA {remaining}{skipped}"
        )


def _list(indices: np.ndarray | None) -> str:
    return "unknown" if indices is None else str(np.asarray(indices).tolist())


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, oldest first."""
    return [json.loads(line) for line in (workdir / FILE).read_text().splitlines()]
