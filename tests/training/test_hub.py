"""Uploads to a local hub: the uploaded files, and a run that continues when an upload fails."""

import json
import pathlib
import threading
import time
from typing import Any

import fake_hub
import pytest

from jworld.training import hub

CONFIG = hub.HubConfig(repo="me/rooms", patience=0.02)


class Fake:
    """Upload that fails a given number of times."""

    def __init__(self, failures: int = 0) -> None:
        self.failures, self.steps = failures, []
        self.hangs = threading.Event()
        self.hangs.set()

    def __call__(self, step: int) -> None:
        self.steps.append(step)
        self.hangs.wait()
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no\n   network")


def folder(tmp_path: pathlib.Path, *steps: int) -> pathlib.Path:
    for step in steps:
        (tmp_path / str(step)).mkdir()
    return tmp_path


def wait(condition) -> None:
    for _ in range(200):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("the condition stayed false")


def test_every_save_is_uploaded(tmp_path: pathlib.Path) -> None:
    fake, messages = Fake(), []
    with hub.Uploads(CONFIG, folder(tmp_path, 1, 2), fake, message=messages.append) as uploads:
        for step in (1, 2):
            uploads.saved(step, is_last=False)
            wait(lambda: len(messages) == len(fake.steps) and fake.steps[-1:] == [step])  # noqa: B023
    assert fake.steps == [1, 2]
    assert messages == ["uploaded step 1 to me/rooms", "uploaded step 2 to me/rooms"]


def test_failures_are_reported_and_retried_with_the_newest_step(tmp_path: pathlib.Path) -> None:
    fake, messages = Fake(failures=2), []
    with hub.Uploads(CONFIG, folder(tmp_path, 1, 5), fake, message=messages.append, pauses=(0.05,)) as uploads:
        uploads.saved(1, is_last=False)
        wait(lambda: len(fake.steps) >= 1)
        uploads.saved(5, is_last=False)
        wait(lambda: "uploaded step 5 to me/rooms" in messages)
    assert messages[0] == "upload of step 1 to me/rooms failed: no network; trying again in 0.05 s"
    assert fake.steps[-1] == 5


def test_a_hub_that_hangs_does_not_block_the_run(tmp_path: pathlib.Path) -> None:
    fake, messages = Fake(), []
    fake.hangs.clear()
    began = time.perf_counter()
    with hub.Uploads(CONFIG, folder(tmp_path, 1, 2, 3), fake, message=messages.append) as uploads:
        uploads.saved(1, is_last=False)
        wait(lambda: fake.steps == [1])
        uploads.saved(2, is_last=False)
        uploads.saved(3, is_last=True)
        assert time.perf_counter() - began < 2
    assert time.perf_counter() - began < 15
    assert messages == [
        "the checkpoint of step 3 was not uploaded to me/rooms: run the same command again to upload it"
    ]
    fake.hangs.set()


def test_a_run_that_fails_does_not_wait(tmp_path: pathlib.Path) -> None:
    fake, messages = Fake(), []
    fake.hangs.clear()
    uploads = hub.Uploads(hub.HubConfig(repo="r", patience=9), folder(tmp_path, 1), fake, message=messages.append)
    uploads.saved(1, is_last=False)
    uploads.__exit__(KeyError, KeyError(), None)
    assert messages == []
    fake.hangs.set()


