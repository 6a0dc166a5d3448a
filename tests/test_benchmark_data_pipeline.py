"""The data benchmark runs, refuses readers that deliver something else, and writes its numbers."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SIZES = (
    *("--records", "12", "--batch", "2", "--latent", "4", "2", "3", "4", "--vision", "2", "3", "--text-dim", "5"),
    *("--glyph-dim", "2", "--text-tokens", "6", "--glyph-tokens", "3", "--prompt-tokens", "6", "--repeats", "1"),
)


@pytest.mark.e2e
def test_numbers(tmp_path: pathlib.Path) -> None:
    output = tmp_path / "data.json"
    readers = ("threads", "processes", "pt")
    options = ("--readers", *readers, "--workers", "1", "--directory", str(tmp_path), "--json", str(output))
    result = subprocess.run(
        [sys.executable, "benchmarks/data_pipeline.py", *SIZES, *options],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [output.name]
    numbers = json.loads(output.read_text())
    warm = [row for row in numbers["rows"] if row["cache"] == "warm"]
    assert [row["reader"] for row in warm] == list(readers)
    assert all(row["records_per_second"] > 0 for row in numbers["rows"])
    rates = {row["reader"]: row["records_per_second"] for row in warm}
    assert warm[0]["over_pt"] == pytest.approx(rates["threads"] / rates["pt"])
    # Latent, first frame, cameras, actions, image tokens; 6 text tokens at most.
    fixed = 2 * (96 + 24 + 6) + 4 * (64 + 36 + 4)
    assert fixed < numbers["megabytes"] * 1e6 <= fixed + 2 * 30
    assert "threads read" in result.stdout
