"""Throughput, utilization and memory of a run."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from jworld.training.clock import StepTime

Rates = dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """Work of one training step on all devices together, and their peak rate; None if unknown.

    Attributes:
      examples, tokens: of a step.
      flops: useful floating-point operations of a step.
      peak_flops: operations per second.
    """

    examples: int
    tokens: int | None = None
    flops: float | None = None
    peak_flops: float | None = None

    def rates(self, step_seconds: float) -> Rates:
        """Return the rates per second, and the model FLOPs utilization (MFU).

        MFU = flops / (step_seconds * peak_flops): operations of the model only, forward and backward, without
        recomputation and optimizer, relative to the published dense bfloat16 peak, in wall-clock time.
        """
        rates = {"examples_per_second": self.examples / step_seconds}
        if self.tokens is not None:
            rates["tokens_per_second"] = self.tokens / step_seconds
        if self.flops is not None:
            rates["model_flops_per_second"] = self.flops / step_seconds
            if self.peak_flops is not None:
                rates["mfu"] = rates["model_flops_per_second"] / self.peak_flops
        return rates


def of_interval(times: Sequence[StepTime], waits: Sequence[float], elapsed: float, work: Work) -> Rates:
    """Return the rates of the steps between two log lines; empty without a step.

    Args:
      times: of each step on the device.
      waits: seconds that the loop waited for the batch of each step.
      elapsed: wall-clock seconds from the end of the previous interval to the end of the last step.
      work: of a step.
    """
    if not times:
        return {}
    p50, p95 = np.percentile([time.busy for time in times], [50, 95])
    seconds = max(elapsed / len(times), 1e-9)
    # A wait costs only the time in which the device is idle; earlier steps hide the rest.
    starved = sum(min(time.idle, wait) for time, wait in zip(times, waits, strict=False))
    return {
        "step_seconds": seconds,
        "step_seconds_p50": float(p50),
        "step_seconds_p95": float(p95),
        **work.rates(seconds),
        "data_wait": min(starved / (seconds * len(times)), 1.0),
    }


def device_memory() -> Rates:
    """Return bytes in use and their peak, on the fullest device of this process; empty where devices do not report."""
    stats = [found for device in jax.local_devices() if (found := device.memory_stats())]
    columns = {"memory_bytes": "bytes_in_use", "memory_peak_bytes": "peak_bytes_in_use"}
    return {
        name: max(values)
        for name, key in columns.items()
        if (values := [found[key] for found in stats if key in found])
    }