def test_files_are_awaited(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_POLL", 0.01)
    fake, messages = Fake(), []
    (tmp_path / "4.orbax-checkpoint-tmp").mkdir()
    with hub.Uploads(CONFIG, tmp_path, fake, message=messages.append) as uploads:
        uploads.saved(4, is_last=False)
        time.sleep(0.1)
        assert fake.steps == []
        (tmp_path / "4.orbax-checkpoint-tmp").rename(tmp_path / "4")
        wait(lambda: messages == ["uploaded step 4 to me/rooms"])


def test_strategies(tmp_path: pathlib.Path) -> None:
    fake, messages = Fake(), []
    config = hub.HubConfig(repo="me/rooms", strategy="end")
    with hub.Uploads(config, folder(tmp_path, 1, 2), fake, message=messages.append) as uploads:
        uploads.saved(1, is_last=False)
        uploads.saved(2, is_last=True)
    assert fake.steps == [2]
    with hub.Uploads(hub.HubConfig(), tmp_path, fake, message=messages.append) as uploads:
        uploads.saved(3, is_last=True)
    assert fake.steps == [2]
    with pytest.raises(ValueError, match="expected owner/name"):
        hub.HubConfig(repo="a/b/c")


def test_uploaded_files(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The export and the card at the top, the run in a sub-folder; an older checkpoint and its export go."""
    run = tmp_path / "run"
    contents = ("encoders/tokenizer.json", "checkpoints/4/params/a", "checkpoints/3/params/a", "checkpoints/frozen/b")
    for name in (*contents, "samples/answers.json"):
        path = run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (run / "config.json").write_text(json.dumps({"system": "theworld", "steps": 9, "optimizer": {"name": "adamw"}}))
    (run / "metrics.jsonl").write_text('{"step": 1, "loss_mean": 3.0}\n{"step": 4, "loss_mean": 2.5}\n')
    (run / "evaluation").mkdir()
    measured = {"step": 4, "held_out_loss": 0.25, "scores": {"with world": {"turn": 75.0}}, "options": {"seed": 7}}
    (run / "evaluation" / "evaluation.json").write_text(json.dumps(measured))

    def export(step: int, folder: pathlib.Path) -> dict[str, Any]:
        folder.mkdir()
        (folder / "model.safetensors").write_text(f"export of {step}")
        (folder / "config.json").write_text("{}")
        return {"architectures": ["Gemma3ForConditionalGeneration"]}

    with fake_hub.serving(monkeypatch, tmp_path / "cache") as served:
        old = {"jworld/checkpoints/2/params/a": b"", "model-00001-of-00002.safetensors": b"", "notes.md": b"mine"}
        served.repositories["me/rooms"] = dict(old)
        hub.uploader(hub.HubConfig(repo="me/rooms", private=True), run, export)(4)
        assert served.created[0]["name"] == "rooms"
        (commit,) = served.commits
        assert commit[0]["value"]["summary"] == "Step 4"
        files = {name: data.decode() for name, data in served.repositories["me/rooms"].items()}
    card = files.pop("README.md")
    names = [name for name in contents if "checkpoints/3" not in name]
    assert files.pop("model.safetensors") == "export of 4"
    assert files.keys() - {f"jworld/{name}" for name in names} == {
        "config.json",
        "jworld/config.json",
        "jworld/evaluation/evaluation.json",
        "jworld/metrics.jsonl",
        "notes.md",
    }
    assert all(files[f"jworld/{name}"] == name for name in names)
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoints",
        "config.json",
        "encoders",
        "evaluation",
        "metrics.jsonl",
        "samples",
    ]
    assert card.startswith("---\nlibrary_name: transformers\ntags:\n- jworld\n- theworld\n---\n\n# rooms\n")
    for line in (
        'run = jworld.load("me/rooms")',
        "| training loss, mean of the last interval | 2.5 |",
        "| evaluation at step 4: held out loss | 0.25 |",
        "| evaluation at step 4: scores, with world, turn | 75 |",
        "| `optimizer.name` | `adamw` |",
    ):
        assert line in card
    assert "seed" not in card


def test_a_model_without_an_export(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text('{"system": "worldplay"}')
    with fake_hub.serving(monkeypatch, tmp_path / "cache") as served:
        hub.uploader(CONFIG, run, lambda step, folder: None)(1)
        files = served.repositories["me/rooms"]
    assert files.keys() == {"README.md", "jworld/config.json"}
    assert b"library_name: jworld\n" in files["README.md"]
    assert b"Nothing yet." in files["README.md"]


@pytest.mark.parametrize(
    "name", ["a/b/c", "/a", "a b/c", "a\nb", "\u8a9e/b", "../b", "-a/b", "a..b", "a.git", "x" * 97]
)
def test_names_of_repositories(name: str) -> None:
    with pytest.raises(ValueError, match="expected owner/name or name"):
        hub.HubConfig(repo=name)
    assert hub.HubConfig(repo="some-one/the_world.v2").repo
