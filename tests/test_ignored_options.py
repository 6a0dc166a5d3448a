"""Options that nothing would use, empty names, and choices that are found before weights are read."""

import importlib
import pathlib
import shutil
from typing import Any

import commands
import numpy as np
import pytest
from test_command_line import HELPS, entries, read_help

from jworld.systems import runs
from jworld.utils import config as run_config
from jworld.utils import errors, tensor_files

STARTER = commands.ROOT / "assets" / "starter"
LINEAR = STARTER / "encoders" / "autoencoder.safetensors"
#: Scripts, which have options as well.
SCRIPTS = ("plot_loss", "record_episodes", "release_autoencoder", "release_weights", "train_motion")
#: Texts in help that stand for a value that may be empty.
FREE_TEXT = ("TEXT",)
PLAN = ("jworld.plan", "--config=configs/ar_mem.py", "--topology=cpu-1")
VIDEOS = ("jworld.precompute.__main__", "--input=none", "--output=none", "--format=videos", "--fps=5")
GENERATE = ("jworld.generate", "--checkpoint={starter}", "--image=none.png", "--out=out.mp4")
ANSWER = ("jworld.generate", "--checkpoint={theworld}", "--prompt=a")
EVALUATE = ("jworld.evaluate", "--checkpoint={starter}", "--output={folder}/out")
TEXT = ("jworld.evaluate", "--checkpoint={theworld}", "--output={folder}/out")
TRAIN = ("jworld.train", "--config=configs/ar_mem.py", "--dry-run")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("places")
    theworld = folder / "theworld"
    theworld.mkdir()
    run_config.save(run_config.load_recipe("configs/theworld.py"), theworld)
    shutil.copytree(commands.ROOT / "assets" / "tokenizer", theworld / "encoders")
    (folder / "batch.jsonl").write_text('{"prompt": "a room", "pose": "w-3", "out": "a.mp4"}\n')
    (folder / "original.json").write_text('{"learning_rate": 0.001}')
    return {"starter": str(STARTER), "theworld": str(theworld), "linear": str(LINEAR), "folder": str(folder)}


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where weights are read: a mistake on the command line is found before."""

    def read(*arguments: Any, **options: Any) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr(runs, "load_params", read)
    monkeypatch.chdir(commands.ROOT)


def sentence(module: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command and return its error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == errors.MISTAKE
    return line


@pytest.mark.parametrize(
    ("command", "extra", "message"),
    [
        (PLAN, "--tries=3", "--tries has no effect without --search"),
        ((PLAN[0], "generate", *PLAN[1:]), "--tries=3", "--tries has no effect without --search"),
        ((PLAN[0], "generate", *PLAN[1:]), "--search", "--search is for training"),
        (PLAN, "--mesh=fsdp=2", "--mesh is for generate"),
        (TRAIN, "--from-json={folder}/original.json", "--config has no effect with --from-json"),
        ((*TRAIN, "--overwrite"), "--accept-data", "--accept-data has no effect with --overwrite"),
        (GENERATE, "--batch-size=2", "--batch-size has no effect without --batch"),
        ((*GENERATE[:2], "--out=out", "--batch={folder}/batch.jsonl"), "--batch-size=2", "--batch-size: the model gen"),
        (GENERATE, "--length=cut", "--length has no effect without --pose or --actions or --batch"),
        (GENERATE, "--chat", "--chat: the model generates videos"),
        (ANSWER, "--sheet", "--sheet: the model answers in text"),
        (ANSWER, "--stream", "--stream: the model answers in text"),
        ((*ANSWER, "--batch=none"), "--length=cut", "--length cut: the model answers in text"),
        (ANSWER, "--encoder-device=cpu", "--encoder-device: the model of this checkpoint uses no external encoders"),
        (EVALUATE, "--split=val", "--split: not used for a checkpoint of the system 'worldplay'"),
        (TEXT, "--chunks=7", "--chunks: not used for a checkpoint of the system 'theworld'"),
        (TEXT, "--split=val", "--split has no effect with held-out conversations"),
        ((*TEXT, "--benchmark=vsr"), "--split=val", "--split has no effect with --benchmark vsr"),
        (VIDEOS, "--stride=4", "--stride has no effect without --frames"),
        (VIDEOS, "--remainder=shift", "--remainder has no effect without --frames"),
        ((*VIDEOS, "--autoencoder={linear}"), "--channels=8", "--channels has no effect with --autoencoder"),
        (VIDEOS, "--autoencoder-dtype=bfloat16", "--autoencoder-dtype has no effect without --autoencoder"),
        (VIDEOS, "--camera=front", "--camera is for the formats cosmos, lerobot, rlds, not for videos"),
        (VIDEOS, "--frames-size=64x64", "--frames-size is for the formats jasmine, not for videos"),
        (VIDEOS, "--root=none", "--root is for the formats"),
        (VIDEOS, "--encoder-device=cpu", "--encoder-device: no encoder here runs in PyTorch (found hashed-words"),
        (VIDEOS, "--encoder-dtype=float16", "--encoder-dtype: no encoder here runs in PyTorch"),
        (("conversion.__main__", "inspect", "{starter}"), "--step=3", "is not the folder of a run, so it has no steps"),
        (
            ("conversion.__main__", "export", "{starter}", "--output={folder}/e"),
            "--step=3",
            "is not the folder of a run, so it has no steps",
        ),
        (
            ("conversion.__main__", "export", "{starter}", "--output={folder}/e", "--adapters"),
            "--trained",
            "--trained has no effect with --adapters",
        ),
    ],
)
def test_an_option_that_nothing_uses_is_refused(
    command: tuple[str, ...], extra: str, message: str, places: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    module, *arguments = [text.format(**places) for text in (*command, extra)]
    assert message in sentence(module, arguments, capsys)


def test_a_device_for_encoders_without_pytorch_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("device=cpu", "dtype=float16"):
        given = ["--checkpoint", str(STARTER), "--port=0", f"--encoder-{flag}"]
        found = sentence("jworld.play.__main__", given, capsys)
        assert "no encoder here runs in PyTorch (found hashed-words, thumbnail)" in found


@pytest.mark.parametrize("module", ["jworld.generate", "jworld.evaluate", "jworld.precompute.__main__"])
def test_a_device_has_a_known_name(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = "--encoder-device: expected cpu, cuda, hpu, mps or xpu, or one of several such as cuda:1, got "
    for name in ("warp", "cuda:", "cuda:x", "cpu cuda", ""):
        assert expected + repr(name) in sentence(module, [f"--encoder-device={name}"], capsys)
    found = sentence("jworld.train", [*TRAIN[1:], "--config.sample.encoders.device=warp"], capsys)
    assert "config.sample.encoders.device is 'warp', expected cpu, cuda" in found


@pytest.mark.parametrize(("module", "command"), HELPS)
def test_an_empty_name_is_refused(module: str, command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """An unset variable in a script, such as --workdir=$RUN, must not become another folder or another run."""
    for name, entry in entries(read_help(module, command, capsys)).items():
        metavar = entry.removeprefix(name).split()[0]
        if not name.startswith("--") or name == "--config.KEY" or not metavar.isupper() or metavar in FREE_TEXT:
            continue
        found = sentence(module, [*command, f"{name}="], capsys)
        assert found.startswith((f"error: {name}: expected ", f"error: {name} : expected ")), found
        assert "got ''" in found or name == "--set", found


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_empty_name_is_refused_by_scripts(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = [name for name in entries(read_help(f"scripts.{script}", (), capsys)) if name in ("--output", "--run")]
    for name in names:
        found = sentence(f"scripts.{script}", [f"{name}="], capsys)
        assert f"{name}: expected a path, got ''" in found


@pytest.mark.parametrize(
    ("recipe", "key"),
    [
        ("ar_mem", "data.records"),
        ("ar_mem", "data.recording.directory"),
        ("ar_mem", "sample.encoders.autoencoder"),
        ("theworld", "data.tokenizer"),
        ("theworld", "data.recording.directory"),
        ("autoencoder", "data.recording.directory"),
    ],
)
def test_an_empty_path_in_a_config_is_refused(recipe: str, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty path would be the current folder."""
    found = sentence("jworld.train", [f"--config=configs/{recipe}.py", "--dry-run", f"--config.{key}="], capsys)
    assert key in found.replace("config.data.recording: directory", "config.data.recording.directory")
    assert "expected" in found


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ((*TEXT, "--benchmark=nope"), "--benchmark is 'nope', expected one of questions, blink, spatial_rgpt, vsr"),
        ((*TEXT, "--scoring=nope"), "--scoring is 'nope', expected one of sound, original, likelihood"),
        ((*TEXT, "--benchmark=vsr"), "--data is missing"),
        ((*TEXT, "--benchmark=vsr", "--data={linear}"), "--images is missing"),
        ((*TEXT, "--benchmark=vsr", "--data={linear}", "--images={linear}"), "is not a folder"),
        ((*TEXT, "--benchmark=blink", "--data=/none"), "--data: /none is absent"),
        (
            (*TEXT, "--benchmark=blink", "--data={starter}", "--split=**"),
            "--split is '**', expected a name such as val",
        ),
        ((*EVALUATE, "--motion=/none"), "motion network /none is absent"),
        ((*EVALUATE, "--motion={folder}/batch.jsonl"), "batch.jsonl is not a safetensors file"),
        ((*EVALUATE, "--records=/none"), "/none/manifest.json is absent"),
    ],
)
def test_choices_are_found_before_weights_are_read(
    command: tuple[str, ...], message: str, places: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    module, *arguments = [text.format(**places) for text in command]
    assert message in sentence(module, arguments, capsys)
    assert not (pathlib.Path(places["folder"]) / "out").exists()


def test_a_compilation_cache_that_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    found = sentence("jworld.train", [*TRAIN[1:], "--compilation-cache=/dev/null"], capsys)
    assert "--compilation-cache /dev/null: /dev/null is not a folder" in found


def test_outputs_of_validate_are_opened_first(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jworld.precompute.validate.validate", None)  # not reached
    for flag, problem in (("--json", "is a folder, expected the name of a file"), ("--plot", "is not a folder")):
        place = tmp_path if flag == "--json" else LINEAR
        assert problem in sentence("jworld.precompute.validate", [str(tmp_path), f"{flag}={place}"], capsys)


def test_a_release_needs_the_encoders_of_its_run(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in (run_config.FILE_NAME, runs.WEIGHTS):
        shutil.copy(STARTER / name, run)
    output = tmp_path / "out"
    found = sentence("scripts.release_weights", [f"--run={run}", f"--output={output}"], capsys)
    assert f"--run {run} has no folder encoders, expected the manifest or tokenizer" in found
    assert not output.exists()


def test_weights_that_a_dtype_cannot_hold_are_not_written(tmp_path: pathlib.Path) -> None:
    with np.errstate(over="ignore"):
        large = np.float32([1, 1e6]).astype(np.float16)
    with pytest.raises(errors.UserError, match="kernel has NaN or infinite values: in float16 it is not written"):
        tensor_files.save({"kernel": large}, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []
