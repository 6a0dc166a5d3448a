"""Commands on a disk that becomes full: one sentence, nothing half-written, and the same command resumes later.

`tests/test_generate.py` and `tests/training/test_checkpoints.py` do the same for videos and checkpoints.
"""

import pathlib
import shutil
import types
from collections.abc import Callable, Sequence

import commands
import converted
import full_disk
import numpy as np
import precompute_inputs
import pytest
import tiny_run

from conversion import __main__ as conversion
from jworld import train
from jworld.data import records
from jworld.data.recording import episodes
from jworld.data.records import shards
from jworld.precompute import __main__ as precompute
from jworld.utils import errors, files, tensor_files

AUTOENCODER = commands.ROOT / "assets" / "starter" / "encoders" / "autoencoder.safetensors"


def files_of(folder: pathlib.Path) -> dict[str, bytes]:
    """Return the contents of a folder's files, but for those that an interrupted precompute resumes from."""
    found = [path for path in folder.rglob("*") if path.is_file() and shards.PROGRESS not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def refused(
    main: Callable[[Sequence[str]], None], arguments: Sequence[str], size: int, capsys: pytest.CaptureFixture[str]
) -> str:
    """Run a command on a full disk and return its sentence."""
    capsys.readouterr()
    with full_disk.after(size), pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if line.startswith("error: ")]) == 1
    assert "File too large" in lines[-1]
    return lines[-1]


def test_precompute(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    precompute_inputs.write_episodes(tmp_path / "raw", ["train", "val"])
    arguments = [f"--input={tmp_path / 'raw'}", f"--output={tmp_path / 'out' / 'set'}", f"--autoencoder={AUTOENCODER}"]
    arguments += ["--width=64", "--height=48"]
    for size in (500, 5000):
        sentence = refused(precompute.main, arguments, size, capsys)
        assert str(tmp_path / "out") in sentence
        assert records.MANIFEST not in files_of(tmp_path / "out" / "set")
    precompute.main(arguments)
    assert records.read_manifest(tmp_path / "out" / "set")["episodes"].keys() == {"train", "val"}


def test_import_and_export(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    converted.download(tmp_path / "download", "transformer_ar_train")
    place = tmp_path / "new"
    importing = ["import", str(tmp_path / "download"), f"--output={place / 'imported'}", "--variant=ar"]
    assert str(place) in refused(conversion.main, importing, 20_000, capsys)
    assert not place.exists()
    conversion.main(importing)
    before = files_of(place)
    exporting = ["export", str(place / "imported"), f"--output={place / 'exported'}"]
    assert str(place) in refused(conversion.main, exporting, 20_000, capsys)
    assert files_of(place) == before


def test_training_is_refused_before_its_first_step(
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first checkpoint may be hours away; nothing is left, so that the same command starts later."""
    data = tmp_path_factory.getbasetemp() / "tiny_run"
    tiny_run.make_run(data)
    recipe = tmp_path / "recipe.py"
    text = f"import pathlib, tiny_run\ndef get_config(_=''): return tiny_run.make_config(pathlib.Path({str(data)!r}))\n"
    recipe.write_text(text)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1000))
    with pytest.raises(SystemExit) as ended:
        train.main(
            [f"--config={recipe}", f"--workdir={tmp_path / 'run'}", "--config.steps=1", "--config.global_batch=8"]
        )
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert "the checkpoint does not fit on the disk of" in printed.err
    assert "step 1/1" not in printed.out
    assert not (tmp_path / "run").exists()


def test_videos_tensors_and_copies(tmp_path: pathlib.Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    source = tmp_path / "source"
    source.write_bytes(bytes(10_000))
    place = tmp_path / "out"
    place.mkdir()
    with full_disk.after(2000):
        with pytest.raises(OSError, match="File too large"):
            episodes.write_video(tmp_path / "a.mp4", noise, fps=8)
        with pytest.raises(OSError, match="File too large"):
            tensor_files.save({"noise": noise}, place / "a.safetensors")
        with pytest.raises(errors.UserError, match=r"cannot be copied to .* \(File too large\)"):
            files.copy(source, place / "copy")
    assert list(place.iterdir()) == []


def test_the_sentence_of_any_command(capsys: pytest.CaptureFixture[str]) -> None:
    @errors.exit_on_user_error
    def write(arguments: Sequence[str]) -> None:
        with pathlib.Path("/dev/full").open("w", buffering=1) as file:
            file.write("text\n")

    with pytest.raises(SystemExit) as ended:
        write([])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error: a file could not be written (No space left on device): free space, or choose another place\n"
    )
