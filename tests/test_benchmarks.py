"""The benchmark scripts run and write their numbers; no test checks a speed."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import converted
import pytest
import xla_flags

from conversion import importing

pytestmark = pytest.mark.e2e

ROOT = pathlib.Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))
import accelerator  # noqa: E402

FLAGS = xla_flags.fast_compilation(1)


def run(script: str, output: pathlib.Path, *arguments: str) -> Any:
    result = subprocess.run(
        [sys.executable, f"benchmarks/{script}.py", "--json", str(output), *arguments],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": FLAGS},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(output.read_text())


@pytest.mark.slow
def test_train_step(tmp_path: pathlib.Path) -> None:
    numbers = run("train_step", tmp_path / "step.json", "--steps", "1", "--batch", "1")
    assert numbers["seconds_per_step"] > 0
    assert numbers["program_bytes"] > numbers["temporary_bytes"] > 0
    assert numbers["process_peak_bytes"] > 2**20
    assert numbers["xla_over_products"] == pytest.approx(1, abs=0.2)
    assert 0 < numbers["model_share_of_peak"] < numbers["share_of_peak"]


def test_restore(tmp_path: pathlib.Path) -> None:
    source = converted.download(tmp_path / "download", "base")
    importing.import_weights(source, tmp_path / "imported", importing.Options())
    arguments = ("--checkpoint", str(tmp_path / "imported"), "--dtype", "bfloat16", "--repeats", "1")
    numbers = run("restore", tmp_path / "restore.json", *arguments)
    values = sum(tensor.size for tensor in converted.case("base").weights.values())
    assert numbers["parameter_bytes"] == 2 * values
    assert numbers["stored_bytes"] > 4 * values
    assert numbers["restore_seconds"] > 0
    assert numbers["dtypes"] == ["bfloat16"]


def test_attention(tmp_path: pathlib.Path) -> None:
    sizes = ("--chunks", "3", "--chunk-tokens", "8", "16", "--heads", "2", "--head-dim", "8", "--repeats", "1")
    arguments = (*sizes, "--masks", "chunk_causal", "full", "--no-torch")
    numbers = run("attention", tmp_path / "attention.json", *arguments)
    assert numbers["settings"]["chunks"] == 3
    rows = {(row["mask"], row["tokens"], row["version"]): row for row in numbers["rows"]}
    assert set(rows) == {
        *(("chunk_causal", tokens, version) for tokens in (24, 48) for version in ("xla", "dense")),
        *(("full", tokens, "xla") for tokens in (24, 48)),
    }
    for row in rows.values():
        assert row["time_ratio"] > 0
        # Forward alone counts a third of the operations.
        assert row["flops"] * row["seconds"] == pytest.approx(3 * row["forward_flops"] * row["forward_seconds"])


def test_the_run_for_accelerators_keeps_what_it_measures(tmp_path: pathlib.Path) -> None:
    """A stage that runs out of time does not stop the others."""
    stages = {"attention": accelerator.STAGES["attention"]}
    stages["rollout"] = dataclasses.replace(accelerator.STAGES["rollout"], seconds=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accelerator, "STAGES", stages)
        patch.setenv("XLA_FLAGS", FLAGS)
        accelerator.main(["--toy", "--output", str(tmp_path), "--stages", "rollout", "attention"])
    late, done = json.loads((tmp_path / "accelerator.json").read_text())["stages"]
    assert (late["stage"], late["result"]) == ("rollout", "out of time")
    assert (done["stage"], done["result"]) == ("attention", "done")
    assert done["numbers"]["rows"][0]["forward_flops"] > 0
    table = (tmp_path / "accelerator.md").read_text().splitlines()
    assert table[2].startswith("| rollout | out of time")
    assert "chunk_causal, 16 tokens, xla: forward" in table[3]


@pytest.mark.slow
def test_rollout(tmp_path: pathlib.Path) -> None:
    numbers = run("rollout", tmp_path / "rollout.json", "--chunks", "2", "--steps", "2")
    assert numbers["settings"]["chunks"] == 2
    (row,) = numbers["rows"]
    assert row["steps"] == 2
    assert row["chunk_p95_seconds"] >= row["chunk_p50_seconds"] > 0
    assert row["recomputed_p50_seconds"] > 0
    assert row["first_chunk_seconds"] > 0
    # A chunk of 16 frames after 20 latents of 30x52, without text.
    floors = numbers["settings"]["published_floors"]
    assert floors["denoising_step_flops"] == pytest.approx(0.24e15, rel=0.02)
    assert floors["past_flops"] == pytest.approx(1.0e15, rel=0.05)
    assert row["flops_ratio"] > 1.5


@pytest.mark.slow
def test_stream(tmp_path: pathlib.Path) -> None:
    rows = run("stream", tmp_path / "stream.json", "--windows", "1")["rows"]
    assert [row["passes"] for row in rows.values()] == [10, 2, 2, 1]
    for row in rows.values():
        # Two latents of four frames each; a key is visible after the four groups.
        assert row["frames_per_second"] == pytest.approx(8 * row["windows_per_second"])
        assert row["delay_windows"] == 4


@pytest.mark.slow
def test_autoencoder_without_diffusers(tmp_path: pathlib.Path) -> None:
    sizes = ("--families", "cogvideox", "--narrow", "cogvideox=16", "--size", "16x8", "--frames", "5", "--repeats", "1")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nread settings\necho \'{"missing": "no diffusers"}\'\n')
    python.chmod(0o755)
    numbers = run("autoencoder", tmp_path / "autoencoder.json", *sizes, "--torch-python", str(python))
    assert [row["method"] for row in numbers["rows"]] == ["encode", "decode"]
    for row in numbers["rows"]:
        assert row["versions"] is None
        assert row["ours_frames_per_second"] > 0
        assert 0 < row["share_of_peak"] < 1
        assert row["flops"] > 1e7


@pytest.mark.slow
def test_preview_decoder(tmp_path: pathlib.Path) -> None:
    sizes = ("--families", "wan", "--narrow", "16", "--size", "16x8", "--frames", "5", "--repeats", "1")
    (row,) = run("preview_decoder", tmp_path / "preview.json", *sizes)["rows"]
    assert (row["file"], row["latents"]) == ("taew2_1", [2, 1, 2, 16])
    for side in ("tiny", "full"):
        assert row[f"{side}_frames_per_second"] > 0
        assert row[f"{side}_parameters"] > 1e4


@pytest.mark.slow
def test_quantized(tmp_path: pathlib.Path) -> None:
    arguments = ("--checkpoint", "--recipes", "cosmos_video2world.py", "--layers", "1", "--repeats", "1")
    (row,) = run("quantized", tmp_path / "quantized.json", *arguments)["rows"]
    assert row["int8_bytes"] == row["fp8_bytes"] < row["full_bytes"]
    # fp8 has 3 bits of mantissa, int8 7 bits.
    assert 30 < row["fp8_psnr"] < row["int8_psnr"] < 90
    assert all(row[f"{kind}_step_seconds"] > 0 for kind in ("full", "int8", "fp8"))


@pytest.mark.slow
def test_transformers_without_diffusers(tmp_path: pathlib.Path) -> None:
    sizes = ("--narrow", "8", "--layers", "1", "--latent", "2x4x4", "--text-tokens", "5", "--repeats", "1")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nread settings\necho \'{"missing": "no diffusers"}\'\n')
    python.chmod(0o755)
    options = ("--networks", "cosmos", *sizes, "--torch-python", str(python))
    rows = run("transformer", tmp_path / "transformer.json", *options)["rows"]
    assert [row["method"] for row in rows] == ["forward", "training"]
    for row in rows:
        assert row["versions"] is None
        assert row["ours_seconds"] > 0


def test_decode(tmp_path: pathlib.Path) -> None:
    sizes = ("--layers", "6", "--width", "16", "--heads", "2", "--head-dim", "8", "--vocabulary", "64", "--window", "8")
    tokens = ("--prompt", "12", "--new", "6", "--recomputed", "6", "--batches", "2", "--repeats", "1")
    numbers = run("decode", tmp_path / "decode.json", *sizes, *tokens)
    (row,) = numbers["rows"]
    assert row["agree"] == 1
    # Per layer: queries and output 2 x 16 x 16, keys and values 2 x 16 x 8, three matrices of the MLP, six norms.
    layer = 2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 64 + 4 * 16 + 2 * 8
    assert row["parameters"] == 64 * 16 + 6 * layer + 16
    # A token after 15 others: five layers read 8 keys of 8 numbers, one reads 16; values likewise, in two rows.
    assert row["bytes"] == 4 * (row["parameters"] + 2 * 2 * (5 * 8 + 16) * 8)
    weights = 64 * 16 + 6 * (layer - 4 * 16 - 2 * 8)
    assert row["flops"]["cached"] == 2 * (2 * weights + 4 * (5 * 8 + 16) * 2 * 8)
    for version in ("cached", "recomputed"):
        assert row["tokens_per_second"][version] * row["seconds_per_token"][version] == pytest.approx(2)
        assert row["share_of_limit"][version] > 0


@pytest.mark.slow
def test_chat(tmp_path: pathlib.Path) -> None:
    sizes = ("--layers", "2", "--width", "32", "--mlp-width", "64", "--vocabulary", "128", "--prompt", "8")
    numbers = run("chat", tmp_path / "chat.json", *sizes, "--new", "4", "--repeats", "1")
    assert set(numbers["rows"]) == {"jworld", "transformers"}
    for row in (row for rows in numbers["rows"].values() for row in rows):
        assert row["tokens_per_second"] > 0
        assert row["first_token_seconds"] > 0
