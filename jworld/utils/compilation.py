"""Compilation cache on disk, so that the next launch of the same program does not compile again."""

import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from jworld.utils import hardware, outputs

OFF = "off"
_IN_ORDER = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def default_folder() -> pathlib.Path:
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "jworld" / "compilation"


def use_cache(folder: str = "") -> None:
    """Store compiled programs in `folder`; "" means `default_folder()`, "off" disables the cache.

    JAX's own settings, such as the variable JAX_COMPILATION_CACHE_DIR, take precedence over the default. Call it before
    anything is compiled. Several processes may share a folder: an entry is written once and never changed. A process
    that is killed during a write leaves a damaged entry, for which JAX prints a warning and compiles again.

    Raises:
      UserError: the folder cannot be written.
    """
    if folder == OFF:
        jax.config.update("jax_enable_compilation_cache", False)
    elif folder:
        outputs.check_folder("--compilation-cache", pathlib.Path(folder).expanduser())
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder))
    elif jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(default_folder()))


def in_order(function: Callable[..., Any], **options: Any) -> Callable[[], Any]:
    """Return a function that returns `jax.jit(function, **options)`, compiled for little memory if the mesh is of CPUs.

    XLA's CPU compiler starts operations as early as their inputs allow. So it would copy the weights of all layers at
    once, widened or in the layout of its convolutions, where the layers do not share a loop.
    """

    @functools.cache
    def made(platform: str) -> Any:
        # Other compilers refuse the option.
        return jax.jit(function, **options, compiler_options=_IN_ORDER if platform == "cpu" else None)

    # Not at import: this starts the backend.
    return lambda: made(hardware.target_device().platform)


class CacheReads:
    """Listener that reports whether the programs compiled until `close` were read from the cache."""

    def __init__(self) -> None:
        self._hits = self._misses = 0
        jax.monitoring.register_event_listener(self._listen)

    @property
    def all_read(self) -> bool:
        return self._hits > 0 and self._misses == 0

    def _listen(self, event: str, **_: Any) -> None:
        self._hits += event == "/jax/compilation_cache/cache_hits"
        self._misses += event == "/jax/compilation_cache/cache_misses"

    def close(self) -> None:
        jax.monitoring.unregister_event_listener(self._listen)


class CompileTimes:
    """Context that measures the time spent in tracing and compiling programs."""

    def __enter__(self) -> "CompileTimes":
        self._spans: list[tuple[float, float]] = []
        jax.monitoring.register_event_time_span_listener(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_time_span_listener(self._listen)

    def _listen(self, event: str, start_time: float, end_time: float, **_: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            self._spans.append((start_time, end_time))

    def seconds(self, start: float, end: float) -> float:
        """Return the seconds of compilation between two values of `time.time()`; nested spans count once."""
        total, reached = 0.0, start
        for first, last in sorted(self._spans):
            total += max(min(last, end) - max(first, reached), 0)
            reached = max(reached, min(last, end))
        return total
