"""Peak memory of an import, a comparison and an export, on a checkpoint larger than that."""

import os
import pathlib
import re
import subprocess
import sys

import commands
import converted
import pytest

from conversion import pieces

# Not getrusage: its peak includes that of the parent process.
MEASURED = """
import pathlib, re, sys
from conversion.__main__ import main
main(sys.argv[1:])
print("peak kB:", re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
"""

RESTORED = """
import pathlib, re, sys
import jax
from flax import nnx
from jworld.systems import runs
from jworld.utils import config

def memory(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])

directory = pathlib.Path(sys.argv[1])
jax.block_until_ready(jax.numpy.zeros(1) + 1)
before = memory("VmRSS")
model, _ = runs.load_model(directory, config.load(directory), quantize=sys.argv[2] if sys.argv[2:] else None)
size = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
print("ratio:", (memory("VmHWM") - before) / size, "bytes:", size)
"""


def run(*arguments: str | pathlib.Path) -> tuple[str, int]:
    """Run a command of the conversion; -> what it prints, and its peak memory in bytes."""
    printed = python(MEASURED, *arguments)
    return printed, 1024 * int(re.search(r"peak kB: (\d+)", printed)[1])


def python(program: str, *arguments: str | pathlib.Path) -> str:
    """Run a program that reports its own memory; -> what it prints."""
    result = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=commands.ROOT,
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/status").is_file(), reason="the peak is read from Linux's /proc")
def test_no_command_holds_the_model_or_a_stack_of_layers(tmp_path: pathlib.Path) -> None:
    """The peak is that of the program and of the pieces that the threads have: source, converted, being written."""
    source, output = tmp_path / "model.safetensors", tmp_path / "imported"
    total, _ = converted.published(source, layers=6)
    bound = 2**29 + 3 * (pieces.THREADS + 1) * pieces.BAND
    assert total > 1.5 * bound
    try:
        printed, peak = run("import", source, "--output", output)
        peaks = {"import": peak}
        assert f"{total // 2:,} parameters (bfloat16" in printed
        stored = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
        assert stored > total
        peaks["verify"] = run("verify", output, source)[1]
        peaks["export"] = run("export", output, "--output", tmp_path / "exported" / "model.safetensors")[1]
    finally:
        # pytest would keep these gigabytes for the next sessions.
        for file in tmp_path.rglob("*"):
            if file.is_file():
                file.unlink()
    assert all(peak < bound for peak in peaks.values()), (peaks, bound)


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/status").is_file(), reason="the peak is read from Linux's /proc")
def test_restoring_needs_little_more_memory_than_the_parameters(tmp_path: pathlib.Path) -> None:
    source, output = tmp_path / "model.safetensors", tmp_path / "imported"
    total, _ = converted.published(source, layers=3)
    try:
        run("import", source, "--output", output)
        printed = python(RESTORED, output)
        quantized = python(RESTORED, output, "int8")
    finally:
        for file in tmp_path.rglob("*"):
            if file.is_file():
                file.unlink()
    # The file has bfloat16, the model float32.
    assert int(re.search(r"bytes: (\d+)", printed)[1]) == 2 * total > 2e9
    assert float(re.search(r"ratio: ([\d.]+)", printed)[1]) < 1.15
    # Most of the parameters have a byte; at most a few arrays are there in float32, and never all.
    size = int(re.search(r"bytes: (\d+)", quantized)[1])
    assert size < 0.55 * 2 * total
    assert float(re.search(r"ratio: ([\d.]+)", quantized)[1]) * size < 0.75 * 2 * total
