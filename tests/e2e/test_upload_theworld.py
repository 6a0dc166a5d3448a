"""A run that uploads every checkpoint to a hub: transformers loads the upload, and commands take its id."""

import json
import pathlib

import commands
import fake_hub
import gemma_folders
import pytest
from cases import theworld

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ONE_DEVICE = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}


def test_uploads_and_ids(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_hub.serving(monkeypatch, tmp_path / "cache") as hub:
        trained = commands.run(
            "jworld.train",
            f"--config=configs/{theworld.CASE.recipe}",
            f"--workdir={tmp_path / 'run'}",
            *theworld.CASE.settings,
            f"--config.data.recording.directory={tmp_path / 'episodes'}",
            f"--config.data.records={tmp_path / 'questions'}",
            "--config.steps=2",
            "--config.checkpoint.interval=1",
            "--config.checkpoint.hub.repo=me/rooms",
            "--config.optimizer.warmup_steps=1",
            "--config.sample.questions=2",
            **ONE_DEVICE,
        )
        assert trained.returncode == 0, trained.stdout + trained.stderr
        assert "uploaded step 2 to me/rooms" in trained.stdout
        assert not list((tmp_path / "run").glob(".upload-*"))
        files = hub.repositories["me/rooms"]
        assert [
            name for name in files if name.startswith("jworld/checkpoints/") and name.endswith("/commit_success.txt")
        ]
        assert not [name for name in files if name.startswith("jworld/checkpoints/1/")]
        card = files["README.md"].decode()
        assert card.startswith("---\nlibrary_name: transformers\n")
        assert "`Gemma3ForConditionalGeneration`" in card
        assert "checkpoint of step 2" in card
        assert "| training loss, mean of the last interval | " in card

        evaluated = commands.run(
            "jworld.evaluate",
            "--checkpoint",
            "me/rooms",
            "--limit",
            "2",
            "--output",
            str(tmp_path / "out"),
            **ONE_DEVICE,
        )
        assert evaluated.returncode == 0, evaluated.stdout + evaluated.stderr
        assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["step"] == 2
    folder = tmp_path / "download"
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    model = gemma_folders.load(folder)
    assert (
        model.config.text_config.hidden_size
        == json.loads((tmp_path / "run" / "config.json").read_text())["model"]["width"]
    )
