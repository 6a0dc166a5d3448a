"""Log of a run: progress lines, rows of metrics for the writers, and reports of skipped steps."""

import contextlib
import dataclasses
import datetime
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import rich.console
import rich.progress

from jworld.training import goodput, profiling, rates, writers
from jworld.training.clock import StepClock, StepTime
from jworld.utils import compilation, errors, launch_time, ranges

FILE = writers.FILE
read = writers.read

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Settings of the log (`config.log`).

    Attributes:
      interval: steps between two lines.
      watchdog_minutes: minutes without a finished step after which the run prints all stacks and ends; 0: never.
      wandb: "off", "offline" (written to the run's folder for `wandb sync`) or "online".
    """

    interval: ranges.Count = 10
    watchdog_minutes: ranges.Minutes = 30.0
    wandb: writers.WandbMode = "off"

    def __post_init__(self) -> None:
        ranges.check(self)


@dataclasses.dataclass(frozen=True)
class _Pending:
    """Step whose metrics are still on the device."""

    step: int
    metrics: Mapping[str, jax.Array]
    indices: np.ndarray | None
    wait_seconds: float
    is_first: bool  # of this launch


def _json_number(value: Any) -> int | float | None:
    """Convert a scalar to a JSON number; None for NaN and infinity, which JSON lacks."""
    number = np.asarray(value).item()
    return number if math.isfinite(number) else None


class ProgressLog:
    """Log of one run that receives every step, but fetches metrics from the device only every `log.interval` steps.

    Only process 0 prints and writes: a live line if stdout is a terminal, plain lines elsewhere.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        start_step: int,
        steps: int,
        log: LogConfig,
        work: rates.Work,
        skip_limit: int = 0,
        profile: range = range(0),
        on_step: Callable[[], None] = lambda: None,
        config: Mapping[str, Any] | None = None,
        console: rich.console.Console | None = None,
    ) -> None:
        """Log steps `start_step + 1` to `steps`; lines of an earlier launch after `start_step` are dropped.

        Args:
          work: amount of work in a step.
          profile: steps to trace.
          on_step: called by another thread when a step has ended on the device.
          config: of the run, for W&B.
        """
        self._steps, self._interval, self._work, self._skip_limit = steps, log.interval, work, skip_limit
        self._pending: list[_Pending] = []
        self._last_metrics: Mapping[str, jax.Array] = {}
        self._profile = profiling.Profile(workdir, profile, start_step=start_step, last_step=steps)
        self._console = console or rich.console.Console()
        self._writes = jax.process_index() == 0
        self._live: rich.progress.Progress | None = None
        self._writers: list[writers.Writer] = []
        if self._writes:
            self._open(workdir, start_step, log, config or {})
        self._clock = StepClock(on_step)
        self._cache_reads: compilation.CacheReads | None = compilation.CacheReads()
        self._begin = self._dispatched = time.perf_counter()
        self._waited = 0.0

    def _open(self, workdir: pathlib.Path, start_step: int, log: LogConfig, config: Mapping[str, Any]) -> None:
        workdir.mkdir(parents=True, exist_ok=True)
        done = goodput.productive_seconds(read(workdir), start_step)
        self._goodput = goodput.Goodput(workdir, launched=launch_time.LAUNCHED, productive_seconds=done)
        self._goodput.save(start_step)
        if log.wandb != "off":
            first = self._goodput.first_launch
            self._writers.append(writers.WeightsAndBiases(workdir, log.wandb, first_launch=first, config=config))
        self._writers += [writers.JsonLines(workdir, start_step), writers.TensorBoard(workdir, start_step)]
        if self._console.is_terminal:
            self._live = rich.progress.Progress(
                rich.progress.BarColumn(20), rich.progress.TextColumn("{task.description}"), console=self._console
            )
            self._task = self._live.add_task("", total=self._steps, completed=start_step)
            self._live.start()

    def __enter__(self) -> "ProgressLog":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def message(self, text: str) -> None:
        """Print a separate line."""
        if self._writes:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def extra(self, step: int, values: Mapping[str, float]) -> None:
        """Write further measurements of a step, and print them in one line."""
        if self._writes:
            row: Row = {"step": step} | {name: _json_number(value) for name, value in values.items()}
            for writer in self._writers:
                writer.write(row)
            shown = (f"{name} {value:.4g}" for name, value in values.items() if "_t0." not in name)
            self.message(" | ".join([f"step {step}/{self._steps}", *shown]))

    def media(self, step: int, media: writers.Media) -> None:
        """Show a sample of a step where the writers can."""
        for writer in self._writers:
            writer.show(step, media)

    @contextlib.contextmanager
    def excluded(self) -> Iterator[None]:
        """Leave the time of the body out of the step times; the steps before it are completed first."""
        jax.block_until_ready(self._last_metrics)
        began = time.perf_counter()
        try:
            yield
        finally:
            self._begin += time.perf_counter() - began

    @contextlib.contextmanager
    def waiting(self, step: int) -> Iterator[None]:
        """Measure the wait for a step's batch; the step is dispatched right after this context."""
        self._profile.before(step, self._last_metrics)
        began = time.perf_counter()
        yield
        self._dispatched = time.perf_counter()
        self._waited = self._dispatched - began

    def step(self, step: int, metrics: Mapping[str, jax.Array], *, indices: np.ndarray | None = None) -> None:
        """Register the step that was just dispatched; `step` counts from 1.

        Args:
          indices: [B] positions of the batch's records in their split, reported if the step is skipped.

        Raises:
          UserError: `skip_limit` steps in a row were skipped.
        """
        is_first = self._cache_reads is not None
        self._pending.append(_Pending(step, metrics, indices, self._waited, is_first))
        self._last_metrics = metrics
        if is_first:
            self._first_step(metrics)
        else:
            self._clock.add(metrics["loss"], dispatched=self._dispatched)
        if report := self._profile.after(step, metrics):
            self.message(report)
        if step % self._interval == 0 or step == self._steps:
            self._flush()

    def _first_step(self, metrics: Mapping[str, jax.Array]) -> None:
        """Wait for the first step, so that no later step time includes the compilation; report the start-up times."""
        assert self._cache_reads is not None
        # The dispatching call returned when the program was compiled.
        compiled = time.perf_counter()
        self._clock.add(metrics["loss"], dispatched=compiled)
        jax.block_until_ready(metrics)
        self._begin = time.perf_counter()
        compiling, step = compiled - self._dispatched, self._begin - compiled
        total = time.time() - launch_time.LAUNCHED
        start = total - self._waited - compiling - step
        read_back = " (read from the cache)" if self._cache_reads.all_read else ""
        self.message(
            f"first step after {total:.1f} s: start-up {start:.1f} s, first batch {self._waited:.1f} s, "
            f"compilation {compiling:.1f} s{read_back}, step {step:.1f} s"
        )
        self._cache_reads.close()
        self._cache_reads = None

    def close(self) -> None:
        """Log the remaining steps and release the files."""
        try:
            self._flush()
        finally:
            self._profile.close()
            self._clock.close()
            if self._cache_reads:
                self._cache_reads.close()
            if self._live:
                self._live.stop()
            for writer in self._writers:
                writer.close()

    def _flush(self) -> None:
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        values = jax.device_get([dict(item.metrics) for item in pending])
        times = self._clock.take()
        now = time.perf_counter()
        elapsed, self._begin = now - self._begin, now
        skipped = [i for i, value in enumerate(values) if value.get("skipped_in_row", 0) > 0]
        for i in skipped:
            self.message(
                f"step {pending[i].step} skipped: loss {float(values[i]['loss']):.3g}, gradient norm "
                f"{float(values[i]['grad_norm']):.3g}, batch indices {_list(pending[i].indices)}"
            )
        if self._writes:
            self._goodput.productive_seconds += sum(time.busy for i, time in enumerate(times) if i not in skipped)
            self._write(pending, values, times, elapsed)
            self._goodput.save(pending[-1].step)
        worst = max((int(values[i]["skipped_in_row"]) for i in skipped), default=0)
        if self._skip_limit and worst >= self._skip_limit:
            last = pending[skipped[-1]]
            raise errors.UserError(
                f"{worst} steps in a row were skipped, the last at step {last.step} with the batch indices "
                f"{_list(last.indices)}, and config.optimizer.skip_limit is {self._skip_limit}: lower "
                "config.optimizer.learning_rate or raise config.optimizer.skip_norm, then run again"
            )

    def _write(
        self, pending: list[_Pending], values: list[dict[str, Any]], times: list[StepTime], elapsed: float
    ) -> None:
        row: Row = {"step": pending[-1].step} | {name: _json_number(x) for name, x in values[-1].items()}
        good = [float(value["loss"]) for value in values if value.get("skipped_in_row", 0) == 0]
        row["loss_mean"] = _json_number(np.mean(good)) if good else None
        untimed = int(pending[0].is_first)
        waits = [item.wait_seconds for item in pending[untimed:]]
        row |= rates.of_interval(times[untimed:], waits, elapsed, self._work) | rates.device_memory()
        row |= {"productive_seconds": self._goodput.productive_seconds, "goodput": self._goodput.share}
        for writer in self._writers:
            writer.write(row)
        line = self._line(row)
        if self._live:
            self._live.update(self._task, completed=row["step"], description=line)
        else:
            self.message(line)

    def _line(self, row: Row) -> str:
        shown = {name: "-" if row.get(name) is None else f"{row[name]:.4g}" for name in ("loss_mean", "grad_norm")}
        parts = [f"step {row['step']}/{self._steps}", f"loss {shown['loss_mean']}", f"grad norm {shown['grad_norm']}"]
        if "step_seconds" in row:
            parts += [f"{row['step_seconds']:.3f} s/step", f"{row['examples_per_second']:.1f} examples/s"]
            parts += [f"MFU {row['mfu']:.1%}"] if "mfu" in row else []
            parts += [f"{row['memory_peak_bytes'] / 2**30:.1f} GiB"] if "memory_peak_bytes" in row else []
            remaining = datetime.timedelta(seconds=round((self._steps - row["step"]) * row["step_seconds"]))
            parts += [f"data wait {100 * row['data_wait']:.1f}%", f"ETA {remaining}"]
        parts += [f"skipped {row['skipped']}"] if row.get("skipped") else []
        return " | ".join(parts)

    @property
    def summary(self) -> str:
        """Goodput since the first launch, as text; empty if this process does not write."""
        if not self._writes:
            return ""
        count = self._goodput.launches
        since = "its launch" if count == 1 else f"the first of {count} launches"
        return f"goodput {self._goodput.share:.0%} since {since}"


def _list(indices: np.ndarray | None) -> str:
    return "unknown" if indices is None else str(np.asarray(indices).tolist())
