"""The compilation cache: shared between processes, disabled, moved, and overridden by JAX's settings."""

import os
import pathlib
import subprocess
import sys

PROGRAM = """
import jax, jax.numpy as jnp
from jworld.utils import compilation
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
compilation.use_cache()
reads = compilation.CacheReads()
value = jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8)))
print(reads.all_read, float(value[0, 0]))
"""


def run(home: pathlib.Path, program: str = PROGRAM, **environment: str) -> list[str]:
    """Return the output of a program; `PROGRAM` prints whether it was read from the cache, and its value."""
    outside = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_COMPILATION", "XDG_"))}
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**outside, "HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def entries(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(folder.glob("*-cache"))


def test_the_second_process_reads_what_the_first_compiled(tmp_path: pathlib.Path) -> None:
    default = tmp_path / ".cache" / "jworld" / "compilation"
    read, value = run(tmp_path)
    assert read == "False"
    assert entries(default)
    assert run(tmp_path) == ["True", value]
    # A truncated entry of a killed process is not used.
    for entry in entries(default):
        entry.write_bytes(entry.read_bytes()[:100])
    assert run(tmp_path) == ["False", value]


def test_the_cache_can_be_moved_and_disabled(tmp_path: pathlib.Path) -> None:
    settings = "print(config.jax_compilation_cache_dir, config.jax_enable_compilation_cache)"
    program = "from jax import config; from jworld.utils import compilation\n" + "\n".join(
        f"compilation.use_cache({folder!r}); {settings}" for folder in ("", "~/moved", "off")
    )
    found = run(tmp_path, program, JAX_COMPILATION_CACHE_DIR="/named")
    assert found == ["/named", "True", f"{tmp_path}/moved", "True", f"{tmp_path}/moved", "False"]
