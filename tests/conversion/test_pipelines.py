"""`export --pipeline`: what is taken from the published folder, what is written, and what is refused."""

import json
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import adapted
import converted
import numpy as np
import pytest
import safetensors.numpy

from conversion import __main__ as conversion
from conversion import folders, pipelines, schedulers

PARTS = ("text_encoder", "tokenizer", "vae")


def published(folder: pathlib.Path, *, index: dict[str, Any] | None = None) -> pathlib.Path:
    """Write a folder like CogVideoX-2B's with stand-ins of its parts."""
    adapted.matrix().write(folder / "transformer")
    for name in PARTS:
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps({"part": name}))
    (folder / "vae" / ".cache").mkdir()
    (folder / "vae" / ".cache" / "lock").write_text("x")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / schedulers.NAME).write_text(
        json.dumps({"_class_name": "CogVideoXDDIMScheduler", "snr_shift_scale": 1.0, "other": 3})
    )
    entries = {name: ["transformers", "X"] for name in PARTS}
    usual = {
        "_class_name": "CogVideoXPipeline",
        "scheduler": ["diffusers", "CogVideoXDDIMScheduler"],
        "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
        "image_encoder": [None, None],
        **entries,
    }
    (folder / pipelines.INDEX).write_text(json.dumps(usual | (index or {})))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Make a published folder, CogVideoX-2b/, and its import, ours/."""
    folder = tmp_path_factory.mktemp("pipelines")
    published(folder / "CogVideoX-2b")
    conversion.main(["import", str(folder / "CogVideoX-2b"), "--output", str(folder / "ours")])
    return folder


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        conversion.main([str(argument) for argument in arguments])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_the_folder_of_the_import_is_the_default(
    made: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, base = tmp_path / "out", made / "CogVideoX-2b"
    conversion.main(["export", str(made / "ours"), "--output", str(out), "--pipeline"])
    assert f"links to {', '.join(PARTS)} of {base}" in capsys.readouterr().out
    for name in PARTS:
        assert (out / name / "config.json").stat().st_ino == (base / name / "config.json").stat().st_ino
    assert not (out / "vae" / ".cache").exists()
    assert converted.contents(out) == converted.contents(base)
    assert json.loads((out / pipelines.INDEX).read_text()) == json.loads((base / pipelines.INDEX).read_text())
    # The scheduler is that of the import, and keeps what the run does not determine.
    scheduler = json.loads((out / "scheduler" / schedulers.NAME).read_text())
    assert (scheduler["snr_shift_scale"], scheduler["other"]) == (1.0, 3)
    # The result is a pipeline that is imported again, with the same values.
    conversion.main(["import", str(out), "--output", str(tmp_path / "again")])
    conversion.main(["verify", str(tmp_path / "again"), str(base)])


def test_files_are_copied_where_they_cannot_be_linked(
    made: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("another device")

    monkeypatch.setattr(os, "link", refuse)
    base = made / "CogVideoX-2b"
    conversion.main(["export", str(made / "ours"), "--output", str(tmp_path / "out"), "--pipeline", str(base)])
    assert f"copies of {', '.join(PARTS)} of {base}" in capsys.readouterr().out
    assert (tmp_path / "out" / "vae" / "config.json").read_text() == (base / "vae" / "config.json").read_text()


def test_only_an_earlier_pipeline_is_replaced(
    made: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = published(tmp_path / "base")
    command = ["export", made / "ours", "--pipeline", base, "--output"]
    conversion.main([str(part) for part in [*command, tmp_path / "out"]])
    assert "exists already" in mistake(capsys, *command, tmp_path / "out")
    conversion.main([str(part) for part in [*command, tmp_path / "out", "--overwrite", "--dtype", "bfloat16"]])
    assert {dtype for dtype, _, _ in converted.contents(tmp_path / "out").values()} == {"bfloat16"}
    shutil.copytree(base, tmp_path / "other")
    assert "contains other files" in mistake(capsys, *command, tmp_path / "other", "--overwrite")
    assert "is the folder of the published weights" in mistake(capsys, *command, base, "--overwrite")
    # The network is replaced in the new folder alone: no file of the published folder is written.
    assert converted.contents(base)["proj_out.weight"][0] == "float32"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["{}/ours", "--pipeline", "{}/none", "--output", "{}/out"], "none: no such folder"),
        (["{}/ours", "--pipeline", "--output", "{}/out.safetensors"], "a pipeline is a folder"),
        (["{}/ours", "--pipeline", "--output", "{}/out", "--layout", "diffusers"], "leave --layout out"),
        (["{}/ours", "--pipeline", "--output", "{}/out", "--adapters"], "leave --adapters out"),
        (["{}/ours", "--pipeline", "{}/ours", "--output", "{}/out"], "text_encoder/, tokenizer/, vae/ is missing"),
    ],
)
def test_mistakes(made: pathlib.Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], part: str) -> None:
    before = sorted(made.rglob("*"))
    assert part in mistake(capsys, "export", *(argument.replace("{}", str(made)) for argument in arguments))
    assert sorted(made.rglob("*")) == before


@pytest.mark.parametrize(
    ("index", "part"),
    [
        ({"_class_name": "WanPipeline"}, "_class_name is 'WanPipeline', expected one of CogVideoXPipeline"),
        ({"../x": ["diffusers", "X"]}, "'../x' is not the name of a sub-folder"),
        ({"text_encoder_2": ["diffusers", "X"]}, "text_encoder_2/ is missing"),
    ],
)
def test_other_folders(
    made: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], index: dict[str, Any], part: str
) -> None:
    base = published(tmp_path / "base", index=index)
    assert part in mistake(capsys, "export", made / "ours", "--pipeline", base, "--output", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_a_model_index_is_written_where_there_is_none(made: pathlib.Path, tmp_path: pathlib.Path) -> None:
    base = published(tmp_path / "base")
    (base / pipelines.INDEX).unlink()
    shutil.rmtree(base / "scheduler")
    conversion.main(["export", str(made / "ours"), "--pipeline", str(base), "--output", str(tmp_path / "out")])
    index = json.loads((tmp_path / "out" / pipelines.INDEX).read_text())
    assert index["_class_name"] == "CogVideoXPipeline"
    assert index["vae"] == ["diffusers", "AutoencoderKLCogVideoX"]
    scheduler = json.loads((tmp_path / "out" / "scheduler" / schedulers.NAME).read_text())
    assert scheduler["_class_name"] == index["scheduler"][1]
    assert scheduler["prediction_type"] == "v_prediction"


def test_networks_without_a_pipeline(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """TheWorld is one folder of transformers, and diffusers has no network with actions."""
    conversion.main(["import", str(adapted.gemma().write(tmp_path / "gemma")), "--output", str(tmp_path / "ours")])
    command = ["export", tmp_path / "ours", "--pipeline", tmp_path / "gemma", "--output", tmp_path / "out"]
    assert "no program reads theworld as a pipeline" in mistake(capsys, *command)
    source = adapted.worldplay().write(tmp_path / "ar_model")
    conversion.main(["import", str(source), "--output", str(tmp_path / "actions")])
    base = tmp_path / "base"
    for name in ("scheduler", "vae"):
        (base / name).mkdir(parents=True)
    command = ["export", tmp_path / "actions", "--pipeline", base, "--output", tmp_path / "out"]
    assert "transformer/480p_i2v/ is missing" in mistake(capsys, *command)
    (base / pipelines.INDEX).write_text(json.dumps({"_class_name": "HunyuanVideo15Pipeline"}))
    assert "its action and camera parameters have no place there" in mistake(capsys, *command)
    assert not (tmp_path / "out").exists()


def test_a_run_finds_the_folder_of_its_base(made: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    config = json.loads((made / "ours" / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"init_from": str(made / "ours")}))
    opened = folders.open_weights(made / "ours")
    arrays = {path: np.asarray(opened.read(path), np.float32) for path in opened.arrays}
    safetensors.numpy.save_file(arrays, run / "model.safetensors")
    conversion.main(["export", str(run), "--output", str(tmp_path / "out"), "--pipeline"])
    assert (tmp_path / "out" / "vae" / "config.json").is_file()
