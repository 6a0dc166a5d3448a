"""Import of published files: contents of records, bad clips, and a killed command."""

import json
import pathlib
import re
import shutil
import signal
import time
from collections.abc import Callable

import commands
import golden_cases
import ml_dtypes
import numpy as np
import published_set
import pytest
from parity_checks import data as parity

from configs import ar_mem
from jworld import systems
from jworld.data import records
from jworld.data.records import shards, text_store
from jworld.systems.worldplay import import_data, published_files

pytest.importorskip("torch")

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "worldplay" / "dataset_item"
CLIPS = 10


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("published")
    published_set.write_set(folder, CLIPS, frames=4, prompts=4)
    return folder


def arguments(folder: pathlib.Path, output: pathlib.Path | None = None, *extra: str) -> list[str]:
    prompt, glyph = (str(folder / name) for name in published_set.NAMES)
    common = ["--index", str(folder / "index.json"), "--negative-prompt", prompt, "--negative-glyph", glyph]
    return commands.replaced([*common, "--min-frames=4", *(["--output", str(output)] if output else [])], *extra)


def content(directory: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def exit_code(argv: list[str]) -> object:
    with pytest.raises(SystemExit) as stopped:
        import_data.main(argv)
    return stopped.value.code


def test_records_equal_the_files(
    published: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "set with space"
    import_data.main(arguments(published, output, "--val-count=2", "--items-per-shard=3"))
    printed = capsys.readouterr().out
    assert f"{output}: 8 train, 2 val clips, 6.9 seconds of video, " in printed
    assert f"next: python -m jworld.train --config=configs/ar_mem.py:8b '--config.data.records={output}'" in printed
    assert "'--config.data.clip.latent_size=(2,3)'" in printed
    items = {"train": [0, 1, 2, 3, 5, 6, 7, 8], "val": [4, 9]}
    for split, numbers in items.items():
        source = records.RecordSource(output, split)
        store = text_store.TextStore(output, source.manifest)
        assert source.episodes == [f"clip_{i}.pt" for i in numbers]
        for position, i in enumerate(numbers):
            record = source[position]
            w2c, intrinsics = published_set.cameras(i, 4 * (4 + i % 3) - 3)
            np.testing.assert_allclose(record["w2c"], w2c[::4], atol=1e-6)
            expected = np.array([[intrinsics[0, 0, 0] / 832, 0, 0.5], [0, 420 / 480, 0.5], [0, 0, 1]])
            np.testing.assert_allclose(record["intrinsics"], np.tile(expected, (4 + i % 3, 1, 1)), atol=1e-6)
            arrays = published_set.latents(i, 4 + i % 3)
            np.testing.assert_array_equal(record["latent"], np.moveaxis(arrays["latent"][0], 0, -1))
            states = published_set.text(i * i % 4)
            length = int(states["prompt_mask"].sum())
            expected = states["prompt_embeds"][0, :length].astype(ml_dtypes.bfloat16)
            np.testing.assert_array_equal(store.prompt(int(record["prompt"]))["text_states"], expected)
    manifest = source.manifest
    assert manifest["action_labels"] == "cameras"
    assert manifest["autoencoder"]["family"] == "hunyuan15"
    assert (manifest["image_size"], manifest["fps"], manifest["temporal_ratio"]) == ([48, 32], 24.0, 4)
    # The squares of 0..9 leave two remainders by 4; the negative prompt is row 0.
    assert len(manifest["prompts"]) == len(store) == 3
    negative = published_set.text(99)
    length = int(negative["prompt_mask"].sum())
    np.testing.assert_array_equal(
        store.prompt(0)["text_states"], negative["prompt_embeds"][0, :length].astype(ml_dtypes.bfloat16)
    )


def write_walk(folder: pathlib.Path, change: Callable[[np.ndarray], np.ndarray], *, actions: bool = True) -> None:
    """Write clips that walk forward and turn right, with their action files; `change` is applied to their w2c."""
    published_set.write_set(folder, 4, frames=6)
    items = json.loads((folder / "index.json").read_text())
    for i, item in enumerate(items):
        w2c, intrinsics = published_set.cameras(i, 4 * (6 + i % 3) - 3)
        published_set.save_poses(folder / item["pose_path"], change(w2c), intrinsics)
        frames = [{"move_action": "W", "view_action": "LR", "frame": t} for t in range(len(w2c))]
        (folder / f"actions_{i}.json").write_text(json.dumps({str(t): frame for t, frame in enumerate(frames)}))
        if actions:
            item["action_path"] = f"actions_{i}.json"
    (folder / "index.json").write_text(json.dumps(items))


def scaled(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return the change of the unit of positions."""
    unit = np.ones((4, 4))
    unit[:3, 3] = factor
    return lambda w2c: w2c * unit


OPENGL = np.diag([1.0, -1, -1, 1])


@pytest.mark.parametrize(
    "change, warning",
    [
        (lambda w2c: w2c, None),
        (scaled(1000.0), "the median step of a moving camera is 80 units per latent, .* in millimeters or centimeters"),
        (scaled(0.01), r"is 0\.0008 units per latent, .* and steps below 0\.01 count as none: multiply the positions"),
        (np.linalg.inv, r"0% of the recorded moves and turns agree .* camera-to-world matrices given as world-to-cam"),
        (lambda w2c: OPENGL @ w2c, "of the recorded moves and turns agree .* if w2c were OpenGL or Blender axes"),
    ],
)
def test_validation_warns_about_conventions(
    tmp_path: pathlib.Path,
    change: Callable[[np.ndarray], np.ndarray],
    warning: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Labels and motions are printed; all of these files are readable."""
    write_walk(tmp_path / "published", change)
    import_data.main(arguments(tmp_path / "published", None, "--validate"))
    printed = capsys.readouterr().out
    assert "forward+yaw_right" in printed
    assert "100.0%" in printed
    warnings = [line for line in printed.splitlines() if line.startswith("warning: ")]
    if warning is None:
        assert warnings == []
        assert "all 4 clips are good" in printed
        return
    assert len(warnings) == 1
    assert re.search(warning, warnings[0]), warnings[0]
    assert "all 4 clips can be imported, with 1 warnings" in printed
    import_data.main(arguments(tmp_path / "published", tmp_path / "set"))
    assert warnings[0] in capsys.readouterr().out
    assert records.read_manifest(tmp_path / "set")["action_labels"] == "recorded"


def test_validation_without_action_files(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_walk(tmp_path / "a", lambda w2c: w2c, actions=False)
    import_data.main(arguments(tmp_path / "a", None, "--validate"))
    assert "all 4 clips are good" in capsys.readouterr().out
    write_walk(tmp_path / "b", lambda w2c: OPENGL @ w2c, actions=False)
    import_data.main(arguments(tmp_path / "b", None, "--validate"))
    assert re.search("warning: 100% of the moves along the view go backward: usual for OpenGL", capsys.readouterr().out)


def test_sizes_of_the_published_model_fit_its_recipe(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = {**published_set.SIZE, "height": 30, "width": 52, "tokens": 1000, "text": 3584, "glyphs": 256}
    size |= {"glyph": 1472, "vision": (729, 1152)}
    published_set.write_set(tmp_path, 1, frames=24, size=size)
    import_data.main(arguments(tmp_path, tmp_path / "set", "--min-frames=24"))
    assert capsys.readouterr().out.strip().endswith(f"ar_mem.py:8b --config.data.records={tmp_path / 'set'}")
    system = systems.create(ar_mem.get_config("8b"))
    source = records.RecordSource(tmp_path / "set", "train", min_frames=system.clip.window_frames)
    records.check_manifest(source.manifest, system.manifest_expectations(), path=tmp_path)
    record = source[0]
    example = system.transform(text_store.TextStore(tmp_path / "set", source.manifest), 1).random_map(
        {"record": record, "position": 0}, np.random.default_rng(0)
    )
    for name, spec in system.batch_spec(1).items():
        assert (example[name].shape, example[name].dtype) == (spec.shape[1:], spec.dtype), name


def test_files_give_the_items_of_the_original() -> None:
    assert parity.from_files(golden_cases.GoldenCase(GOLDEN)) < 1e-6


@pytest.mark.parametrize(
    "change",
    [
        lambda record: {"latent": np.swapaxes(record["latent"], 1, 2).copy()},
        lambda record: {"vision_states": record["vision_states"][::-1].copy()},
        lambda record: {"prompt": np.array(0, np.int32)},
        lambda record: {"action": np.zeros_like(record["action"])},
    ],
)
def test_that_check_notices_wrong_records(
    change: Callable[[records.Record], records.Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = import_data.make_record

    def wrong(clip: published_files.Clip, *, prompt: int) -> records.Record:
        record = right(clip, prompt=prompt)
        return {**record, **change(record)}

    monkeypatch.setattr(import_data, "make_record", wrong)
    assert parity.from_files(golden_cases.GoldenCase(GOLDEN)) > 1e-2


REASONS = {
    "short.pt": "short.pt: 'latent' has 3 frames, expected at least 4",
    "gone.pt": "gone.pt does not exist",
    "large.pt": "large.pt has latents 2x4x32, 2 vision tokens of 9, text of 5, glyphs of 7, expected latents",
    "still.pt": "still.json has 0 poses, expected at least 13 for the 4 latent frames of the clip",
}


@pytest.fixture
def with_bad_clips(published: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy whose index has four clips with different problems; the first item is one of them."""
    folder = tmp_path / "bad"
    shutil.copytree(published, folder)
    short = published_set.save_clip(folder, "short", 50, 3, prompt=1)
    large = published_set.save_clip(folder, "large", 51, 4, prompt=1, size={**published_set.SIZE, "width": 4})
    still = published_set.save_clip(folder, "still", 52, 4, prompt=1)
    (folder / "still.json").write_text("{}")
    gone = {"latent_path": "gone.pt", "pose_path": "gone.json"}
    good = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps([short, *good[:3], gone, large, *good[3:], still]))
    return folder


def test_validate_lists_all_bad_clips_and_writes_nothing(
    published: pathlib.Path, with_bad_clips: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import_data.main(arguments(published, None, "--validate"))
    assert f"all {CLIPS} clips are good" in capsys.readouterr().out
    before = content(with_bad_clips.parent)
    assert exit_code(arguments(with_bad_clips, None, "--validate")) == 2
    lines = capsys.readouterr().out.splitlines()[-5:]
    for line, (name, reason) in zip(lines, REASONS.items(), strict=False):
        assert line.startswith(f"{name}: {with_bad_clips}/{reason}")
    assert lines[-1] == f"4 of {CLIPS + 4} clips are bad"
    assert content(with_bad_clips.parent) == before


def test_validate_lists_the_problems_if_all_clips_are_bad(
    with_bad_clips: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = with_bad_clips / "index.json"
    index.write_text(json.dumps(json.loads(index.read_text())[:1]))
    assert exit_code(arguments(with_bad_clips, None, "--validate")) == 2
    assert "1 of 1 clips are bad" in capsys.readouterr().out
    assert exit_code(arguments(with_bad_clips, tmp_path / "set", "--on-error=skip")) == 2
    assert "none of its clips can be used: see the reasons with --validate" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_bad_clips_stop_the_import_or_are_left_out(
    with_bad_clips: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "set"
    assert exit_code(arguments(with_bad_clips, output)) == 2
    assert capsys.readouterr().err.startswith(f"error: {with_bad_clips}/{REASONS['short.pt']}")
    assert not output.exists()
    skip = arguments(with_bad_clips, output, "--on-error=skip", "--items-per-shard=4")
    assert exit_code(skip) == 2
    printed = capsys.readouterr().out
    assert f"{output}: {CLIPS} train, 0 val clips" in printed
    assert f"left out 4 bad clips, see {output}/report.json" in printed
    report = json.loads((output / shards.REPORT).read_text())
    assert report["items"] == CLIPS + 4
    assert [item["item"] for item in report["skipped"]] == list(REASONS)
    for item in report["skipped"]:
        assert item["reason"].startswith(f"{with_bad_clips}/{REASONS[item['item']]}")
    assert records.RecordSource(output, "train").episodes == [f"clip_{i}.pt" for i in range(CLIPS)]
    # For the complete data set the exit code is the same.
    assert exit_code(skip) == 2


@pytest.mark.parametrize(
    "extra, message",
    [
        ([], "--output DIR is missing"),
        (["--output=x", "--items-per-shard=0"], "--items-per-shard is 0, expected more than 0"),
        (["--output=x", "--val-fraction=1"], "--val-fraction is 1.0"),
        (["--output=x", f"--val-count={CLIPS}"], f"--val-count is {CLIPS}, expected 0 to {CLIPS - 1}"),
        (["--output=x", "--val-count=1", "--val-fraction=0.1"], "not allowed with"),
    ],
)
def test_wrong_options(
    published: pathlib.Path, extra: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(arguments(published, None, *extra)) == 2
    assert message in capsys.readouterr().err
    assert not pathlib.Path("x").exists()


def test_prompts_of_other_encoders_are_refused(
    published: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt, _ = published_set.save_negative(tmp_path, published_set.text(1, size={**published_set.SIZE, "text": 8}))
    argv = arguments(published, tmp_path / "set", "--negative-prompt", str(prompt))
    assert exit_code(argv) == 2
    assert r"hold states of widths (8, 7), expected (5, 7) like the prompts of the clips" in capsys.readouterr().err
    swapped = arguments(published, tmp_path / "set", "--negative-glyph", str(prompt))
    assert exit_code(swapped) == 2
    assert "the tensor 'byt5_text_states' is missing" in capsys.readouterr().err


@pytest.mark.parametrize("items, held_out", [(10, 3), (7, 0), (7, 6), (1, 0), (1000, 37)])
def test_held_out_clips_are_spread_evenly(items: int, held_out: int) -> None:
    split = import_data.split_items(items, held_out)
    assert sorted(split["train"] + split["val"]) == list(range(items))
    assert len(split["val"]) == held_out
    gaps = np.diff([-1, *split["val"]])
    assert held_out == 0 or gaps.max() - gaps.min() <= 1


def test_a_killed_import_resumes_with_the_same_result(published: pathlib.Path, tmp_path: pathlib.Path) -> None:
    options = ("--items-per-shard=3", "--val-fraction=0.2")
    import_data.main(arguments(published, tmp_path / "straight", *options))
    folder = tmp_path / "published"
    shutil.copytree(published, folder)
    # Reading this file takes a second, in the middle of the second shard.
    poses = folder / "clip_5.json"
    good = poses.read_bytes()
    poses.write_bytes(good + b" " * (300 << 20))
    output = tmp_path / "set"
    process = commands.start("jworld.systems.worldplay.import_data", *arguments(folder, output, *options))
    deadline = time.monotonic() + 120
    while not list((output / shards.PROGRESS).glob("train-00001-*.tmp")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    names = {"train-00000-of-00003.arrow", "text-train-00000-of-00003.arrow"}
    assert {path.name for path in output.iterdir()} == {*names, shards.PROGRESS}
    written = {name: (output / name).stat().st_mtime_ns for name in names}
    poses.write_bytes(good)
    import_data.main(arguments(folder, output, *options))
    assert content(output) == content(tmp_path / "straight")
    assert written == {name: (output / name).stat().st_mtime_ns for name in names}
