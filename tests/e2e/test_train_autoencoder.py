"""An autoencoder from recorded videos to records: train, measure, release, precompute."""

import pathlib

import commands
import numpy as np
import pytest
import rich.console
import xla_flags

from jworld import evaluate
from jworld.data import records
from jworld.encoders import autoencoders
from jworld.evaluation import results
from jworld.precompute import __main__ as precompute
from jworld.training import metrics
from scripts import release_autoencoder

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

#: Programs run a few times: compiling them is what takes time.
FLAGS = {"XLA_FLAGS": xla_flags.fast_compilation(1)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with 8 short episodes at 32x24, their frames, and a run of 3 steps in `run`.

    Two levels of a few channels: 2x2 pixels and 2 frames per latent.
    """
    folder = tmp_path_factory.mktemp("train_autoencoder")
    result = commands.run(
        "jworld.train",
        "--config=configs/autoencoder.py",
        f"--workdir={folder / 'run'}",
        "--config.model.latent_channels=4",
        "--config.model.widths=(4,8)",
        "--config.model.spatial_ratio=2",
        "--config.model.temporal_ratio=2",
        f"--config.data.records={folder / 'frames'}",
        f"--config.data.recording.directory={folder / 'episodes'}",
        "--config.data.recording.episodes=8",
        "--config.data.recording.frames=17",
        "--config.data.recording.image_size=(32,24)",
        "--config.data.videos.image_size=(32,24)",
        "--config.data.clip.size=(16,16)",
        "--config.steps=3",
        "--config.optimizer.warmup_steps=1",
        "--config.log.interval=1",
        "--config.sample.frames=5",
        **FLAGS,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for part in ("decoded the videos", "step 3/3", "reconstruction, frames 0-4", "next: python -m jworld.evaluate"):
        assert part in result.stdout
    return folder


def test_a_run_leaves_its_log_and_reconstructions(folder: pathlib.Path) -> None:
    assert [row["step"] for row in metrics.read(folder / "run")] == [1, 2, 3]
    assert {"l1", "gradient", "kl", "psnr"} <= metrics.read(folder / "run")[-1].keys()
    for name in ("reconstruction.mp4", "reconstruction.png"):
        assert (folder / "run" / "samples" / name).stat().st_size > 0


def test_released_file_encodes_records(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = evaluate.evaluate(
        folder / "run", folder / "evaluation", results.Options(windows=2, chunks=3), console=rich.console.Console()
    )
    assert len(numbers["psnr_per_latent"]["autoencoder"]) == 3
    assert numbers["held_out_loss"] > 0
    assert (folder / "evaluation" / "evaluation_rollouts.png").is_file()
    with pytest.raises(SystemExit) as exit_:
        evaluate.main([f"--checkpoint={folder / 'run'}", "--autoencoder=other", "--encoder-dtype=float32"])
    assert exit_.value.code == 2
    assert "--autoencoder, --encoder-dtype: the checkpoint is an autoencoder" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_:
        evaluate.main([f"--checkpoint={folder / 'run'}", "--episodes=other", "--revisits=8"])
    assert exit_.value.code == 2
    assert "--revisits, --episodes: not used for a checkpoint of the system 'autoencoder'" in capsys.readouterr().err

    path = folder / "released" / records.AUTOENCODER_FILE
    release_autoencoder.main([f"--run={folder / 'run'}", f"--output={path}"])
    assert "step 3" in capsys.readouterr().out
    output = folder / "records"
    sizes = ("--width=32", "--height=24")
    precompute.main([f"--input={folder / 'episodes'}", f"--output={output}", f"--autoencoder={path}", *sizes])
    manifest = records.read_manifest(output)
    assert manifest["autoencoder"]["family"] == "hunyuan15"
    assert manifest["autoencoder"]["hash"] == autoencoders.load(path).hash
    assert manifest["latent_shape"] == [12, 16, 4]
    source = records.RecordSource(output, "train")
    latents = np.concatenate([source[i]["latent"].astype(np.float32).reshape(-1, 4) for i in range(len(source))])
    # Records hold means, whose deviation is a little less than that of samples.
    assert np.abs(latents.mean(axis=0)).max() < 0.2
    assert (latents.std(axis=0) < 1.1).all()

    with pytest.raises(SystemExit) as exit_:
        release_autoencoder.main([f"--run={folder / 'run'}", f"--output={path}"])
    assert exit_.value.code == 2
    assert "exists" in capsys.readouterr().err
