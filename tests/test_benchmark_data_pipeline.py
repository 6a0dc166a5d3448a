"""The data benchmark runs, checks that all readers deliver the same batches, and writes its numbers."""

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
    options = (
        "--readers",
        *readers,
        "--workers",
        "1",
        "--caches",
        "warm",
        "--directory",
        str(tmp_path),
        "--json",
        str(output),
    )
    result = subprocess.run(
        [sys.executable, "benchmarks/data_pipeline.py", *SIZES, *map(str, options)],
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
    for layout in ("latents", "published"):
        warm = [row for row in numbers["rows"] if row["layout"] == layout]
        assert [row["reader"] for row in warm] == list(readers)
        assert all(row["records_per_second"] > 0 for row in warm)
        rates = {row["reader"]: row["records_per_second"] for row in warm}
        assert warm[0]["records_per_second_over_pt"] == pytest.approx(rates["threads"] / rates["pt"])
        assert f"{layout}, warm: 1 threads read" in result.stdout
    latents = 2 * 4 * 2 * 3 * 4
    # First frame, cameras, actions, image tokens; padded text and glyphs with masks.
    others = 2 * 24 + 4 * (64 + 36 + 4) + 2 * 6 + 6 * (2 * 5 + 1) + 3 * (2 * 2 + 1)
    assert {row["megabytes"] * 1e6 for row in numbers["rows"]} == {latents, latents + others}
