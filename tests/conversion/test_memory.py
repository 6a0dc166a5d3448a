"""Peak memory of an import, on a checkpoint larger than that."""

import os
import pathlib
import re
import subprocess
import sys

import commands
import converted
import pytest

# Not getrusage: its peak includes that of the parent process.
MEASURED = """
import pathlib, re, sys
from conversion.__main__ import main
main(sys.argv[1:])
print("peak kB:", re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/status").is_file(), reason="the peak is read from Linux's /proc")
def test_an_import_never_holds_the_model(tmp_path: pathlib.Path) -> None:
    """The peak is below 1.3 times the largest stacked group plus 1 GiB."""
    source, output = tmp_path / "model.safetensors", tmp_path / "imported"
    total, group = converted.published(source, layers=6)
    assert total > 2e9
    try:
        result = subprocess.run(
            [sys.executable, "-c", MEASURED, "import", str(source), "--output", str(output)],
            cwd=commands.ROOT,
            env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert f"{total // 2:,} parameters (bfloat16" in result.stdout
        stored = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
        assert stored > total
    finally:
        # pytest would keep these gigabytes for the next sessions.
        for file in tmp_path.rglob("*"):
            if file.is_file():
                file.unlink()
    peak = 1024 * int(re.search(r"peak kB: (\d+)", result.stdout)[1])
    assert peak < 1.3 * group + 2**30 < total, f"{peak / 1e6:.0f} MB for a group of {group / 1e6:.0f} MB"
