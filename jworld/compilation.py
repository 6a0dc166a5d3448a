"""Compiled programs kept on disk, so that the next launch of the same program does not compile again."""

import os
import pathlib
from typing import Any

import jax

OFF = "off"


def default_folder() -> pathlib.Path:
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "jworld" / "compilation"


def use_cache(folder: str = "") -> None:
    """Keep compiled programs in `folder`; `default_folder()` where it is empty, nowhere where it is "off".

    JAX's own settings, such as the variable JAX_COMPILATION_CACHE_DIR, come before the default. Call it before anything
    is compiled. Several processes may share a folder: an entry is written once and never changed. A process that is
    killed while it writes one leaves a damaged entry, of which JAX warns before it compiles anew.
    """
    if folder == OFF:
        jax.config.update("jax_enable_compilation_cache", False)
    elif folder:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder))
    elif jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(default_folder()))


class CacheReads:
    """Whether the programs compiled since it was made, until `close`, were read from the cache."""

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
